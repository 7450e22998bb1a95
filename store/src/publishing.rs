//! Defines the interface that a publisher uses: records, and which nodes hold all of them.

use twofactor_core::audit::Entry;
use twofactor_core::names::Pseudonym;

use crate::redis::RedisStore;
use crate::{Inspection, Publication, Published, RealmSnapshot, Store, StoreError, UserCheck};

/// The operations of a publisher: the operator, or a sidecar in `dev` mode.
#[derive(Clone, Debug)]
pub struct Publishing {
    store: Store,
}

macro_rules! delegate {
    ($self:ident, $store:ident => $call:expr) => {
        match &$self.store {
            Store::Memory($store) => Ok($call),
            Store::Redis($store) => $call.await,
        }
    };
}

impl Publishing {
    /// Publishes into `store`.
    #[must_use]
    pub const fn new(store: Store) -> Self {
        Self { store }
    }

    /// The Redis store, unless the store is in memory.
    #[must_use]
    pub fn redis(&self) -> Option<&RedisStore> {
        self.store.redis()
    }

    /// Reads the sealed record of a user.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn record(&self, user: &Pseudonym) -> Result<Option<Vec<u8>>, StoreError> {
        delegate!(self, store => store.record(user))
    }

    /// Reads the realm's record and whether the realm is completely published.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn realm(&self) -> Result<RealmSnapshot, StoreError> {
        delegate!(self, store => store.realm())
    }

    /// Reads the history of a user, the oldest entry first.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn history(&self, user: &Pseudonym) -> Result<Vec<Entry>, StoreError> {
        delegate!(self, store => store.history(user))
    }

    /// Reads whether failures have disabled these users, in their order.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn disabled(&self, users: &[Pseudonym]) -> Result<Vec<bool>, StoreError> {
        delegate!(self, store => store.disabled(users))
    }

    /// Deletes what sidecars may write of these users and no version of them writes, and returns
    /// what was found, in their order.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn check_users(&self, users: &[Pseudonym]) -> Result<Vec<UserCheck>, StoreError> {
        delegate!(self, store => store.check_users(users))
    }

    /// Deletes the realm's counts of deliveries if no version of sidecars has written them. Returns
    /// whether they were deleted.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn check_counts(&self) -> Result<bool, StoreError> {
        match &self.store {
            Store::Memory(_) => Ok(false),
            Store::Redis(store) => store.check_counts().await,
        }
    }

    /// Shortens the histories of these users to their last `keep` entries.
    ///
    /// # Errors
    /// If Redis does not answer. A part may have been shortened.
    pub async fn shorten_histories(
        &self,
        users: &[Pseudonym],
        keep: u16,
    ) -> Result<(), StoreError> {
        match &self.store {
            Store::Memory(_) => Ok(()),
            Store::Redis(store) => store.shorten_histories(users, keep).await,
        }
    }

    /// Reads which nodes there are, and whether all of them are checked and the realm is complete.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn inspect(&self) -> Result<Inspection, StoreError> {
        delegate!(self, store => store.inspect())
    }

    /// Takes note of nodes that are checked. If another publisher has checked them, they prove
    /// nothing about the writes of this one.
    pub(crate) fn see(&self, inspection: &Inspection) {
        if let Store::Redis(store) = &self.store {
            store.see(inspection);
        }
    }

    /// Writes the id of a fill to every node. A flush deletes it, so [`Publishing::complete_fill`]
    /// detects a flush that happens during the fill.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn begin_fill(&self, fill_id: &str) -> Result<(), StoreError> {
        delegate!(self, store => store.begin_fill(fill_id))
    }

    /// Reads what the store holds of these users, in their order.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn published(&self, users: &[Pseudonym]) -> Result<Vec<Published>, StoreError> {
        delegate!(self, store => store.published(users))
    }

    /// Makes records current and returns one result for each, in their order.
    ///
    /// # Errors
    /// If Redis does not answer. If another publisher has changed a user, only the result of this
    /// user is an error.
    pub async fn publish(
        &self,
        batch: &[Publication],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        delegate!(self, store => store.publish(batch))
    }

    /// Makes the realm's record current.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn publish_realm(&self, sealed: &[u8]) -> Result<(), StoreError> {
        delegate!(self, store => store.publish_realm(sealed))
    }

    /// Lists every user who may have a key in the store.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn users(&self) -> Result<Vec<Pseudonym>, StoreError> {
        delegate!(self, store => store.users())
    }

    /// Returns whether no user is listed and none of these users has a state, so that a fill writes
    /// every state.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn has_no_state_of(&self, users: &[Pseudonym]) -> Result<bool, StoreError> {
        delegate!(self, store => store.has_no_state_of(users))
    }

    /// Deletes every key of these users.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn remove(&self, users: &[Pseudonym]) -> Result<(), StoreError> {
        delegate!(self, store => store.remove(users))
    }

    /// Declares the realm complete on the nodes of `inspection`.
    ///
    /// # Errors
    /// If Redis does not answer, a node was replaced, or a node was flushed since
    /// [`Publishing::begin_fill`].
    pub async fn complete_fill(&self, inspection: &Inspection) -> Result<(), StoreError> {
        match &self.store {
            Store::Memory(store) => store.complete_fill(inspection),
            Store::Redis(store) => store.complete_fill(inspection).await,
        }
    }
}
