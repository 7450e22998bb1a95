//! Finds the node of a cluster that has a key, also after a failover or when slots move.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{ErrorKind, RedisError, RedisResult};
use tokio::task::JoinSet;

use super::node::Node;
use super::operation::Operation;
use super::refreshed::{ANSWER_TIMEOUT, Lookup, Refreshed};
use super::slots::{Range, ranges, slot_of};
use crate::url::{Address, Endpoint};

/// Maximum number of tags that are tried to find one in a slot of a node. With slots spread over a
/// thousand nodes, a thousand tags are usually enough.
const NAMES: u32 = 100_000;

/// Which nodes have which slots.
pub(crate) struct Map {
    /// First and last slot of each range, ascending, and the master that has them.
    ranges: Vec<(u16, u16, Arc<Node>)>,
    /// The masters that have slots, each once.
    pub(crate) masters: Vec<Arc<Node>>,
    /// Their replicas.
    pub(crate) replicas: Vec<Arc<Node>>,
}

impl Map {
    /// Returns the master that has the slot of a key.
    pub(crate) fn owner(&self, key: &str) -> RedisResult<&Arc<Node>> {
        let slot = slot_of(key);
        let after = self.ranges.partition_point(|(first, _, _)| *first <= slot);
        let range = after.checked_sub(1).and_then(|index| self.ranges.get(index));
        match range {
            Some((_, last, node)) if slot <= *last => Ok(node),
            _ => Err(RedisError::from((ErrorKind::Io, "no node of the cluster has this slot"))),
        }
    }

    /// Returns the slots of `node` as text.
    pub(crate) fn slots_of(&self, node: &Arc<Node>) -> String {
        let own = self.ranges.iter().filter(|(_, _, owner)| Arc::ptr_eq(owner, node));
        own.map(|(first, last, _)| format!("{first}-{last}")).collect::<Vec<_>>().join(" ")
    }

    /// Returns a tag of five digits that, between braces, places a key on `node`.
    pub(crate) fn tag_on(&self, node: &Arc<Node>) -> RedisResult<String> {
        let tags = (0..NAMES).map(|number| format!("{number:05}"));
        let mut on_node =
            tags.filter(|tag| self.owner(tag).is_ok_and(|owner| Arc::ptr_eq(owner, node)));
        on_node
            .next()
            .ok_or_else(|| RedisError::from((ErrorKind::Io, "a node of the cluster has no slot")))
    }
}

/// A cluster.
pub(crate) struct Cluster {
    endpoint: Endpoint,
    seeds: Vec<Arc<Node>>,
    /// All nodes of the map and of redirections.
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    map: Refreshed<Map>,
}

impl Cluster {
    pub(crate) fn new(seeds: &[Address], endpoint: Endpoint) -> RedisResult<Self> {
        let cluster = Self {
            endpoint,
            seeds: Vec::new(),
            nodes: Mutex::default(),
            map: Refreshed::default(),
        };
        let seeds = seeds.iter().map(|seed| cluster.node(seed)).collect::<RedisResult<Vec<_>>>()?;
        Ok(Self { seeds, ..cluster })
    }

    /// Returns the node at an address, always the same one.
    pub(crate) fn node(&self, address: &Address) -> RedisResult<Arc<Node>> {
        let mut nodes = self.nodes();
        if let Some(node) = nodes.get(address) {
            return Ok(node.clone());
        }
        let node = Arc::new(Node::new(address.clone(), self.endpoint.client(address)?)?);
        nodes.insert(address.clone(), node.clone());
        Ok(node)
    }

    fn map_of(&self, slots: Vec<Range>) -> RedisResult<Map> {
        let (mut masters, mut replicas) = (Vec::new(), Vec::new());
        let mut ranges = Vec::with_capacity(slots.len());
        for range in slots {
            let master = self.node(&range.master)?;
            ranges.push((range.first, range.last, master.clone()));
            add(&mut masters, master);
            for replica in &range.replicas {
                add(&mut replicas, self.node(replica)?);
            }
        }
        // Nodes that left the cluster are dropped, with their connections.
        let present = |node: &Arc<Node>| {
            masters.iter().chain(&replicas).chain(&self.seeds).any(|known| Arc::ptr_eq(known, node))
        };
        self.nodes().retain(|_, node| present(node));
        Ok(Map { ranges, masters, replicas })
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Address, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookup for Cluster {
    type Value = Map;

    const FAILURE: &'static str = "failed to read from any node which nodes have which slots";

    fn refreshed(&self) -> &Refreshed<Map> {
        &self.map
    }

    /// Asks all known nodes at once and takes the first answer.
    async fn look_up(&self) -> RedisResult<Arc<Map>> {
        let known = self.map.current();
        let mut asked: Vec<Arc<Node>> =
            known.iter().flat_map(|map| map.masters.iter().cloned()).collect();
        for seed in &self.seeds {
            if !asked.iter().any(|node| Arc::ptr_eq(node, seed)) {
                asked.push(seed.clone());
            }
        }
        let mut questions = JoinSet::new();
        for node in asked {
            questions.spawn(async move { ask(&node).await });
        }
        let mut failure = None;
        while let Some(answer) = questions.join_next().await {
            match answer {
                Ok(Ok(ranges)) => return self.map_of(ranges).map(Arc::new),
                Ok(Err(error)) => failure = Some(error),
                Err(_) => {}
            }
        }
        Err(failure
            .unwrap_or_else(|| RedisError::from((ErrorKind::Io, "no node of the cluster answers"))))
    }
}

fn add(nodes: &mut Vec<Arc<Node>>, node: Arc<Node>) {
    if !nodes.iter().any(|known| Arc::ptr_eq(known, &node)) {
        nodes.push(node);
    }
}

async fn ask(node: &Node) -> RedisResult<Vec<Range>> {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    let answer =
        tokio::time::timeout(ANSWER_TIMEOUT, node.perform(Operation::Command(&command), false))
            .await;
    let answer = answer.unwrap_or_else(|_| {
        Err(RedisError::from((ErrorKind::Io, "no node of the cluster answered in time")))
    });
    let answer = answer.inspect_err(|_| node.renew())?;
    ranges(answer, node.address()).ok_or_else(|| {
        RedisError::from((ErrorKind::UnexpectedReturnType, "no slot of the cluster is assigned"))
    })
}
