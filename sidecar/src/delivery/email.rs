//! Email over SMTP (RFC 5321), with STARTTLS (RFC 3207) or implicit TLS (RFC 8314). Enters: the mail server's
//! settings, an address and a message. Leaves: the message, accepted by the server.

use std::time::Duration;

use arc_swap::ArcSwapOption;
use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use std::sync::Arc;
use twofactor_core::provider::{SmtpSecurity, SmtpSettings};
use twofactor_core::user::EmailAddress;

use super::{DeliveryError, Message};

/// For a connection to the server to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a whole delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// Sends mail, each over a connection of its own: a kept one, after a delivery that broke off, would answer the next
/// delivery with what belongs to the last.
#[derive(Debug, Default)]
pub(super) struct EmailSender {
    current: ArcSwapOption<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    settings: SmtpSettings,
    transport: Transport,
    from: Mailbox,
}

impl EmailSender {
    pub(super) async fn send(
        &self,
        settings: &SmtpSettings,
        to: &EmailAddress,
        message: &Message<'_>,
    ) -> Result<(), DeliveryError> {
        let prepared = self.prepared(settings)?;
        let to: Address =
            to.as_str().parse().map_err(|_| DeliveryError::Misconfigured("the user's email address"))?;
        let mail = lettre::Message::builder()
            .from(prepared.from.clone())
            .to(Mailbox::new(None, to))
            .subject(message.subject())
            .header(ContentType::TEXT_PLAIN)
            .body(message.text())
            .map_err(|_| DeliveryError::Misconfigured("the message"))?;
        match tokio::time::timeout(DELIVERY_TIMEOUT, prepared.transport.send(mail)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(classify(&error)),
            Err(_) => Err(DeliveryError::TimedOut),
        }
    }

    fn prepared(&self, settings: &SmtpSettings) -> Result<Arc<Prepared>, DeliveryError> {
        if let Some(current) = self.current.load_full()
            && current.settings == *settings
        {
            return Ok(current);
        }
        let from = settings
            .from
            .parse()
            .map_err(|_| DeliveryError::Misconfigured("SMTP_FROM_EMAIL is not an address"))?;
        let prepared =
            Arc::new(Prepared { settings: settings.clone(), transport: transport(settings)?, from });
        self.current.store(Some(prepared.clone()));
        Ok(prepared)
    }
}

fn transport(settings: &SmtpSettings) -> Result<Transport, DeliveryError> {
    let tls = match settings.security {
        SmtpSecurity::Starttls => Tls::Required(tls_parameters(settings)?),
        SmtpSecurity::Implicit => Tls::Wrapper(tls_parameters(settings)?),
        SmtpSecurity::Plain => Tls::None,
    };
    let mut builder = Transport::builder_dangerous(&settings.server)
        .port(settings.port)
        .tls(tls)
        .timeout(Some(CONNECT_TIMEOUT));
    if let Some(username) = &settings.username {
        let password = settings.password.as_ref().map(|password| password.expose_secret().to_owned());
        builder = builder.credentials(Credentials::new(username.clone(), password.unwrap_or_default()));
    }
    Ok(builder.build())
}

fn tls_parameters(settings: &SmtpSettings) -> Result<TlsParameters, DeliveryError> {
    let mut builder = TlsParameters::builder(settings.server.clone());
    if let Some(bundle) = &settings.ca_certificates {
        let wrong = |_| DeliveryError::Misconfigured("the mail server's CA certificates are not PEM");
        builder = builder
            .certificate_store(CertificateStore::None)
            .add_root_certificate(Certificate::from_pem(bundle.as_bytes()).map_err(wrong)?);
    }
    builder.build_rustls().map_err(|_| DeliveryError::Misconfigured("TLS towards the mail server"))
}

/// The status goes to the log; the server's own words, which may repeat an address, do not.
fn classify(error: &SmtpError) -> DeliveryError {
    if error.is_timeout() {
        DeliveryError::TimedOut
    } else if error.is_permanent() || error.is_transient() {
        DeliveryError::Refused(error.status().map_or_else(String::new, |status| status.to_string()))
    } else {
        DeliveryError::Unreachable(error.to_string())
    }
}
