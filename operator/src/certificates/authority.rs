//! Creates a certificate authority or reads it from PEM, and signs certificates with ECDSA P-256
//! keys. The randomness of the keys is the operating system's, through ring.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use time::OffsetDateTime;
use twofactor_core::secret::SecretText;
use twofactor_core::time::UnixMillis;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::validity::Validity;

/// Maximum time before now at which a certificate begins. A client whose clock is late by more
/// refuses it; an hour is what a clock in the wrong time zone differs by, and gives a thief of the
/// key nothing, because it is in the past.
const BACKDATED: Duration = Duration::from_hours(1);

/// Errors of an authority or a certificate.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// The text is not a certificate of an authority.
    #[error("is not a certificate of an authority in PEM")]
    NotACertificate,
    /// The text is not a private key.
    #[error("is not a private key in PEM")]
    NotAKey,
    /// The key belongs to another certificate.
    #[error("is not the key of the certificate")]
    OtherKey,
    /// Signing failed, because the names are invalid or the operating system has no randomness.
    #[error("cannot sign a certificate")]
    CannotSign,
}

/// The certificate of an authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    der: CertificateDer<'static>,
    validity: Validity,
}

impl Root {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Fails if the text is not a certificate of an authority.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|_| AuthorityError::NotACertificate)?;
        if !parsed.is_ca() {
            return Err(AuthorityError::NotACertificate);
        }
        let validity = Validity::of(&parsed);
        Ok(Self { der, validity })
    }

    /// Reads every certificate of an authority in a text, and ignores the rest.
    #[must_use]
    pub fn all_in(pem: &[u8]) -> Vec<Self> {
        CertificateDer::pem_slice_iter(pem)
            .filter_map(|der| Self::from_der(der.ok()?).ok())
            .collect()
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    /// The certificate.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Whether the certificate is valid now.
    #[must_use]
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.validity.contains(now)
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
}

impl fmt::Debug for Root {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Root").field("validity", &self.validity).finish_non_exhaustive()
    }
}

