//! Reads a server's certificate with its key, and says how a client would see it. No I/O.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use twofactor_core::time::UnixMillis;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::Root;
use super::validity::Validity;

/// Why a certificate or its key is invalid. The message does not repeat it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ServedError {
    /// The text is not a certificate.
    #[error("the certificate is not one in PEM")]
    NotACertificate,
    /// The text is not a private key.
    #[error("the key is not a private key in PEM")]
    NotAKey,
    /// The key belongs to another certificate, or is of a kind that is not supported.
    #[error("the key is not that of the certificate, or of a kind that is not supported")]
    OtherKey,
}

/// A server's certificate, followed by those that lead to its authority, and its key.
pub struct Served {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    validity: Validity,
}

impl fmt::Debug for Served {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Served").field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl Served {
    /// Reads both from PEM.
    ///
    /// # Errors
    /// Fails if one of them is invalid, or if they do not belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, ServedError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let chain = chain.map_err(|_| ServedError::NotACertificate)?;
        let first = chain.first().ok_or(ServedError::NotACertificate)?;
        let (_, parsed) =
            X509Certificate::from_der(first).map_err(|_| ServedError::NotACertificate)?;
        let validity = Validity::of(&parsed);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| ServedError::NotAKey)?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &default_provider())
            .map_err(|_| ServedError::OtherKey)?;
        Ok(Self { chain, key, validity })
    }

    /// Whether a client that trusts `root` alone accepts it for `name` now.
    #[must_use]
    pub fn is_accepted(&self, root: &Root, name: &str, now: UnixMillis) -> bool {
        let Some((certificate, between)) = self.chain.split_first() else { return false };
        let Ok(name) = ServerName::try_from(name) else { return false };
        let mut roots = RootCertStore::empty();
        if roots.add(root.der().clone()).is_err() {
            return false;
        }
        let provider = Arc::new(default_provider());
        let client = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now.millis()));
        client.build().is_ok_and(|client| {
            client.verify_server_cert(certificate, between, &name, &[], now).is_ok()
        })
    }

    /// The time at which the certificate expires.
    #[must_use]
    pub const fn until(&self) -> UnixMillis {
        self.validity.until
    }

    /// The time from the beginning to the end of the certificate.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.validity.lifetime()
    }

    /// The certificates and the key, for a server.
    #[must_use]
    pub fn parts(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain.clone(), self.key.clone_key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::authority::Authority;

    const NOW: UnixMillis = UnixMillis::from_seconds(1_800_000_000);

    /// Certificate and key as PEM.
    fn signed(authority: &Authority, name: &str) -> [String; 2] {
        let leaf = authority.sign(&[name.to_owned()], Duration::from_mins(1), NOW).unwrap();
        [leaf.certificate_pem(), leaf.key_pem().expose_secret().to_owned()]
    }

    fn read([certificate, key]: &[String; 2]) -> Result<Served, ServedError> {
        Served::from_pem(certificate.as_bytes(), key.as_bytes())
    }

    #[test]
    fn a_clients_view_of_a_certificate_is_known_without_a_connection() {
        let authority = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let other = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let (root, end) = (authority.root(), UnixMillis::from_seconds(1_800_000_060));
        let by_name = read(&signed(&authority, "redis.a.svc")).unwrap();
        let by_address = read(&signed(&authority, "10.0.0.1")).unwrap();
        assert_eq!(by_name.until(), end);
        assert!(by_name.is_accepted(root, "redis.a.svc", NOW));
        assert!(by_address.is_accepted(root, "10.0.0.1", NOW));
        assert!(!by_name.is_accepted(root, "redis.b.svc", NOW), "another name");
        assert!(!by_name.is_accepted(root, "no name", NOW));
        assert!(!by_name.is_accepted(root, "redis.a.svc", end.offset(1000)), "too late");
        assert!(!by_name.is_accepted(root, "redis.a.svc", NOW.offset(-3_600_000)), "too early");
        assert!(!by_name.is_accepted(other.root(), "redis.a.svc", NOW), "another authority");
    }

    #[test]
    fn what_is_spoilt_or_does_not_belong_together_is_refused() {
        let authority = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let [certificate, key] = signed(&authority, "a");
        let [_, other_key] = signed(&authority, "b");
        let error = |certificate: &str, key: &str| {
            read(&[certificate.to_owned(), key.to_owned()]).unwrap_err()
        };
        assert_eq!(error("none", &key), ServedError::NotACertificate);
        assert_eq!(error("", &key), ServedError::NotACertificate);
        assert_eq!(error(&certificate, "none"), ServedError::NotAKey);
        assert_eq!(error(&certificate, &other_key), ServedError::OtherKey);
    }
}
