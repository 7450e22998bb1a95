//! Encrypts the connections of [`http`](crate::http). Each new connection uses the newest
//! certificate, so nothing is restarted when a certificate is replaced.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

/// The certificate of new connections. Without one, connections fail.
#[derive(Default)]
pub struct CurrentCertificate(ArcSwapOption<CertifiedKey>);

impl CurrentCertificate {
    /// Sets the certificate of new connections. `chain` begins with the server's own certificate.
    ///
    /// # Errors
    /// If the key is of an unsupported kind, or does not belong to the certificate. Then the
    /// previous certificate stays.
    pub fn set(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), rustls::Error> {
        let certified = CertifiedKey::from_der(chain, key, &default_provider())?;
        self.0.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// Returns the certificate, if there is one.
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

/// Configures TLS 1.3 or 1.2 for HTTP/1.1, with the certificate that is current when a connection
/// begins.
///
/// # Errors
/// Never with the built-in provider.
pub fn configuration(current: Arc<CurrentCertificate>) -> Result<Arc<ServerConfig>, rustls::Error> {
    configuration_for(current, WebPkiClientVerifier::no_client_auth())
}

/// [`configuration`] for clients that `clients` accepts.
///
/// # Errors
/// Never with the built-in provider.
pub fn configuration_for(
    current: Arc<CurrentCertificate>,
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut configuration = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(current);
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would keep the certificate of its first connection. Sessions are not
    // resumed, which costs little because connections are kept open.
    configuration.session_storage = Arc::new(NoServerSessionStorage {});
    configuration.send_tls13_tickets = 0;
    Ok(Arc::new(configuration))
}