/// A certificate authority with its key.
pub struct Authority {
    root: Root,
    key: SecretText,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Authority").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A server's certificate with its key.
pub struct Leaf {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The time at which the certificate expires, at most the authority's.
    pub until: UnixMillis,
}

impl Leaf {
    /// The certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// Its key as PEM (PKCS#8).
    #[must_use]
    pub fn key_pem(&self) -> SecretText {
        SecretText::new(pem("PRIVATE KEY", self.key.secret_der()))
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Leaf").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Authority {
    /// Creates an authority that is valid for `lifetime` from `now`, in whole seconds.
    ///
    /// # Errors
    /// Fails if the operating system has no randomness.
    pub fn generate(lifetime: Duration, now: UnixMillis) -> Result<Self, AuthorityError> {
        let mut params = CertificateParams::default();
        // A unique name, so that programs that compare names do not confuse old and new
        // authorities.
        params.distinguished_name = common_name(&format!("twofactor-operator {}", now.millis()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, lifetime, ends(now, lifetime))?;
        let key = KeyPair::generate().map_err(|_| AuthorityError::CannotSign)?;
        let text = SecretText::new(key.serialize_pem());
        let issuer =
            CertifiedIssuer::self_signed(params, key).map_err(|_| AuthorityError::CannotSign)?;
        Self::from_pem(issuer.pem().as_bytes(), text)
    }

    /// Reads an authority.
    ///
    /// # Errors
    /// Fails if the texts are not a certificate of an authority and its key.
    pub fn from_pem(certificate: &[u8], key: SecretText) -> Result<Self, AuthorityError> {
        let der = CertificateDer::from_pem_slice(certificate)
            .map_err(|_| AuthorityError::NotACertificate)?;
        let root = Root::from_der(der)?;
        let pair = KeyPair::from_pem(key.expose_secret()).map_err(|_| AuthorityError::NotAKey)?;
        let (_, parsed) =
            X509Certificate::from_der(&root.der).map_err(|_| AuthorityError::NotACertificate)?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(AuthorityError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(&root.der, pair)
            .map_err(|_| AuthorityError::NotACertificate)?;
        Ok(Self { root, key, issuer })
    }

    /// The authority's certificate.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// The authority's key as PEM.
    #[must_use]
    pub const fn key(&self) -> &SecretText {
        &self.key
    }

    /// Signs a server's certificate for `names`, valid for `lifetime` from `now`, but no longer
    /// than the authority.
    ///
    /// # Errors
    /// Fails if the names are invalid.
    pub fn sign(
        &self,
        names: &[String],
        lifetime: Duration,
        now: UnixMillis,
    ) -> Result<Leaf, AuthorityError> {
        let mut params = CertificateParams::new(names).map_err(|_| AuthorityError::CannotSign)?;
        params.distinguished_name = common_name("twofactor-operator");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let until = ends(now, lifetime).min(self.root.until());
        validity(&mut params, lifetime, until)?;
        let key = KeyPair::generate().map_err(|_| AuthorityError::CannotSign)?;
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(|_| AuthorityError::CannotSign)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Leaf { certificate: certificate.der().clone(), key, until })
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn ends(now: UnixMillis, lifetime: Duration) -> UnixMillis {
    let later =
        now.millis().saturating_add(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
    // Times in certificates are whole seconds.
    UnixMillis::from_seconds(later.div_ceil(1000))
}

/// Sets the beginning and the end. The beginning is earlier by at most a tenth of the lifetime,
/// because alerts and renewals are shares of the time from the beginning to the end.
fn validity(
    params: &mut CertificateParams,
    lifetime: Duration,
    until: UnixMillis,
) -> Result<(), AuthorityError> {
    let moment = |seconds: u64| {
        let seconds = i64::try_from(seconds).map_err(|_| AuthorityError::CannotSign)?;
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::CannotSign)
    };
    // The end is rounded up to whole seconds, so that less than a second would begin after now.
    let before = lifetime + BACKDATED.min(lifetime / 10).max(Duration::from_secs(1));
    params.not_after = moment(until.seconds())?;
    params.not_before = moment(until.seconds().saturating_sub(before.as_secs()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis::from_seconds(1_800_000_000);

    #[test]
    fn an_authority_is_read_from_its_text_and_signs_no_longer_than_it_is_valid() {
        let made = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let again = Authority::from_pem(made.root().pem().as_bytes(), made.key().clone()).unwrap();
        assert_eq!(again.root(), made.root());
        assert_eq!(again.root().until(), UnixMillis::from_seconds(1_800_003_600));
        assert!(again.root().is_valid(NOW) && !again.root().is_valid(again.root().until()));
        let names = ["operator.system.svc".to_owned()];
        let leaf = again.sign(&names, Duration::from_mins(1), NOW).unwrap();
        assert_eq!(leaf.until, UnixMillis::from_seconds(1_800_000_060));
        let long = again.sign(&names, Duration::from_hours(24), NOW).unwrap();
        assert_eq!(long.until, again.root().until());
    }

    #[test]
    fn an_invalid_authority_is_refused_without_showing_the_key() {
        let one = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let other = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let pem = one.root().pem();
        let refused = |certificate: &str, key: &SecretText| {
            Authority::from_pem(certificate.as_bytes(), key.clone()).unwrap_err()
        };
        assert_eq!(refused(&pem, other.key()), AuthorityError::OtherKey);
        assert_eq!(refused("none", one.key()), AuthorityError::NotACertificate);
        assert_eq!(refused(&pem, &SecretText::new("none".to_owned())), AuthorityError::NotAKey);
        let leaf = one.sign(&["a.b.svc".to_owned()], Duration::from_mins(1), NOW).unwrap();
        assert_eq!(Root::from_der(leaf.certificate.clone()), Err(AuthorityError::NotACertificate));
        assert!(!format!("{one:?} {leaf:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_client_with_a_late_clock_accepts_a_new_certificate() {
        for (lifetime, late) in [
            (Duration::from_hours(2160), Duration::from_hours(1)),
            (Duration::from_hours(24), Duration::from_hours(1)),
            (Duration::from_hours(1), Duration::from_mins(6)),
            (Duration::from_secs(3), Duration::from_millis(500)),
        ] {
            // Not at the beginning of a second.
            let now = NOW.offset(400);
            let seen = now.offset(-i64::try_from(late.as_millis()).unwrap());
            let authority = Authority::generate(lifetime, now).unwrap();
            let leaf = authority.sign(&["a.b.svc".to_owned()], lifetime, now).unwrap();
            let (_, parsed) = X509Certificate::from_der(&leaf.certificate).unwrap();
            for validity in [authority.root().validity, Validity::of(&parsed)] {
                // The end is rounded up, and with it the beginning.
                assert!(validity.contains(seen.offset(600)), "{lifetime:?}");
                assert!(validity.contains(now), "{lifetime:?}");
                assert!(validity.lifetime() <= lifetime * 11 / 10 + Duration::from_secs(1));
            }
        }
    }

    #[test]
    fn certificates_are_read_from_a_bundle_and_the_rest_is_ignored() {
        let one = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let other = Authority::generate(Duration::from_hours(1), NOW).unwrap();
        let bundle = format!("{}nonsense\n{}", one.root().pem(), other.root().pem());
        assert_eq!(Root::all_in(bundle.as_bytes()), [one.root().clone(), other.root().clone()]);
        assert!(Root::all_in(b"nonsense").is_empty());
    }
}
