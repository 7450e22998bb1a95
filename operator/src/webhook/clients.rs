//! Checks the certificates of the webhook's clients, the API servers, if an authority for them is
//! configured. The authority's file is followed.
//!
//! Without it, every pod that reaches the port can ask the webhook how it would change a pod. The
//! answers contain nothing secret, so the check is an option.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Interval between reads of the file.
const PERIOD: Duration = Duration::from_secs(10);

/// The certificates with which clients may call the webhook.
#[derive(Clone, Debug)]
pub struct ClientRules {
    /// File with the authorities (PEM) that sign them.
    pub authority: PathBuf,
    /// Their common names; any if empty.
    pub names: Vec<String>,
}

/// Why the authority of clients cannot be used.
#[derive(Debug, Error)]
pub enum ClientRulesError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// The file has no certificate, or an invalid one.
    #[error("must be certificates in PEM")]
    NotCertificates,
}

/// Accepts clients with a certificate that fits the rules, as they are now.
#[derive(Debug)]
pub struct ClientVerifier {
    names: Vec<String>,
    current: ArcSwap<Trusted>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Trusted {
    pem: String,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientVerifier {
    /// Reads the file of the rules.
    pub fn read(rules: &ClientRules) -> Result<Self, ClientRulesError> {
        Self::new(std::fs::read_to_string(&rules.authority)?, rules.names.clone())
    }

    fn new(pem: String, names: Vec<String>) -> Result<Self, ClientRulesError> {
        let current = ArcSwap::from_pointee(Trusted::parse(pem)?);
        let algorithms = default_provider().signature_verification_algorithms;
        Ok(Self { names, current, algorithms })
    }

    /// Uses these authorities from now on. Returns whether they are others than before.
    fn update(&self, pem: String) -> Result<bool, ClientRulesError> {
        if pem == self.current.load().pem {
            return Ok(false);
        }
        self.current.store(Arc::new(Trusted::parse(pem)?));
        Ok(true)
    }

    fn is_named(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        let mut names = certificate.subject().iter_common_name();
        let name = names.next().and_then(|name| name.as_str().ok());
        // A subject with two names could mean either.
        names.next().is_none() && name.is_some_and(|name| self.names.iter().any(|it| it == name))
    }
}

impl Trusted {
    fn parse(pem: String) -> Result<Self, ClientRulesError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_| ClientRulesError::NotCertificates)?;
            roots.add(certificate).map_err(|_| ClientRulesError::NotCertificates)?;
        }
        let provider = Arc::new(default_provider());
        // Fails without a root.
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        let verifier = verifier.build().map_err(|_| ClientRulesError::NotCertificates)?;
        Ok(Self { pem, verifier })
    }
}

impl ClientCertVerifier for ClientVerifier {
    // The names of authorities are hints, and may change while the server runs. Without hints, a
    // client sends the certificate that it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let trusted = self.current.load_full();
        let verified = trusted.verifier.verify_client_cert(end_entity, intermediates, now)?;
        if self.names.is_empty() || self.is_named(end_entity) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Follows the file of the authority until `stop`. While it cannot be used, the previous authority
/// stays in use.
pub async fn follow(verifier: Arc<ClientVerifier>, file: PathBuf, stop: CancellationToken) {
    let mut reported = None;
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let pem = std::fs::read_to_string(&file).map_err(ClientRulesError::File);
        match pem.and_then(|pem| verifier.update(pem)) {
            Ok(changed) => {
                reported = None;
                if changed {
                    tracing::info!("authority of the webhook's clients changed");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if reported.as_ref() != Some(&text) {
                    tracing::warn!(%error, "failed to read the changed authority of the webhook's clients; the previous one stays in use");
                    reported = Some(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Issuer {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn certificate(names: &[&str], issuer: &Issuer) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, issuer).unwrap().der().clone()
    }

    fn accepts(verifier: &ClientVerifier, certificate: &CertificateDer<'_>) -> bool {
        verifier.verify_client_cert(certificate, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_client_needs_a_certificate_of_the_authority_with_one_of_the_names() {
        let (first, second) = (authority(), authority());
        let verifier = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            ClientVerifier::new(first.pem(), names).unwrap()
        };
        let (any, one) = (verifier(&[]), verifier(&["kube-apiserver", "other"]));
        let of_first = certificate(&["kube-apiserver"], &first);
        assert!(accepts(&any, &of_first) && accepts(&one, &of_first));
        let stranger = certificate(&["kubelet"], &first);
        assert!(accepts(&any, &stranger) && !accepts(&one, &stranger));
        assert!(!accepts(&one, &certificate(&[], &first)));
        let of_second = certificate(&["kube-apiserver"], &second);
        assert!(!accepts(&any, &of_second) && !accepts(&one, &of_second));

        for invalid in ["", "not PEM"] {
            let refused = one.update(invalid.to_owned());
            assert!(matches!(refused, Err(ClientRulesError::NotCertificates)), "{invalid}");
        }
        assert!(accepts(&one, &of_first), "the previous authority stays in use");
        let both = [first.pem(), second.pem()].concat();
        assert!(one.update(both.clone()).unwrap() && !one.update(both).unwrap());
        assert!(accepts(&one, &of_first) && accepts(&one, &of_second));
    }
}
