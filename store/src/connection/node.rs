//! The connection to one Redis server, made again whenever it is of no use. Enters: operations.
//! Leaves: their results.
//!
//! The client library connects again after input and output errors only. A refused login, a node
//! that went without a word, and a master that became a replica would keep their connection for
//! ever, so any failure that could be the connection's makes a new one, at most every [`PAUSE`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::sync::Semaphore;

use super::operation::{NodeConnection, Operation};
use crate::url::Address;

/// For a connection to be made, with TLS and login. Operations have shorter bounds of their own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two new connections: longer than making one takes.
const PAUSE: Duration = Duration::from_secs(3);
/// Connections on which somebody waits for replicas, each for one operation at a time.
const WAITING: usize = 16;
/// For a connection of these to be kept without being used: what lies between may close those that
/// say nothing.
const QUIET: Duration = Duration::from_secs(20);
/// How long to wait for replicas.
const ACKNOWLEDGEMENT: Duration = Duration::from_millis(500);

/// What became of an operation that replicas have to know of.
pub(crate) enum Acknowledged {
    Enough(Value),
    /// It has happened, but too few replicas have said that they know.
    TooFew,
}

/// A server, and the connections to it.
pub(crate) struct Node {
    address: Address,
    client: Client,
    current: ArcSwap<ConnectionManager>,
    renewed: Mutex<Option<Instant>>,
    /// With the moment at which each was used last.
    own: Mutex<Vec<(MultiplexedConnection, Instant)>>,
    waiting: Semaphore,
}

impl Node {
    /// Prepares a connection; it is made when it is needed. Must be called within a tokio runtime.
    pub(crate) fn new(address: Address, client: Client) -> RedisResult<Self> {
        let current = ArcSwap::from_pointee(manager(&client)?);
        let waiting = Semaphore::new(WAITING);
        Ok(Self {
            address,
            client,
            current,
            renewed: Mutex::default(),
            own: Mutex::default(),
            waiting,
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Performs an operation over the connection that everybody shares.
    pub(crate) async fn perform(
        &self,
        operation: Operation<'_>,
        asking: bool,
    ) -> RedisResult<Value> {
        let manager = ConnectionManager::clone(&self.current.load());
        operation.perform(&mut NodeConnection::shared(manager, asking)).await
    }

    /// Performs an operation, and when its answer is `word`, waits until so many replicas know of
    /// it. Redis counts the writes of the connection that waits, and answers nothing else on it
    /// meanwhile: so both go over one that nobody else uses.
    pub(crate) async fn perform_acknowledged(
        &self,
        operation: Operation<'_>,
        asking: bool,
        word: &str,
        replicas: u8,
    ) -> RedisResult<Acknowledged> {
        let Ok(_permit) = self.waiting.acquire().await else {
            return Err(RedisError::from((ErrorKind::Client, "no connection to wait on")));
        };
        // One that was kept may be closed by now. What it was asked for may have happened all the
        // same, so nobody asks again; and one that has been quiet for a while is not tried.
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
        // Only here: one that an operation was broken off on may still be waiting.
        self.own.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
        Ok(acknowledged)
    }

    async fn own_connection(&self) -> RedisResult<MultiplexedConnection> {
        let configuration = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        self.client.get_multiplexed_async_connection_with_config(&configuration).await
    }

    /// Makes a new connection for the operations that follow.
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

/// The word that a script's answer begins with.
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
        // Every operation has its own bound.
        .set_response_timeout(None)
        .set_number_of_retries(2)
        .set_min_delay(Duration::from_millis(20))
        .set_max_delay(Duration::from_millis(100));
    ConnectionManager::new_lazy_with_config(client.clone(), configuration)
}

/// Whether another connection could have a better result. What Redis answers about a command could
/// not.
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
