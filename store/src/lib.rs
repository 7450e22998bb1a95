//! Where records and decisions are kept.
//!
//! Enters: pseudonyms, sealed records, and the requests of `twofactor_core::decision`. Leaves:
//! records, and decisions that were made and remembered in one step. [`redis::RedisStore`] is the
//! real one; [`memory::MemoryStore`] keeps to the same rules within one process. [`publisher`]
//! fills either of them.

pub mod acl;
pub mod clock;
mod connection;
pub mod memory;
pub mod publisher;
pub mod redis;
mod url;

use thiserror::Error;
use twofactor_core::audit::Entry;
use twofactor_core::decision::{DeliveryReport, Issuance, Issue, Undecided, Verdict, Verification};
use twofactor_core::limits::Allowance;
use twofactor_core::names::Pseudonym;
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;

use crate::memory::MemoryStore;
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
    /// What [`Store::begin_fill`] left on the nodes.
    pub fill_id: String,
}

impl Inspection {
    /// Who the nodes are, together.
    #[must_use]
    pub fn identity(&self) -> String {
        self.nodes.iter().map(|node| node.identity.as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// A store. Two kinds, one meaning: the conformance suite runs against both.
#[derive(Clone, Debug)]
pub enum Store {
    /// Within this process, and gone with it.
    Memory(MemoryStore),
    /// In Redis, shared by everybody who uses the realm.
    Redis(RedisStore),
}

macro_rules! delegate {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Memory($store) => Ok($call),
            Self::Redis($store) => $call.await,
        }
    };
}

impl Store {
    /// The store's clock, as far as it is known here.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        match self {
            Self::Memory(store) => store.now(),
            Self::Redis(store) => store.now(),
        }
    }

    /// The sealed record of a user.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn record(&self, user: &Pseudonym) -> Result<Option<Vec<u8>>, StoreError> {
        delegate!(self, store => store.record(user))
    }

    /// Whether it is certain that there is no such user: the realm is completely published on a
    /// checked node, and this user has neither record nor state there.
    ///
    /// # Errors
    /// When Redis does not answer, or holds less than a completely published realm.
    pub async fn confirm_absence(&self, user: &Pseudonym) -> Result<bool, StoreError> {
        match self {
            Self::Memory(store) => store.confirm_absence(user),
            Self::Redis(store) => store.confirm_absence(user).await,
        }
    }

    /// The realm's record, and whether the realm is completely published.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn realm(&self) -> Result<RealmSnapshot, StoreError> {
        delegate!(self, store => store.realm())
    }

    /// Decides about a submitted code. One round trip.
    ///
    /// # Errors
    /// When there is nothing to decide on, or Redis does not answer.
    pub async fn verify(
        &self,
        user: &Pseudonym,
        request: &Verification,
    ) -> Result<Verdict, StoreError> {
        match self {
            Self::Memory(store) => store.verify(user, request),
            Self::Redis(store) => store.verify(user, request).await,
        }
    }

    /// Puts a code into the OTP log. One round trip.
    ///
    /// # Errors
    /// When there is nothing to decide on, or Redis does not answer.
    pub async fn issue(&self, user: &Pseudonym, request: &Issuance) -> Result<Issue, StoreError> {
        match self {
            Self::Memory(store) => store.issue(user, request),
            Self::Redis(store) => store.issue(user, request).await,
        }
    }

    /// Takes note of what happened after a decision, or in place of one.
    ///
    /// # Errors
    /// When there is no such user any more, or Redis does not answer.
    pub async fn record_delivery(
        &self,
        user: &Pseudonym,
        report: &DeliveryReport,
    ) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.record_delivery(user, report),
            Self::Redis(store) => store.record_delivery(user, report).await,
        }
    }

    /// Counts one more delivery of the realm, unless there were `most` within the hour.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn count_delivery(&self, most: u32) -> Result<Allowance, StoreError> {
        delegate!(self, store => store.count_delivery(most))
    }

    /// For the publisher: what happened to a user, the oldest first.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn history(&self, user: &Pseudonym) -> Result<Vec<Entry>, StoreError> {
        delegate!(self, store => store.history(user))
    }

    /// For the publisher: whether failures have disabled these users, in their order.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn disabled(&self, users: &[Pseudonym]) -> Result<Vec<bool>, StoreError> {
        delegate!(self, store => store.disabled(users))
    }

    /// From now on, an accepted code is told only when so many replicas know of it.
    pub fn require_replicas(&self, replicas: u8) {
        if let Self::Redis(store) = self {
            store.require_replicas(replicas);
        }
    }

    /// For the publisher: the state that the store is in.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn inspect(&self) -> Result<Inspection, StoreError> {
        delegate!(self, store => store.inspect())
    }

    /// For the publisher: leaves a mark on the node that goes with everything else when the node is
    /// emptied.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn begin_fill(&self, fill_id: &str) -> Result<(), StoreError> {
        delegate!(self, store => store.begin_fill(fill_id))
    }

    /// For the publisher: what is there of these users, in their order.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn published(&self, users: &[Pseudonym]) -> Result<Vec<Published>, StoreError> {
        delegate!(self, store => store.published(users))
    }

    /// For the publisher: makes records current; one result for each, in their order.
    ///
    /// # Errors
    /// When Redis does not answer. A single user that somebody else changed is an error of that
    /// user alone.
    pub async fn publish(
        &self,
        batch: &[Publication],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        delegate!(self, store => store.publish(batch))
    }

    /// For the publisher: makes the realm's record current.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn publish_realm(&self, sealed: &[u8]) -> Result<(), StoreError> {
        delegate!(self, store => store.publish_realm(sealed))
    }

    /// For the publisher: everybody of whom there is any key.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn users(&self) -> Result<Vec<Pseudonym>, StoreError> {
        delegate!(self, store => store.users())
    }

    /// For the publisher: leaves nothing of these users.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn remove(&self, users: &[Pseudonym]) -> Result<(), StoreError> {
        delegate!(self, store => store.remove(users))
    }

    /// For the publisher: the realm is completely published, on the node of `inspection`.
    ///
    /// # Errors
    /// When Redis does not answer, is another node by now, or was emptied since.
    pub async fn complete_fill(&self, inspection: &Inspection) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.complete_fill(inspection),
            Self::Redis(store) => store.complete_fill(inspection).await,
        }
    }
}
