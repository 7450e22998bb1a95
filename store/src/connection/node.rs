//! Connects to one Redis server, and replaces a connection that is unusable.
//!
//! The client library reconnects after input and output errors only. A rejected login, a node that
//! disappeared without a word and a master that became a replica would keep their connection for
//! ever, so any failure that could be the connection's makes a new one, at most every [`PAUSE`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::sync::Semaphore;

use super::crowded::Crowded;
use super::operation::{NodeConnection, Operation};
use crate::url::Address;

/// Timeout for opening a connection, with TLS and login. Operations have shorter timeouts of their
/// own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Minimum interval between two new connections: longer than opening one takes.
const PAUSE: Duration = Duration::from_secs(3);
/// Maximum number of connections that wait for replicas, each for one operation at a time.
const WAITING: usize = 16;
/// Idle timeout of these connections. Proxies and firewalls may close idle connections.
const QUIET: Duration = Duration::from_secs(20);
/// Timeout for replicas to acknowledge an operation.
const ACKNOWLEDGEMENT: Duration = Duration::from_millis(500);

/// The result of an operation that replicas must acknowledge.
pub(crate) enum Acknowledged {
    Enough(Value),
    /// The operation was performed, but too few replicas have acknowledged it.
    TooFew,
}

/// A server, and the connections to it.
pub(crate) struct Node {
    address: Address,
    client: Client,
    current: ArcSwap<ConnectionManager>,
    renewed: Mutex<Option<Instant>>,
    crowded: Crowded,
    /// Connections that wait for replicas, each with the time of its last use.
    own: Mutex<Vec<(MultiplexedConnection, Instant)>>,
    waiting: Semaphore,
}

impl Node {
    /// Prepares a connection; it is opened when it is needed. Must be called within a tokio
    /// runtime.
    pub(crate) fn new(address: Address, client: Client) -> RedisResult<Self> {
        let current = ArcSwap::from_pointee(manager(&client)?);
        let waiting = Semaphore::new(WAITING);
        Ok(Self {
            address,
            client,
            current,
            renewed: Mutex::default(),
            crowded: Crowded::default(),
            own: Mutex::default(),
            waiting,
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Performs an operation over the shared connection.
    pub(crate) async fn perform(
        &self,
        operation: Operation<'_>,
        asking: bool,
    ) -> RedisResult<Value> {
        let manager = ConnectionManager::clone(&self.current.load());
        match operation.perform(&mut NodeConnection::shared(manager, asking)).await {
            Err(error) => Err(self.crowded.explain(&self.client, error).await),
            answer => answer,
        }
    }

    /// Performs an operation and, if its reply begins with `word`, waits until this number of
    /// replicas has acknowledged it. Both use a connection that no other operation uses, because
    /// Redis counts the writes of the connection that waits and answers nothing else on it while
    /// waiting.
    pub(crate) async fn perform_acknowledged(
        &self,
        operation: Operation<'_>,
        asking: bool,
        word: &str,
        replicas: u8,
    ) -> RedisResult<Acknowledged> {
        let Ok(_permit) = self.waiting.acquire().await else {
            return Err(RedisError::from((
                ErrorKind::Client,
                "no connection to wait for replicas",
            )));
        };
        // An idle connection may have been closed. Its operation is not repeated, because it may
        // have been performed; so a connection that was idle for long is not used.
        let kept = {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.retain(|(_, used)| used.elapsed() < QUIET);
            own.pop().map(|(connection, _)| connection)
        };
        let connection =
            if let Some(connection) = kept { connection } else { self.own_connection().await? };
        let answer =
            operation.perform(&mut NodeConnection::own(connection.clone(), asking)).await?;
        let mut acknowledged = Acknowledged::Enough(answer.clone());
        if first_word(&answer) == Some(word.as_bytes()) {
            let mut wait = redis::cmd("WAIT");
            wait.arg(replicas).arg(u64::try_from(ACKNOWLEDGEMENT.as_millis()).unwrap_or(u64::MAX));
            let known: i64 = wait.query_async(&mut connection.clone()).await?;
            if known < i64::from(replicas) {
                acknowledged = Acknowledged::TooFew;
            }
        }
        // Only a finished operation returns its connection, because a cancelled one may still be
        // waiting.
        self.own.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
        Ok(acknowledged)
    }

    async fn own_connection(&self) -> RedisResult<MultiplexedConnection> {
        let configuration = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        match self.client.get_multiplexed_async_connection_with_config(&configuration).await {
            Err(error) => Err(self.crowded.explain(&self.client, error).await),
            connection => connection,
        }
    }

    /// Opens a new connection for later operations.
    pub(crate) fn renew(&self) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clear();
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

/// Returns the word that a script's reply begins with.
fn first_word(answer: &Value) -> Option<&[u8]> {
    let Value::Array(parts) = answer else { return None };
    match parts.first()? {
        Value::BulkString(word) => Some(word),
        Value::SimpleString(word) => Some(word.as_bytes()),
        _ => None,
    }
}

fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let configuration = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        // Every operation has its own timeout.
        .set_response_timeout(None)
        .set_number_of_retries(2)
        .set_min_delay(Duration::from_millis(20))
        .set_max_delay(Duration::from_millis(100));
    ConnectionManager::new_lazy_with_config(client.clone(), configuration)
}

/// Returns whether a new connection could have another result. If Redis rejected the command
/// itself, it could not.
pub(crate) fn may_be_the_connections(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => {
            matches!(
                kind,
                ServerErrorKind::ReadOnly
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::ClusterDown
            )
        }
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Extension => false,
        _ => true,
    }
}
