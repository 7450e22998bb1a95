//! Encrypts the connections of [`http`](crate::http). Each new connection uses the newest
//! certificate, so nothing is restarted when a certificate is replaced.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

/// The certificate that new connections are answered with. Without one, no connection comes about.
#[derive(Default)]
pub struct CurrentCertificate(ArcSwapOption<CertifiedKey>);

impl CurrentCertificate {
    /// Answers new connections with this one. `chain` begins with the server's own certificate.
    ///
    /// # Errors
    /// If the key is of a kind that cannot be used, or not the certificate's; the one before
    /// stays.
    pub fn set(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), rustls::Error> {
        let certified = CertifiedKey::from_der(chain, key, &default_provider())?;
        self.0.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// The certificate itself, when there is one.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        let current = self.0.load_full()?;
        current.end_entity_cert().ok().map(|certificate| certificate.clone().into_owned())
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for CurrentCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.0.load().is_some() { "one" } else { "none" };
        write!(formatter, "CurrentCertificate({state})")
    }
}

/// How connections are encrypted: TLS 1.3 or 1.2, HTTP/1.1 within, with the certificate that is the
/// current one when a connection begins.
///
/// # Errors
/// Never with the provider that is built in.
pub fn configuration(current: Arc<CurrentCertificate>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut configuration = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(current);
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session that is taken up again goes by the certificate of then. Connections are kept, so
    // little is lost.
    configuration.session_storage = Arc::new(NoServerSessionStorage {});
    configuration.send_tls13_tickets = 0;
    Ok(Arc::new(configuration))
}
