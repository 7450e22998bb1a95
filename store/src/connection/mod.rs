//! Sends operations to the node that has their keys, with a bound on their time.
//!
//! [`node`] is the connection to one server, [`sentinel`] finds the master that Sentinels name, and
//! [`cluster`] the master of a key.

mod cluster;
mod crowded;
mod node;
mod operation;
mod refreshed;
mod sentinel;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};

use self::cluster::Cluster;
pub(crate) use self::node::Node;
use self::node::{Acknowledged, may_be_the_connections};
pub(crate) use self::operation::Operation;
pub use self::operation::ScriptCommand;
use self::refreshed::Lookup;
use self::sentinel::Sentinels;
pub(crate) use self::sentinel::replicas_in;
use crate::StoreError;
use crate::url::{Address, Kind, Target};

/// Maximum number of redirections of an operation to the node that has the key.
const REDIRECTIONS: usize = 3;

/// Requires that replicas acknowledge an operation if its reply begins with this word.
#[derive(Clone, Copy)]
pub(crate) struct Acknowledgement {
    pub(crate) word: &'static str,
    pub(crate) replicas: u8,
}

/// The servers of one Redis.
pub(crate) struct Servers {
    /// The masters, which run scripts and writes.
    pub(crate) masters: Vec<Arc<Node>>,
    /// The known replicas, which can replace a master.
    pub(crate) replicas: Vec<Arc<Node>>,
}

/// A master, and the keys that it has.
#[derive(Clone)]
pub(crate) struct Master {
    pub(crate) node: Arc<Node>,
    /// In a cluster, a tag that, between braces, places a key on the master.
    pub(crate) tag: Option<String>,
    /// In a cluster, the master's slots.
    pub(crate) slots: String,
}

/// The connection to a Redis of any kind. Many operations share it.
pub(crate) struct Connection {
    topology: ArcSwap<Topology>,
}

enum Topology {
    Standalone(Arc<Node>),
    Sentinel(Arc<Sentinels>),
    Cluster(Arc<Cluster>),
}

impl Topology {
    fn new(target: &Target) -> RedisResult<Self> {
        Ok(match &target.kind {
            Kind::Standalone(client) => {
                // The address appears only in messages, and a socket has none.
                let address = Address { host: "redis".to_owned(), port: 0 };
                Self::Standalone(Arc::new(Node::new(address, client.clone())?))
            }
            Kind::Sentinel { sentinels, of_sentinels, master, of_data } => {
                let sentinels = Sentinels::new(
                    sentinels.clone(),
                    of_sentinels,
                    master.clone(),
                    of_data.clone(),
                )?;
                Self::Sentinel(Arc::new(sentinels))
            }
            Kind::Cluster { seeds, endpoint } => {
                Self::Cluster(Arc::new(Cluster::new(seeds, endpoint.clone())?))
            }
        })
    }
}

impl Connection {
    /// Prepares the connection; it is opened when it is needed. Must be called within a tokio
    /// runtime.
    pub(crate) fn new(target: &Target) -> RedisResult<Self> {
        Ok(Self { topology: ArcSwap::from_pointee(Topology::new(target)?) })
    }

    /// Replaces the connection. Operations under way end with the previous one.
    pub(crate) fn change(&self, target: &Target) -> RedisResult<()> {
        self.topology.store(Arc::new(Topology::new(target)?));
        Ok(())
    }

