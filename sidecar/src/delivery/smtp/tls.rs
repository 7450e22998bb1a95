//! Prepares TLS towards a mail server.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::delivery::error::DeliveryError;

/// The trusted authorities, and the name that the certificate must contain.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
}

impl Tls {
    /// Trusts the authorities in `bundle` (PEM), or without one those of the system.
    pub(super) fn new(server: &str, bundle: Option<&str>) -> Result<Self, DeliveryError> {
        let wrong = |what: &'static str| DeliveryError::Misconfigured(what.into());
        let mut roots = RootCertStore::empty();
        match bundle {
            Some(bundle) => {
                let invalid = || wrong("the mail server's CA certificates are invalid");
                for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
                    roots.add(certificate.map_err(|_| invalid())?).map_err(|_| invalid())?;
                }
            }
            // A system has certificates that rustls does not understand; the others are enough.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(wrong("there are no CA certificates to verify the mail server with"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| wrong("TLS towards the mail server"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // A dot at the end belongs to DNS and not to the name in a certificate.
        let name = server.trim_end_matches('.').to_owned();
        let name = ServerName::try_from(name).map_err(|_| wrong("SMTP_SERVER is no host name"))?;
        Ok(Self { connector: Arc::new(config).into(), name })
    }
}
