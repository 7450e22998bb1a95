//! Creates a certificate authority for a test, and certificates that it signs, as PEM.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use twofactor_core::time::UnixMillis;
use twofactor_server::tls::CurrentCertificate;

/// A certificate and its private key.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// The private key (PKCS#8).
    pub key: String,
}

impl Leaf {
    /// The certificate for a server of this process.
    #[must_use]
    pub fn served(&self) -> Arc<CurrentCertificate> {
        let current = Arc::new(CurrentCertificate::default());
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key");
        current
            .set(chain.collect::<Result<_, _>>().expect("a certificate"), key)
            .expect("a key that fits");
        current
    }
}

/// A certificate authority that exists for one test.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::of(name, CertificateParams::default())
    }

    /// A new authority called `name` with this end.
    #[must_use]
    pub fn until(name: &str, end: UnixMillis) -> Self {
        let mut params = CertificateParams::default();
        params.not_after = (SystemTime::UNIX_EPOCH + Duration::from_secs(end.seconds())).into();
        Self::of(name, params)
    }

    fn of(name: &str, mut params: CertificateParams) -> Self {
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            issuer: CertifiedIssuer::self_signed(params, key()).expect("a certificate authority"),
        }
    }

    /// Its certificate, for clients that trust it.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server's certificate for host names and addresses.
    #[must_use]
    pub fn server(&self, names: &[&str]) -> Leaf {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("host names and addresses");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A certificate for servers that are also clients of each other, for host names and addresses.
    #[must_use]
    pub fn peer(&self, names: &[&str]) -> Leaf {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("host names and addresses");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A client's certificate; Kubernetes reads the organization as a group.
    #[must_use]
    pub fn client(&self, name: &str, organization: &str) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Leaf {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).expect("a signed certificate");
        Leaf { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A new key pair, as (private, public) PEM.
#[must_use]
pub fn key_pair() -> (String, String) {
    let key = key();
    (key.serialize_pem(), key.public_key_pem())
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key pair")
}
