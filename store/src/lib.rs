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

pub use crate::connection::StoreFailure;
pub use crate::decisions::{Decisions, Observer};
use crate::memory::MemoryStore;
pub use crate::publishing::Publishing;
use crate::redis::RedisStore;

/// Reason why an operation of the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The preconditions of a decision did not hold. Nothing was counted.
    #[error(transparent)]
    Undecided(#[from] Undecided),
    /// Redis is unreachable, too slow, or rejected the command. A decision may have been made
    /// nevertheless.
    #[error("Redis is unavailable or rejected the command")]
    Unavailable(#[source] ::redis::RedisError),
    /// Redis sent a reply that no script of this version sends.
    #[error("Redis sent a reply that this version does not understand")]
    Protocol,
    /// The store holds a realm under this id that was sealed with other keys.
    #[error("the realm in Redis is sealed with another master key")]
    Foreign,
    /// A decision was made, but fewer replicas than required have acknowledged it, so a failover
    /// could undo it. An accepted code stays used.
    #[error("too few replicas of Redis have acknowledged the decision")]
    Unacknowledged,
    /// Another publisher changed the same user at the same time.
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
    /// Whether every user of the realm was published, on a checked node (see the glossary).
    pub complete: bool,
}

/// The realm's sealed record, compared with the one that a sidecar has read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RealmRead {
    /// It is the same.
    Unchanged,
    /// It is another one, or the first.
    Changed(Vec<u8>),
    /// There is none.
    Absent,
}

/// What the store holds of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The revision in the state. Absent if the state is missing, even if there is a record.
    pub revision: Option<Revision>,
    /// The last request to reset the user's failures that the publisher has carried out.
    pub reset: Option<String>,
    /// The sealed record.
    pub sealed: Option<Vec<u8>>,
}

/// What a check of a user's keys has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// What sidecars write is of the right form, or there is nothing of the user.
    Fine,
    /// Something was not, and was deleted. The user has to be published again.
    Repaired,
    /// Record and state do not belong together, or one of them is missing. The user has to be
    /// published again.
    Incomplete,
}

/// The result of a check of a user's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserCheck {
    /// What was found.
    pub found: Found,
    /// Whether failures have disabled the user.
    pub disabled: bool,
}

/// A sealed record to be published.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The user.
    pub pseudonym: Pseudonym,
    /// The revision that the publisher has read, absent if there was no state.
    pub expected: Option<Revision>,
    /// The revision that the record was sealed with.
    pub revision: Revision,
    /// The record.
    pub sealed: Vec<u8>,
    /// Whether the seed is new, so that no code of it can have been used.
    pub fresh: bool,
    /// Whether codes in flight are marked used, because the seed or the destination has changed.
    pub revoke: bool,
    /// Whether failures had disabled the user, for the case that the store has lost its state.
    pub disabled: bool,
    /// The request to reset the user's failures. It is carried out unless it is the same as the
    /// last one.
    pub reset: Option<String>,
}

/// A Redis server that makes decisions, as the publisher has read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInspection {
    /// The identity of the node, which changes with every start and every promotion. It also
    /// changes when the first replica is attached.
    pub identity: String,
    /// True if the node holds no keys, so it has lost everything or nothing.
    pub empty: bool,
}

/// The nodes of the store, as the publisher has read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The nodes: one, or the masters of a cluster.
    pub nodes: Vec<NodeInspection>,
    /// Whether every node is checked and the realm is complete, so that nothing must be published
    /// again.
    pub ready: bool,
    /// Whether the realm is complete, but for whether its nodes are checked.
    pub complete: bool,
    /// Whether the realm became ready in this check, because its nodes were replaced and have
    /// proved that they have kept every write of this process.
    pub kept: bool,
    /// The id of the fill that [`Publishing::begin_fill`] has written to the nodes.
    pub fill_id: String,
}

impl Inspection {
    /// The identity of all nodes together.
    #[must_use]
    pub fn identity(&self) -> String {
        self.nodes.iter().map(|node| node.identity.as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// A store in memory or in Redis. Both follow the same rules: one conformance suite runs against
/// both.
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
