//! Sends mail to a server, over connections that are used again.
//!
//! A connection is used again only if its last delivery succeeded, and if the server has sent
//! nothing since. Otherwise the next delivery could get the reply of that one. A delivery therefore
//! owns its connection and gives it back at the very end.

mod conversation;
mod reply;
mod tls;
mod wire;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, lookup_host};
use twofactor_core::provider::{SmtpSecurity, SmtpSettings};

use self::conversation::{Conversation, Failed, Terms};
use self::tls::Tls;
use self::wire::Wire;
use super::CONNECT_TIMEOUT;
use super::error::{DeliveryError, cause};

pub(super) use self::conversation::Mail;

/// Maximum idle time of a connection; mail servers wait longer.
const IDLE: Duration = Duration::from_secs(20);
/// Maximum number of idle connections.
const MOST_IDLE: usize = 4;
/// Maximum number of deliveries over one connection, below the limits of mail servers.
const MOST_DELIVERIES: u32 = 50;

/// A mail server and its idle connections.
pub(super) struct MailServer {
    host: String,
    port: u16,
    terms: Terms,
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
    smtp: Conversation,
    deliveries: u32,
    since: Instant,
}

impl MailServer {
    /// Prepares connections to the server in `settings`. `ehlo_name` is the name in EHLO.
    pub(super) fn new(settings: &SmtpSettings, ehlo_name: String) -> Result<Self, DeliveryError> {
        let tls = match settings.security {
            SmtpSecurity::Plain => None,
            SmtpSecurity::Starttls | SmtpSecurity::Implicit => {
                Some(Tls::new(&settings.server, settings.ca_certificates.as_deref())?)
            }
        };
        let credentials = settings.username.clone().zip(settings.password.clone());
        let terms = Terms { security: settings.security, tls, credentials, ehlo_name };
        Ok(Self { host: settings.server.clone(), port: settings.port, terms, idle: Arc::default() })
    }

    /// Sends a mail over an idle connection or a new one.
    pub(super) async fn send(&self, mail: &Mail<'_>) -> Result<(), DeliveryError> {
        let (mut connection, is_new) = match self.idle.take() {
            Some(connection) => (connection, false),
            None => (self.connect().await?, true),
        };
        let mut begun = connection.smtp.begin(mail).await;
        if !is_new && begun.as_ref().is_err_and(Failed::is_closed) {
            // The server has closed this connection, and probably the other idle ones too. Nothing
            // has been sent.
            self.idle.clear();
            connection = self.connect().await?;
            begun = connection.smtp.begin(mail).await;
        }
        let sent = match begun {
            Ok(()) => connection.smtp.finish(mail).await,
            failed => failed,
        };
        match sent {
            Ok(()) => {
                connection.deliveries += 1;
                self.idle.give_back(connection);
                Ok(())
            }
            Err(failed) => {
                connection.smtp.leave();
                Err(failed.into())
            }
        }
    }

    /// Opens a connection that is ready for a mail. If this fails, nothing has been sent.
    async fn connect(&self) -> Result<Connection, DeliveryError> {
        let stream = dial(&self.host, self.port).await?;
        let smtp = Conversation::open(Wire::new(stream), &self.terms).await?;
        Ok(Connection { smtp, deliveries: 0, since: Instant::now() })
    }
}

/// Connects to the first address of the server that answers.
async fn dial(host: &str, port: u16) -> Result<TcpStream, DeliveryError> {
    let unreachable = |error| DeliveryError::Unreachable(cause(&error));
    let mut failure =
        DeliveryError::Unreachable("the name of the server has no address".to_owned());
    for address in lookup_host((host, port)).await.map_err(unreachable)? {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Commands are answered one by one, so nothing is gained by collecting them.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => failure = unreachable(error),
            Err(_) => failure = DeliveryError::Unreachable("connection timed out".to_owned()),
        }
    }
    Err(failure)
}

impl Idle {
    /// Returns the connection that was used last, if it has not expired and the server has sent
    /// nothing over it since.
    fn take(&self) -> Option<Connection> {
        let mut waiting = self.waiting();
        while let Some(mut connection) = waiting.connections.pop() {
            if connection.since.elapsed() < IDLE && connection.smtp.is_in_step() {
                return Some(connection);
            }
        }
        None
    }

    /// Gives a connection back after a delivery; it is closed if there are enough idle ones.
    fn give_back(self: &Arc<Self>, mut connection: Connection) {
        if !connection.smtp.is_in_step() {
            return;
        }
        let mut waiting = self.waiting();
        if waiting.connections.len() >= MOST_IDLE || connection.deliveries >= MOST_DELIVERIES {
            drop(waiting);
            connection.smtp.leave();
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
        let mut waiting = idle.waiting();
        for old in
            waiting.connections.extract_if(.., |connection| connection.since.elapsed() >= IDLE)
        {
            old.smtp.leave();
        }
        // The next connection that is given back starts this task again.
        waiting.is_cleaned = !waiting.connections.is_empty();
        if !waiting.is_cleaned {
            return;
        }
    }
}

impl fmt::Debug for MailServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MailServer(redacted)")
    }
}
