//! Finds out whether a server closes new connections because it has too many clients.
//!
//! Redis writes the reason into such a connection and closes it. The client library has sent the
//! login by then and mostly reports a broken pipe, so this opens a connection that sends nothing.
//! With TLS, Redis writes no reason.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::{Client, ConnectionAddr, ErrorKind, RedisError};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What Redis writes.
const REPLY: &str = "max number of clients reached";
/// The message of the error in place of a broken connection.
const MESSAGE: &str = "Redis has as many clients as its maxclients allows";
/// Timeout for the reason: Redis writes it at once. A server that is not full writes nothing.
const TIMEOUT: Duration = Duration::from_millis(100);
/// Interval between two such connections to a server.
const PAUSE: Duration = Duration::from_secs(2);

/// The last result for a server.
#[derive(Debug, Default)]
pub(super) struct Crowded(Mutex<Option<(Instant, bool)>>);

impl Crowded {
    /// Returns the error of a failed operation, or a clearer one if the server has too many
    /// clients.
    pub(super) async fn explain(&self, client: &Client, error: RedisError) -> RedisError {
        let answered = error.detail().is_some_and(|detail| detail.contains(REPLY));
        if answered || (error.is_io_error() && self.is_full(client).await) {
            return RedisError::from((ErrorKind::Io, MESSAGE));
        }
        error
    }

    async fn is_full(&self, client: &Client) -> bool {
        let ConnectionAddr::Tcp(host, port) = client.get_connection_info().addr() else {
            return false;
        };
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, full)) = last
            && at.elapsed() < PAUSE
        {
            return full;
        }
        let full = tokio::time::timeout(TIMEOUT, read(host, *port)).await;
        let full = matches!(full, Ok(Ok(text)) if text.contains(REPLY));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), full));
        full
    }
}

/// Whether an error is that of a server with too many clients.
pub(super) fn is_too_many_clients(error: &RedisError) -> bool {
    error.is_io_error() && error.to_string().contains(MESSAGE)
}

/// Reads what the server writes into a new connection.
async fn read(host: &str, port: u16) -> std::io::Result<String> {
    let mut text = [0; 128];
    let count = TcpStream::connect((host, port)).await?.read(&mut text).await?;
    Ok(String::from_utf8_lossy(&text[..count]).into_owned())
}
