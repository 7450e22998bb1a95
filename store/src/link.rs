//! The connection to Redis, made again whenever it is of no use. Enters: operations with a bound on their time.
//! Leaves: their results.
//!
//! The client library connects again after input and output errors only. A refused login, a node that went without a
//! word, and a master that became a replica would keep their connection for ever, so any failure that could be the
//! connection's makes a new one, at most every [`PAUSE`].

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ErrorKind, RedisError, RedisResult, ServerErrorKind};

use crate::StoreError;
use crate::redis::RedisUrlError;

/// For a connection to be made, with TLS and login. Operations have shorter bounds of their own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two new connections: longer than making one takes.
const PAUSE: Duration = Duration::from_secs(3);

/// A connection that many operations share.
pub(crate) struct Link {
    client: Client,
    current: ArcSwap<ConnectionManager>,
    renewed: Mutex<Option<Instant>>,
}

impl Link {
    /// Prepares a connection; it is made when it is needed. Must be called within a tokio runtime.
    pub(crate) fn new(client: Client) -> Result<Self, RedisUrlError> {
        let manager = manager(&client).map_err(|_| RedisUrlError)?;
        Ok(Self { client, current: ArcSwap::from_pointee(manager), renewed: Mutex::default() })
    }

    /// Runs an operation, within `bound`.
    pub(crate) async fn run<T>(
        &self,
        bound: Duration,
        operation: impl AsyncFnOnce(ConnectionManager) -> RedisResult<T>,
    ) -> Result<T, StoreError> {
        let connection = ConnectionManager::clone(&self.current.load());
        let result = match tokio::time::timeout(bound, operation(connection)).await {
            Ok(result) => result,
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no answer in time"))),
        };
        result.map_err(|error| {
            if may_be_the_connections(&error) {
                self.renew();
            }
            StoreError::Unavailable(error)
        })
    }

    /// Makes a new connection for the operations that follow.
    pub(crate) fn renew(&self) {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        if let Ok(manager) = manager(&self.client) {
            self.current.store(manager.into());
            *renewed = Some(Instant::now());
        }
    }
}

fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let configuration = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        // Every operation has its own bound.
        .set_response_timeout(None)
        .set_number_of_retries(2)
        .set_min_delay(Duration::from_millis(20))
        .set_max_delay(Duration::from_millis(100));
    ConnectionManager::new_lazy_with_config(client.clone(), configuration)
}

impl StoreError {
    /// Whether Redis refused the login or a command, as it does when the user was removed or may do less than before.
    #[must_use]
    pub fn is_access_refused(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        error.kind() == ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "NOPERM" | "WRONGPASS"))
    }
}

/// Whether another connection could have a better result. What Redis answers about a command could not.
fn may_be_the_connections(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Extension => false,
        _ => true,
    }
}
