//! Stores records and decisions in the memory of one process, for trying the product.
//!
//! Everything is lost with the process, so there is no node to check: a new process starts with an
//! empty store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use twofactor_core::audit::Entry;
use twofactor_core::decision::{
    DeliveryReport, Issuance, Issue, THROTTLE, Undecided, UserState, Verdict, Verification,
};
use twofactor_core::limits::{Allowance, Deliveries};
use twofactor_core::names::{Caller, Pseudonym};
use twofactor_core::time::UnixMillis;

use crate::clock::Clock;
use crate::{
    Found, Inspection, NodeInspection, Publication, Published, RealmSnapshot, StoreError, UserCheck,
};

/// A store in memory; clones share it.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    clock: Clock,
    content: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    users: HashMap<Pseudonym, (Vec<u8>, UserState)>,
    realm: RealmSnapshot,
    fill_id: String,
    deliveries: Deliveries,
}

impl MemoryStore {
    /// Creates an empty store that decides by `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, content: Arc::default() }
    }

    /// Deletes everything, as `FLUSHALL` does in Redis.
    pub fn clear(&self) {
        *self.content() = Content::default();
    }

    /// Every change is made as a whole, so the content is consistent even after a panic in another
    /// thread.
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    pub(crate) fn record(&self, user: &Pseudonym) -> Option<Vec<u8>> {
        self.content().users.get(user).map(|(sealed, _)| sealed.clone())
    }

    pub(crate) fn confirm_absence(&self, user: &Pseudonym) -> Result<bool, StoreError> {
        let content = self.content();
        if content.realm.complete {
            Ok(!content.users.contains_key(user))
        } else {
            Err(Undecided::NoState.into())
        }
    }

    pub(crate) fn realm(&self) -> RealmSnapshot {
        self.content().realm.clone()
    }

    pub(crate) fn verify(
        &self,
        user: &Pseudonym,
        request: &Verification,
    ) -> Result<Verdict, StoreError> {
        let mut content = self.content();
        let (_, state) = content.users.get_mut(user).ok_or(Undecided::NoState)?;
        Ok(state.verify(request, &THROTTLE, self.clock.now())?)
    }

    pub(crate) fn issue(&self, user: &Pseudonym, request: &Issuance) -> Result<Issue, StoreError> {
        let mut content = self.content();
        let (_, state) = content.users.get_mut(user).ok_or(Undecided::NoState)?;
        Ok(state.issue(request, self.clock.now())?)
    }

    pub(crate) fn record_delivery(
        &self,
        user: &Pseudonym,
        report: &DeliveryReport,
    ) -> Result<(), StoreError> {
        let mut content = self.content();
        let (_, state) = content.users.get_mut(user).ok_or(Undecided::NoState)?;
        state.record_delivery(report, self.clock.now());
        Ok(())
    }

    pub(crate) fn count_delivery(&self, caller: &Caller, most: u32, most_own: u32) -> Allowance {
        self.content().deliveries.take(caller, most, most_own, self.clock.now())
    }

    pub(crate) fn history(&self, user: &Pseudonym) -> Vec<Entry> {
        self.content().users.get(user).map(|(_, state)| state.history()).unwrap_or_default()
    }

    pub(crate) fn disabled(&self, users: &[Pseudonym]) -> Vec<bool> {
        let content = self.content();
        let is_disabled = |user: &Pseudonym| {
            content.users.get(user).is_some_and(|(_, state)| state.is_disabled())
        };
        users.iter().map(is_disabled).collect()
    }

    pub(crate) fn check_users(&self, users: &[Pseudonym]) -> Vec<UserCheck> {
        let check = |disabled| UserCheck { found: Found::Fine, disabled };
        self.disabled(users).into_iter().map(check).collect()
    }

    pub(crate) fn inspect(&self) -> Inspection {
        let content = self.content();
        let empty = content.users.is_empty() && content.realm == RealmSnapshot::default();
        Inspection {
            nodes: vec![NodeInspection { identity: "memory".to_owned(), empty }],
            ready: content.realm.complete,
            complete: content.realm.complete,
            kept: false,
            fill_id: String::new(),
        }
    }

    pub(crate) fn published(&self, users: &[Pseudonym]) -> Vec<Published> {
        let content = self.content();
        let published = |user: &Pseudonym| match content.users.get(user) {
            Some((sealed, state)) => Published {
                revision: Some(state.revision()),
                reset: state.reset().map(str::to_owned),
                sealed: Some(sealed.clone()),
            },
            None => Published { revision: None, reset: None, sealed: None },
        };
        users.iter().map(published).collect()
    }

    pub(crate) fn publish(&self, batch: &[Publication]) -> Vec<Result<(), StoreError>> {
        let mut content = self.content();
        let now = self.clock.now();
        let mut publish = |publication: &Publication| {
            let known = content.users.get(&publication.pseudonym);
            if known.map(|(_, state)| state.revision()) != publication.expected {
                return Err(StoreError::Conflict);
            }
            let reset = publication.reset.as_deref();
            let (sealed, state) = content.users.entry(publication.pseudonym).or_insert_with(|| {
                let since = if publication.fresh { UnixMillis::default() } else { now };
                let mut state = UserState::new(publication.revision, since);
                state.restore_failures(publication.disabled, reset);
                (Vec::new(), state)
            });
            sealed.clone_from(&publication.sealed);
            state.publish(publication.revision, publication.revoke, now);
            if let Some(request) = reset {
                state.reset_failures(request);
            }
            Ok(())
        };
        batch.iter().map(&mut publish).collect()
    }

    pub(crate) fn publish_realm(&self, sealed: &[u8]) {
        self.content().realm.sealed = Some(sealed.to_vec());
    }

    pub(crate) fn users(&self) -> Vec<Pseudonym> {
        self.content().users.keys().copied().collect()
    }

    pub(crate) fn has_no_state_of(&self, _: &[Pseudonym]) -> bool {
        self.content().users.is_empty()
    }

    pub(crate) fn remove(&self, users: &[Pseudonym]) {
        let mut content = self.content();
        for user in users {
            content.users.remove(user);
        }
    }

    pub(crate) fn begin_fill(&self, fill_id: &str) {
        fill_id.clone_into(&mut self.content().fill_id);
    }

    pub(crate) fn complete_fill(&self, inspection: &Inspection) -> Result<(), StoreError> {
        let mut content = self.content();
        if content.fill_id != inspection.fill_id {
            return Err(Undecided::NoState.into());
        }
        content.realm.complete = true;
        Ok(())
    }
}