    /// Returns whether keys are spread over several masters.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(**self.topology.load(), Topology::Cluster(_))
    }

    /// Returns whether Sentinels monitor the master, so that a replica replaces it after a failure.
    pub(crate) fn has_sentinels(&self) -> bool {
        matches!(**self.topology.load(), Topology::Sentinel(_))
    }

    /// Performs an operation on the node that has `key`, within `bound`.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        key: &str,
        bound: Duration,
        operation: Operation<'_>,
    ) -> Result<T, StoreError> {
        // In a box, because the future is large and a part of every operation's future.
        read(Box::pin(self.send(key, bound, operation, None)).await?)
    }

    /// [`Connection::run`]. If the reply begins with the word of `acknowledgement`, waits until its
    /// number of replicas has acknowledged the operation.
    pub(crate) async fn run_acknowledged<T: FromRedisValue>(
        &self,
        key: &str,
        bound: Duration,
        operation: Operation<'_>,
        acknowledgement: Acknowledgement,
    ) -> Result<T, StoreError> {
        read(Box::pin(self.send(key, bound, operation, Some(acknowledgement))).await?)
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
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no reply in time"))),
        };
        read(result.map_err(|error| self.failed(Some(node), error))?)
    }

    /// Sends an operation to the node that has the key, and follows redirections.
    async fn send(
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
                        // A node that redirects has not performed the operation.
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
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no reply in time"))),
        };
        result.map_err(|error| self.failed(last.as_deref(), error))?
    }

    /// Returns the node that has a key.
    async fn node_of(&self, key: &str) -> RedisResult<Arc<Node>> {
        match &*self.topology.load_full() {
            Topology::Standalone(node) => Ok(node.clone()),
            Topology::Sentinel(sentinels) => sentinels.value().await,
            Topology::Cluster(cluster) => cluster.value().await?.owner(key).cloned(),
        }
    }

    /// Returns the node that an error redirects to, if it does.
    fn redirected(&self, node: &Node, error: &RedisError) -> RedisResult<Option<Arc<Node>>> {
        let topology = self.topology.load();
        let (Topology::Cluster(cluster), Some((address, _))) = (&**topology, error.redirect_node())
        else {
            return Ok(None);
        };
        if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) {
            cluster.schedule_refresh();
        }
        let address = Address::of_redirection(address, node.address());
        address.map(|address| cluster.node(&address)).transpose()
    }

    /// Reacts to a failure and converts its error.
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

    /// Looks up the nodes again, because another node may have replaced the one that answered.
    fn schedule_refresh(&self) {
        match &*self.topology.load_full() {
            Topology::Standalone(_) => {}
            Topology::Sentinel(sentinels) => sentinels.schedule_refresh(),
            Topology::Cluster(cluster) => cluster.schedule_refresh(),
        }
    }

    /// Replaces the connection to the node that has `key`, because this node may be a former master
    /// while new connections lead to the current one.
    pub(crate) async fn renew(&self, key: &str) {
        if let Ok(node) = self.node_of(key).await {
            node.renew();
        }
        self.schedule_refresh();
    }

    /// Returns every known server.
    pub(crate) async fn servers(&self, bound: Duration) -> Result<Servers, StoreError> {
        let one = |master| Servers { masters: vec![master], replicas: Vec::new() };
        let found = async {
            match &*self.topology.load_full() {
                Topology::Standalone(node) => Ok(one(node.clone())),
                Topology::Sentinel(sentinels) => {
                    let master = sentinels.value().await?;
                    let replicas = sentinels.replicas(&master).await?;
                    Ok(Servers { masters: vec![master], replicas })
                }
                Topology::Cluster(cluster) => {
                    let map = cluster.value().await?;
                    Ok(Servers { masters: map.masters.clone(), replicas: map.replicas.clone() })
                }
            }
        };
        self.bounded(bound, found).await
    }

    /// Groups the positions of `keys` by the node that has them.
    pub(crate) async fn grouped<'a>(
        &self,
        keys: impl Iterator<Item = &'a str>,
        bound: Duration,
    ) -> Result<Vec<(Arc<Node>, Vec<usize>)>, StoreError> {
        let topology = self.topology.load_full();
        let Topology::Cluster(cluster) = &*topology else {
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

    /// Returns the masters.
    pub(crate) async fn masters(&self, bound: Duration) -> Result<Vec<Master>, StoreError> {
        let topology = self.topology.load_full();
        let Topology::Cluster(cluster) = &*topology else {
            let node = self.bounded(bound, self.node_of("")).await?;
            return Ok(vec![Master { node, tag: None, slots: String::new() }]);
        };
        let map = self.bounded(bound, cluster.value()).await?;
        let master = |node: &Arc<Node>| {
            let (tag, slots) = (Some(map.tag_on(node)?), map.slots_of(node));
            Ok(Master { node: node.clone(), tag, slots })
        };
        Ok(map.masters.iter().map(master).collect::<RedisResult<Vec<_>>>()?)
    }

    /// Returns the masters of a cluster, each with a tag that, between braces, places a key on it.
    /// Returns nothing if Redis is not a cluster.
    pub(crate) async fn tags(
        &self,
        bound: Duration,
    ) -> Result<Vec<(Arc<Node>, String)>, StoreError> {
        let masters = self.masters(bound).await?.into_iter();
        Ok(masters.filter_map(|master| Some((master.node, master.tag?))).collect())
    }

    /// Returns the node that has `key`.
    pub(crate) async fn owner(&self, key: &str, bound: Duration) -> Result<Arc<Node>, StoreError> {
        self.bounded(bound, self.node_of(key)).await
    }

    /// Returns the node of a cluster that has a key, with a tag that, between braces, places
    /// another key on it.
    pub(crate) async fn tag_beside(
        &self,
        key: &str,
        bound: Duration,
    ) -> Result<Option<(Arc<Node>, String)>, StoreError> {
        let topology = self.topology.load_full();
        let Topology::Cluster(cluster) = &*topology else { return Ok(None) };
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
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no reply in time"))),
        }
        .map_err(|error| self.failed(None, error))
    }
}

/// Why Redis does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFailure {
    /// It is unreachable, too slow, or rejects the commands.
    NoAnswer,
    /// It rejects the login, or the login may not use the commands.
    AccessRefused,
    /// It has as many clients as its `maxclients` allows.
    TooManyClients,
    /// It does not know the scripts of sidecars, which the publisher loads.
    ScriptsMissing,
}

impl StoreFailure {
    /// The value of a metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoAnswer => "no-answer",
            Self::AccessRefused => "access-refused",
            Self::TooManyClients => "too-many-clients",
            Self::ScriptsMissing => "scripts-missing",
        }
    }
}

impl StoreError {
    /// Returns whether Redis rejected the login or a command, because the user was removed or has
    /// lost a permission.
    #[must_use]
    pub fn is_access_refused(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        error.kind() == ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "NOPERM" | "WRONGPASS"))
    }

    /// Returns whether the login lacks the permission for a command or a key.
    pub(crate) fn is_permission_missing(&self) -> bool {
        matches!(self, Self::Unavailable(error) if error.code() == Some("NOPERM"))
    }

    /// Returns why Redis does not serve.
    #[must_use]
    pub fn failure(&self) -> StoreFailure {
        match self {
            Self::Unavailable(error) if crowded::is_too_many_clients(error) => {
                StoreFailure::TooManyClients
            }
            Self::Unavailable(error)
                if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) =>
            {
                StoreFailure::ScriptsMissing
            }
            error if error.is_access_refused() => StoreFailure::AccessRefused,
            _ => StoreFailure::NoAnswer,
        }
    }
}

fn read<T: FromRedisValue>(answer: Value) -> Result<T, StoreError> {
    T::from_redis_value(answer).map_err(|_| StoreError::Protocol)
}
