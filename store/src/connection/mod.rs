//! The way to Redis, whatever kind it is of. Enters: operations, the keys that they are about, and
//! bounds on their time. Leaves: their results, from the node that has the keys.
//!
//! [`node`] is the connection to one server, [`sentinel`] finds the master among several,
//! [`cluster`] the master of a key.

mod cluster;
mod node;
mod operation;
mod refreshed;
mod sentinel;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};

use self::cluster::Cluster;
pub(crate) use self::node::Node;
use self::node::{Acknowledged, may_be_the_connections};
pub(crate) use self::operation::Operation;
use self::refreshed::Lookup;
use self::sentinel::Sentinels;
use crate::StoreError;
use crate::url::{Address, Kind, Target};

/// How often an operation is sent on to the node that has the key.
const REDIRECTIONS: usize = 3;

/// Replicas that have to know of an operation whose answer is this word.
#[derive(Clone, Copy)]
pub(crate) struct Acknowledgement {
    pub(crate) word: &'static str,
    pub(crate) replicas: u8,
}

/// The servers of a Redis.
pub(crate) struct Servers {
    /// Those that decide, and are written to.
    pub(crate) masters: Vec<Arc<Node>>,
    /// Those that may take a master's place, as far as they are known.
    pub(crate) replicas: Vec<Arc<Node>>,
}

/// The way to Redis; many operations share it.
pub(crate) struct Connection {
    topology: Topology,
}

enum Topology {
    Standalone(Arc<Node>),
    Sentinel(Arc<Sentinels>),
    Cluster(Arc<Cluster>),
}

impl Connection {
    /// Prepares the way; connections are made when they are needed. Must be called within a tokio
    /// runtime.
    pub(crate) fn new(target: &Target) -> RedisResult<Self> {
        let topology = match &target.kind {
            Kind::Standalone(client) => {
                // Only in messages, where a socket has none.
                let nowhere = Address { host: "redis".to_owned(), port: 0 };
                Topology::Standalone(Arc::new(Node::new(nowhere, client.clone())?))
            }
            Kind::Sentinel { sentinels, of_sentinels, master, of_data } => {
                let sentinels = Sentinels::new(
                    sentinels.clone(),
                    of_sentinels,
                    master.clone(),
                    of_data.clone(),
                )?;
                Topology::Sentinel(Arc::new(sentinels))
            }
            Kind::Cluster { seeds, endpoint } => {
                Topology::Cluster(Arc::new(Cluster::new(seeds, endpoint.clone())?))
            }
        };
        Ok(Self { topology })
    }

