//! Stores records and decisions, in Redis or in the memory of one process.
//!
//! [`Decisions`] is what a sidecar uses, [`Publishing`] what a publisher uses; both work on a
//! [`Store`]. [`redis::RedisStore`] is the real one, [`memory::MemoryStore`] follows the same rules
//! within one process. [`publisher`] writes only the differences between what should be there and
//! what is.

pub mod acl;
pub mod clock;
mod connection;
mod decisions;
pub mod memory;
pub mod publisher;
mod publishing;
pub mod redis;
mod url;

use thiserror::Error;
use twofactor_core::decision::Undecided;
use twofactor_core::names::Pseudonym;
use twofactor_core::seal::Revision;

pub use crate::decisions::{Decisions, Observer};
use crate::memory::MemoryStore;
pub use crate::publishing::Publishing;
use crate::redis::RedisStore;

/// Why the store gave no answer.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There was nothing to decide on. Nothing was counted.
    #[error(transparent)]
    Undecided(#[from] Undecided),
    /// Redis cannot be reached, is too slow, or refused. A decision may have been made all the
    /// same.
    #[error("Redis does not answer")]
    Unavailable(#[source] ::redis::RedisError),
    /// Redis answered something that no script of ours answers.
    #[error("Redis gave an answer that this version does not understand")]
    Protocol,
    /// The store holds a realm under this id that was sealed with other keys.
    #[error("the realm in Redis is sealed with another master key")]
    Foreign,
    /// It was decided, but fewer replicas than asked for know of it: a failover could undo it. A
    /// code that was accepted stays used up.
    #[error("too few replicas of Redis have acknowledged the decision")]
    Unacknowledged,
    /// Another publisher wrote the same user at the same time.
    #[error("another publisher has changed this user")]
    Conflict,
}

impl From<::redis::RedisError> for StoreError {
    fn from(error: ::redis::RedisError) -> Self {
        Self::Unavailable(error)
    }
}

/// What the store holds of the realm itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RealmSnapshot {
    /// The sealed realm record.
    pub sealed: Option<Vec<u8>>,
    /// Whether every user of the realm has been published, on a node that was checked.
    pub complete: bool,
}

/// What the store holds of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The revision in the state; absent when the state is missing, though a record may be there.
    pub revision: Option<Revision>,
    /// The last request to reset the user's failures that was carried out.
    pub reset: Option<String>,
    /// The sealed record.
    pub sealed: Option<Vec<u8>>,
}

/// A sealed record that is to become current.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The user.
    pub pseudonym: Pseudonym,
    /// The revision that the publisher saw, absent when there was no state.
    pub expected: Option<Revision>,
    /// The revision that the record was sealed as.
    pub revision: Revision,
    /// The record.
    pub sealed: Vec<u8>,
    /// Whether the seed was made just now, so that no code of it can have been used.
    pub fresh: bool,
    /// Whether codes in flight are burned: the seed or the destination changed.
    pub revoke: bool,
    /// The request to reset the user's failures: carried out unless it was the last one that was.
    pub reset: Option<String>,
}

/// A Redis server that decides, as the publisher finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInspection {
    /// Who the node is: changes with every start and every promotion.
    pub identity: String,
    /// Whether nothing can have been lost that the node still knows something of: it holds no key
    /// at all.
    pub empty: bool,
}

/// The store as the publisher finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The nodes: one, or the masters of a cluster.
    pub nodes: Vec<NodeInspection>,
    /// Whether every node has been checked and everything is published: nothing needs to be
    /// refilled.
    pub ready: bool,
    /// What [`Publishing::begin_fill`] left on the nodes.
    pub fill_id: String,
}

impl Inspection {
    /// Who the nodes are, together.
    #[must_use]
    pub fn identity(&self) -> String {
        self.nodes.iter().map(|node| node.identity.as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// Where the data is. Both kinds follow the same rules: one conformance suite runs against both.
/// Operations are those of [`Decisions`] and [`Publishing`].
#[derive(Clone, Debug)]
pub enum Store {
    /// In the memory of this process, and lost with it.
    Memory(MemoryStore),
    /// In Redis, shared by the operator and all sidecars of the realm.
    Redis(RedisStore),
}

impl Store {
    const fn redis(&self) -> Option<&RedisStore> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(store) => Some(store),
        }
    }
}
