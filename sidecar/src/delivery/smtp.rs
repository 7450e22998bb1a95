//! Sends mail to a server (RFC 5321), with STARTTLS (RFC 3207) or implicit TLS (RFC 8314).
//!
//! A connection is used again only if its last delivery succeeded. After one that was cancelled,
//! timed out or failed, the next delivery could get the reply of that one. A delivery therefore
//! owns its connection and gives it back at the very end.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use lettre::address::Envelope;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{
    AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters,
};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use twofactor_core::provider::{SmtpSecurity, SmtpSettings};

use super::CONNECT_TIMEOUT;
use super::error::{DeliveryError, cause, is_about_trust};

/// Maximum idle time of a connection; mail servers wait longer.
const IDLE: Duration = Duration::from_secs(20);
/// Maximum number of idle connections.
const MOST_IDLE: usize = 4;
/// Maximum number of deliveries over one connection, below the limits of mail servers.
const MOST_DELIVERIES: u32 = 50;
/// Timeout for QUIT.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A mail server and its idle connections.
pub(super) struct MailServer {
    host: String,
    port: u16,
    security: SmtpSecurity,
    tls: Option<TlsParameters>,
    credentials: Option<Credentials>,
    idle: Arc<Idle>,
}

/// Connections that wait for the next delivery.
#[derive(Default)]
struct Idle(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    connections: Vec<Connection>,
    /// Whether a task closes expired connections.
    is_cleaned: bool,
}

/// A connection, idle or in use.
struct Connection {
    smtp: AsyncSmtpConnection,
    deliveries: u32,
    since: Instant,
}

impl MailServer {
    /// Prepares connections to the server in `settings`.
    pub(super) fn new(settings: &SmtpSettings) -> Result<Self, DeliveryError> {
        let tls = match settings.security {
            SmtpSecurity::Plain => None,
            SmtpSecurity::Starttls | SmtpSecurity::Implicit => Some(tls_parameters(settings)?),
        };
        let credentials = settings.username.clone().map(|username| {
            let password =
                settings.password.as_ref().map(|password| password.expose_secret().to_owned());
            Credentials::new(username, password.unwrap_or_default())
        });
        Ok(Self {
            host: settings.server.clone(),
            port: settings.port,
            security: settings.security,
            tls,
            credentials,
            idle: Arc::default(),
        })
    }

    /// Sends a mail over an idle connection or a new one.
    pub(super) async fn send(&self, envelope: &Envelope, mail: &[u8]) -> Result<(), DeliveryError> {
        let mail =
            std::str::from_utf8(mail).map_err(|_| DeliveryError::Misconfigured("the message"))?;
        let (mut connection, is_new) = match self.idle.take() {
            Some(connection) => (connection, false),
            None => (self.connect().await?, true),
        };
        match begin(&mut connection.smtp, envelope, mail).await {
            Err(Failed::Smtp(error)) if !is_new && is_over(&error) => {
                // The server has closed this connection, and probably the other idle ones too.
                // Nothing has been sent.
                self.idle.clear();
                connection = self.connect().await?;
                begin(&mut connection.smtp, envelope, mail).await?;
            }
            begun => begun?,
        }
        let smtp = &mut connection.smtp;
        for to in envelope.to() {
            smtp.command(Rcpt::new(to.clone(), Vec::new())).await.map_err(Failed::Smtp)?;
        }
        smtp.command(Data).await.map_err(Failed::Smtp)?;
        smtp.command(Content(mail)).await.map_err(Failed::Smtp)?;
        connection.deliveries += 1;
        self.idle.give_back(connection);
        Ok(())
    }

    /// Opens a connection that is ready for a mail. If this fails, nothing has been sent.
    async fn connect(&self) -> Result<Connection, DeliveryError> {
        let name = ClientId::default();
        let wrapped = self.tls.clone().filter(|_| self.security == SmtpSecurity::Implicit);
        let address = (self.host.as_str(), self.port);
        let connected = AsyncSmtpConnection::connect_tokio1(
            address,
            Some(CONNECT_TIMEOUT),
            &name,
            wrapped,
            None,
        )
        .await;
        let mut connection = connected.map_err(|error| not_connected(&error))?;
        if let (SmtpSecurity::Starttls, Some(tls)) = (self.security, &self.tls) {
            if !connection.can_starttls() {
                return Err(DeliveryError::Untrusted(
                    "the mail server offers no STARTTLS".to_owned(),
                ));
            }
            connection.starttls(tls.clone(), &name).await.map_err(|error| not_connected(&error))?;
        }
        if let Some(credentials) = &self.credentials {
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            connection.auth(&mechanisms, credentials).await.map_err(|error| {
                if error.is_permanent() {
                    DeliveryError::Misconfigured(
                        "the mail server does not accept SMTP_USERNAME and SMTP_PASSWORD",
                    )
                } else if error.is_client() {
                    DeliveryError::Misconfigured(
                        "the mail server offers no way to log in that is known here",
                    )
                } else {
                    not_connected(&error)
                }
            })?;
        }
        Ok(Connection { smtp: connection, deliveries: 0, since: Instant::now() })
    }
}

/// Why a mail was not sent over a connection.
enum Failed {
    Smtp(SmtpError),
    /// The server cannot take such a mail.
    Unable(&'static str),
}

/// A mail with its end, sent in one piece: a second piece would wait for the server to acknowledge
/// the first, which takes up to forty milliseconds.
struct Content<'a>(&'a str);