    /// Whether keys are spread over several masters.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Cluster(_))
    }

    /// Whether Sentinels look after it, so that there is somebody to take over.
    pub(crate) fn is_watched_over(&self) -> bool {
        matches!(self.topology, Topology::Sentinel(_))
    }

    /// Performs an operation on the node that has `key`, within `bound`.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        key: &str,
        bound: Duration,
        operation: Operation<'_>,
    ) -> Result<T, StoreError> {
        // In a box: it is large, and part of everything that asks.
        read(Box::pin(self.follow(key, bound, operation, None)).await?)
    }

    /// [`Connection::run`], and when the answer is the word of `acknowledgement`, until so many replicas
    /// know of it.
    pub(crate) async fn run_acknowledged<T: FromRedisValue>(
        &self,
        key: &str,
        bound: Duration,
        operation: Operation<'_>,
        acknowledgement: Acknowledgement,
    ) -> Result<T, StoreError> {
        read(Box::pin(self.follow(key, bound, operation, Some(acknowledgement))).await?)
    }

    /// Performs an operation on a node, within `bound`.
    pub(crate) async fn run_on<T: FromRedisValue>(
        &self,
        node: &Node,
        bound: Duration,
        operation: Operation<'_>,
    ) -> Result<T, StoreError> {
        let work = Box::pin(node.perform(operation, false));
        let result = match tokio::time::timeout(bound, work).await {
            Ok(result) => result,
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no answer in time"))),
        };
        read(result.map_err(|error| self.failed(Some(node), error))?)
    }

    /// Goes where the key is, also when it is not where it was.
    async fn follow(
        &self,
        key: &str,
        bound: Duration,
        operation: Operation<'_>,
        acknowledgement: Option<Acknowledgement>,
    ) -> Result<Value, StoreError> {
        let mut last = None;
        let attempts = async {
            let (mut node, mut asking) = (self.node_of(key).await?, false);
            let mut redirections = 0;
            loop {
                last = Some(node.clone());
                let result = match acknowledgement {
                    None => node.perform(operation, asking).await.map(Acknowledged::Enough),
                    Some(Acknowledgement { word, replicas }) => {
                        node.perform_acknowledged(operation, asking, word, replicas).await
                    }
                };
                match result {
                    Ok(Acknowledged::Enough(answer)) => return Ok(Ok(answer)),
                    Ok(Acknowledged::TooFew) => return Ok(Err(StoreError::Unacknowledged)),
                    Err(error) if redirections < REDIRECTIONS => {
                        // A node that sends somebody on has done nothing itself.
                        let Some(next) = self.redirected(&node, &error)? else { return Err(error) };
                        (node, asking) =
                            (next, error.kind() == ErrorKind::Server(ServerErrorKind::Ask));
                        redirections += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let result = match tokio::time::timeout(bound, attempts).await {
            Ok(result) => result,
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no answer in time"))),
        };
        result.map_err(|error| self.failed(last.as_deref(), error))?
    }

    /// The node that has a key.
    async fn node_of(&self, key: &str) -> RedisResult<Arc<Node>> {
        match &self.topology {
            Topology::Standalone(node) => Ok(node.clone()),
            Topology::Sentinel(sentinels) => sentinels.value().await,
            Topology::Cluster(cluster) => cluster.value().await?.owner(key).cloned(),
        }
    }

    /// Where a node of a cluster sends whoever asked it.
    fn redirected(&self, node: &Node, error: &RedisError) -> RedisResult<Option<Arc<Node>>> {
        let (Topology::Cluster(cluster), Some((address, _))) =
            (&self.topology, error.redirect_node())
        else {
            return Ok(None);
        };
        if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) {
            cluster.schedule_refresh();
        }
        let address = Address::of_redirection(address, node.address());
        address.map(|address| cluster.node(&address)).transpose()
    }

    /// What is to be done after a failure, and how it is told.
    fn failed(&self, node: Option<&Node>, error: RedisError) -> StoreError {
        let moved = error.redirect_node().is_some();
        if may_be_the_connections(&error) && !moved {
            if let Some(node) = node {
                node.renew();
            }
            self.schedule_refresh();
        } else if moved {
            self.schedule_refresh();
        }
        StoreError::Unavailable(error)
    }

    /// Another node may have taken the place of the one that answered.
    fn schedule_refresh(&self) {
        match &self.topology {
            Topology::Standalone(_) => {}
            Topology::Sentinel(sentinels) => sentinels.schedule_refresh(),
            Topology::Cluster(cluster) => cluster.schedule_refresh(),
        }
    }

    /// The node that answered about `key` may be a former master, while new connections lead to the
    /// present one.
    pub(crate) async fn renew(&self, key: &str) {
        if let Ok(node) = self.node_of(key).await {
            node.renew();
        }
        self.schedule_refresh();
    }

    /// Every server that is known.
    pub(crate) async fn servers(&self, bound: Duration) -> Result<Servers, StoreError> {
        let one = |master| Servers { masters: vec![master], replicas: Vec::new() };
        let found = async {
            match &self.topology {
                Topology::Standalone(node) => Ok(one(node.clone())),
                Topology::Sentinel(sentinels) => sentinels.value().await.map(one),
                Topology::Cluster(cluster) => {
                    let map = cluster.value().await?;
                    Ok(Servers { masters: map.masters.clone(), replicas: map.replicas.clone() })
                }
            }
        };
        self.bounded(bound, found).await
    }

    /// Positions of `keys`, by the node that has them.
    pub(crate) async fn grouped<'a>(
        &self,
        keys: impl Iterator<Item = &'a str>,
        bound: Duration,
    ) -> Result<Vec<(Arc<Node>, Vec<usize>)>, StoreError> {
        let Topology::Cluster(cluster) = &self.topology else {
            let node = self.bounded(bound, self.node_of("")).await?;
            return Ok(vec![(node, keys.enumerate().map(|(position, _)| position).collect())]);
        };
        let map = self.bounded(bound, cluster.value()).await?;
        let mut groups: Vec<(Arc<Node>, Vec<usize>)> = Vec::new();
        for (position, key) in keys.enumerate() {
            let owner = map.owner(key)?;
            match groups.iter_mut().find(|(node, _)| Arc::ptr_eq(node, owner)) {
                Some((_, positions)) => positions.push(position),
                None => groups.push((owner.clone(), vec![position])),
            }
        }
        Ok(groups)
    }

    /// In a cluster, the masters, each with a word that puts a key between braces onto it; nobody
    /// elsewhere.
    pub(crate) async fn tags(
        &self,
        bound: Duration,
    ) -> Result<Vec<(Arc<Node>, String)>, StoreError> {
        let Topology::Cluster(cluster) = &self.topology else { return Ok(Vec::new()) };
        let map = self.bounded(bound, cluster.value()).await?;
        let tagged = map.masters.iter().map(|node| Ok((node.clone(), map.tag_on(node)?)));
        Ok(tagged.collect::<RedisResult<Vec<_>>>()?)
    }

    /// In a cluster, the node that has a key, with a word that puts another key between braces onto
    /// it.
    pub(crate) async fn tag_beside(
        &self,
        key: &str,
        bound: Duration,
    ) -> Result<Option<(Arc<Node>, String)>, StoreError> {
        let Topology::Cluster(cluster) = &self.topology else { return Ok(None) };
        let map = self.bounded(bound, cluster.value()).await?;
        let owner = map.owner(key)?;
        Ok(Some((owner.clone(), map.tag_on(owner)?)))
    }

    async fn bounded<T>(
        &self,
        bound: Duration,
        work: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(bound, work).await {
            Ok(result) => result,
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no answer in time"))),
        }
        .map_err(|error| self.failed(None, error))
    }
}

impl StoreError {
    /// Whether Redis refused the login or a command, as it does when the user was removed or may do
    /// less than before.
    #[must_use]
    pub fn is_access_refused(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        error.kind() == ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "NOPERM" | "WRONGPASS"))
    }
}

fn read<T: FromRedisValue>(answer: Value) -> Result<T, StoreError> {
    T::from_redis_value(answer).map_err(|_| StoreError::Protocol)
}