impl fmt::Display for Content<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.0.split_inclusive("\r\n") {
            // A line of one dot would end the mail (RFC 5321 §4.5.2).
            if line.starts_with('.') {
                formatter.write_str(".")?;
            }
            formatter.write_str(line)?;
        }
        formatter.write_str(if self.0.ends_with("\r\n") { ".\r\n" } else { "\r\n.\r\n" })
    }
}

/// Sends MAIL, with the extensions that the mail needs.
async fn begin(
    connection: &mut AsyncSmtpConnection,
    envelope: &Envelope,
    mail: &str,
) -> Result<(), Failed> {
    let mut options = Vec::new();
    let server = connection.server_info();
    let is_ascii = |address: &lettre::Address| address.to_string().is_ascii();
    if !envelope.from().is_none_or(is_ascii) || !envelope.to().iter().all(is_ascii) {
        if !server.supports_feature(Extension::SmtpUtfEight) {
            return Err(Failed::Unable(
                "an address is not ASCII, and the mail server has no SMTPUTF8",
            ));
        }
        options.push(MailParameter::SmtpUtfEight);
    }
    if !mail.is_ascii() {
        if !server.supports_feature(Extension::EightBitMime) {
            return Err(Failed::Unable(
                "the mail is not ASCII, and the mail server has no 8BITMIME",
            ));
        }
        options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
    }
    connection.command(Mail::new(envelope.from().cloned(), options)).await.map_err(Failed::Smtp)?;
    Ok(())
}

/// Whether the server has closed the connection, with or without the status 421.
fn is_over(error: &SmtpError) -> bool {
    error.status().is_none_or(|status| u16::from(status) == 421)
}

impl From<Failed> for DeliveryError {
    /// The error contains the status and not the server's words, which may repeat an address.
    fn from(failed: Failed) -> Self {
        let error = match failed {
            Failed::Unable(why) => return Self::Refused(why.to_owned()),
            Failed::Smtp(error) => error,
        };
        let status = error.status().map_or_else(String::new, |status| format!("SMTP {status}"));
        if error.is_permanent() {
            Self::Refused(status)
        } else if error.is_transient() {
            Self::Deferred(status)
        } else {
            Self::Broken(cause(&error))
        }
    }
}

fn not_connected(error: &SmtpError) -> DeliveryError {
    let status = error.status().map_or_else(String::new, |status| format!("SMTP {status}"));
    if is_about_trust(error) {
        DeliveryError::Untrusted(cause(error))
    } else if error.is_permanent() {
        DeliveryError::Refused(status)
    } else if error.is_transient() {
        DeliveryError::Deferred(status)
    } else {
        DeliveryError::Unreachable(cause(error))
    }
}

fn tls_parameters(settings: &SmtpSettings) -> Result<TlsParameters, DeliveryError> {
    let mut builder = TlsParameters::builder(settings.server.clone());
    if let Some(bundle) = &settings.ca_certificates {
        let wrong =
            |_| DeliveryError::Misconfigured("the mail server's CA certificates are not PEM");
        builder = builder
            .certificate_store(CertificateStore::None)
            .add_root_certificate(Certificate::from_pem(bundle.as_bytes()).map_err(wrong)?);
    }
    builder.build_rustls().map_err(|_| DeliveryError::Misconfigured("TLS towards the mail server"))
}

impl Idle {
    /// Returns the connection that was used last, if it has not expired.
    fn take(&self) -> Option<Connection> {
        self.waiting().connections.pop_if(|connection| connection.since.elapsed() < IDLE)
    }

    /// Gives a connection back after a delivery; it is closed if there are enough idle ones.
    fn give_back(self: &Arc<Self>, connection: Connection) {
        let mut waiting = self.waiting();
        if waiting.connections.len() >= MOST_IDLE || connection.deliveries >= MOST_DELIVERIES {
            drop(waiting);
            tokio::spawn(close(connection));
            return;
        }
        waiting.connections.push(Connection { since: Instant::now(), ..connection });
        if !std::mem::replace(&mut waiting.is_cleaned, true) {
            tokio::spawn(close_expired(Arc::downgrade(self)));
        }
    }

    fn clear(&self) {
        self.waiting().connections.clear();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes expired connections until none is idle.
async fn close_expired(idle: Weak<Idle>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(idle) = idle.upgrade() else { return };
        let (old, is_over) = {
            let mut waiting = idle.waiting();
            let old: Vec<Connection> = waiting
                .connections
                .extract_if(.., |connection| connection.since.elapsed() >= IDLE)
                .collect();
            // The next connection that is given back starts this task again.
            waiting.is_cleaned = !waiting.connections.is_empty();
            (old, !waiting.is_cleaned)
        };
        for connection in old {
            close(connection).await;
        }
        if is_over {
            return;
        }
    }
}

async fn close(mut connection: Connection) {
    let _ = tokio::time::timeout(QUIT_TIMEOUT, connection.smtp.quit()).await;
}

impl fmt::Debug for MailServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MailServer(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_a_mail_ends_it_early() {
        for (mail, sent) in [
            ("a: b\r\n\r\ntext\r\n", "a: b\r\n\r\ntext\r\n.\r\n"),
            ("text", "text\r\n.\r\n"),
            ("x\r\n.\r\n..y\r\n", "x\r\n..\r\n...y\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
        ] {
            assert_eq!(Content(mail).to_string(), sent);
        }
    }
}
