//! Publishes users and a realm: makes the store hold exactly what it should, on checked nodes.
//!
//! Only differences are written. The operator is one publisher, a sidecar in `dev` mode another.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand_core::CryptoRng;
use twofactor_core::key::RealmKeys;
use twofactor_core::names::Pseudonym;
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::{self, Revision};
use twofactor_core::time::UnixMillis;

use crate::clock::Clock;
use crate::{Inspection, Publication, Published, Publishing, Store, StoreError};

/// Maximum number of attempts to publish users that another publisher changes at the same time.
const ATTEMPTS: usize = 3;

/// A user as the store should hold them.
#[derive(Clone, Debug)]
pub struct DesiredUser {
    /// The record.
    pub record: UserRecord,
    /// Whether the seed is new, so that no code of it can have been used.
    pub fresh: bool,
    /// The request to reset the user's failures, if there is one. Each value is carried out once.
    pub reset: Option<String>,
    /// Whether failures had disabled the user and no later request has reset them. It counts only
    /// if the store has lost the user's state.
    pub disabled: bool,
}

/// The result of publishing a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The store already held the record.
    Unchanged,
    /// The record is now current.
    Written,
    /// Another publisher has changed the user at the same time.
    Conflict,
}

/// What happens to users who are in the store and not in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnlistedUsers {
    /// They are removed, because the list is complete.
    Remove,
    /// They are kept, because a part of the list could not be read.
    Keep,
}

/// The publisher of one realm.
#[derive(Debug)]
pub struct Publisher {
    store: Publishing,
    keys: ArcSwap<RealmKeys>,
}

/// Time by which a revision in a state may be ahead. A higher one was not written by a publisher.
const REVISION_MARGIN: Duration = Duration::from_hours(24);

/// Returns the next revision: the time, or one more than the last revision if that is higher.
fn next_revision(last: Option<Revision>, now: UnixMillis) -> Revision {
    Revision(last.map_or(0, |revision| revision.0.saturating_add(1)).max(now.millis()))
}

/// Returns a revision that sidecars may have written, unless it is too far ahead.
fn plausible(revision: Revision, now: UnixMillis) -> Option<Revision> {
    let ahead = now.until(UnixMillis::new(revision.0));
    (ahead <= REVISION_MARGIN).then_some(revision)
}

impl Publisher {
    /// Publishes into `store` with `keys`.
    #[must_use]
    pub fn new(store: Store, keys: RealmKeys) -> Self {
        Self { store: Publishing::new(store), keys: ArcSwap::from_pointee(keys) }
    }

    /// The store that this publisher writes to.
    #[must_use]
    pub fn store(&self) -> &Publishing {
        &self.store
    }

    /// The keys that records are sealed and opened with.
    #[must_use]
    pub fn keys(&self) -> Arc<RealmKeys> {
        self.keys.load_full()
    }

    /// Seals and opens records with `keys` from now on. They must name users as the former ones do.
    pub fn use_keys(&self, keys: RealmKeys) {
        self.keys.store(Arc::new(keys));
    }

    /// Reads a user's record from the store. Returns nothing if there is none or it cannot be
    /// opened.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn current(&self, user: Pseudonym) -> Result<Option<UserRecord>, StoreError> {
        let sealed = self.store.record(&user).await?;
        Ok(sealed
            .and_then(|sealed| UserRecord::open(&self.keys(), user, &sealed).ok())
            .map(|(_, record)| record))
    }

    /// Publishes users and returns one outcome for each, in their order. Other users are not
    /// changed.
    ///
    /// # Errors
    /// If Redis does not answer. A part of the users may have been written.
    pub async fn publish(
        &self,
        users: &[DesiredUser],
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<Vec<PublishOutcome>, StoreError> {
        self.write(users, false, now, random).await
    }

    /// Publishes users with new revisions, even if nothing is different, because sidecars may have
    /// seen higher revisions than a node that has lost writes.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn renew(
        &self,
        users: &[DesiredUser],
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<Vec<PublishOutcome>, StoreError> {
        self.write(users, true, now, random).await
    }

    /// [`Publisher::publish`], again if another publisher changes a user at the same time.
    ///
    /// # Errors
    /// As [`Publisher::publish`], and [`StoreError::Conflict`] after [`ATTEMPTS`].
    pub async fn publish_with_retry(
        &self,
        users: &[DesiredUser],
        clock: &Clock,
        random: &mut impl CryptoRng,
    ) -> Result<(), StoreError> {
        self.write_with_retry(users, false, clock, random).await
    }

    /// [`Publisher::renew`], again if another publisher changes a user at the same time.
    ///
    /// # Errors
    /// As [`Publisher::publish_with_retry`].
    pub async fn renew_with_retry(
        &self,
        users: &[DesiredUser],
        clock: &Clock,
        random: &mut impl CryptoRng,
    ) -> Result<(), StoreError> {
        self.write_with_retry(users, true, clock, random).await
    }

    async fn write_with_retry(
        &self,
        users: &[DesiredUser],
        renew: bool,
        clock: &Clock,
        random: &mut impl CryptoRng,
    ) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            let outcomes = self.write(users, renew, clock.now(), random).await?;
            if !outcomes.contains(&PublishOutcome::Conflict) {
                return Ok(());
            }
        }
        Err(StoreError::Conflict)
    }

    async fn write(
        &self,
        users: &[DesiredUser],
        renew: bool,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<Vec<PublishOutcome>, StoreError> {
        let keys = self.keys();
        let pseudonyms: Vec<Pseudonym> =
            users.iter().map(|user| keys.pseudonym(&user.record.definition.username)).collect();
        let published = self.store.published(&pseudonyms).await?;
        let mut outcomes = vec![PublishOutcome::Unchanged; users.len()];
        let mut batch = Vec::new();
        let mut positions = Vec::new();
        for (position, (user, published)) in users.iter().zip(published).enumerate() {
            let difference =
                difference(&keys, user, pseudonyms[position], &published, renew, now, random);
            if let Some(publication) = difference {
                batch.push(publication);
                positions.push(position);
            }
        }
        for (position, result) in positions.into_iter().zip(self.store.publish(&batch).await?) {
            outcomes[position] = match result {
                Ok(()) => PublishOutcome::Written,
                Err(StoreError::Conflict) => PublishOutcome::Conflict,
                Err(error) => return Err(error),
            };
        }
        Ok(outcomes)
    }

    /// Seals records again that are sealed with another key than the current one. Returns how many
    /// there were; those of another publisher's users are among them until the next call.
    ///
    /// # Errors
    /// If Redis does not answer. A part may have been written.
    pub async fn reseal(
        &self,
        users: &[Pseudonym],
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<usize, StoreError> {
        let keys = self.keys();
        let mut batch = Vec::new();
        for (user, published) in users.iter().zip(self.store.published(users).await?) {
            // What has no state is published again by the next check of the users.
            let (Some(sealed), Some(of_state)) = (published.sealed, published.revision) else {
                continue;
            };
            if seal::generation(&sealed) == Some(keys.generation()) {
                continue;
            }
            // What cannot be opened is published again by the comparison of the realm.
            let Ok((revision, record)) = UserRecord::open(&keys, *user, &sealed) else { continue };
            let revision = next_revision(plausible(of_state, now).max(Some(revision)), now);
            batch.push(Publication {
                pseudonym: *user,
                expected: published.revision,
                revision,
                sealed: record.seal(&keys, *user, revision, random),
                fresh: false,
                revoke: false,
                disabled: false,
                reset: None,
            });
        }
        for result in self.store.publish(&batch).await? {
            match result {
                Ok(()) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(batch.len())
    }

    /// Publishes the realm's record if it has changed. Returns whether it was written.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn publish_realm(
        &self,
        realm: &RealmRecord,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<bool, StoreError> {
        self.publish_realm_after(|_| realm.clone(), now, random).await
    }

    /// Publishes the realm's record that follows the published one, if it differs. Returns whether
    /// it was written.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn publish_realm_after(
        &self,
        next: impl FnOnce(Option<&RealmRecord>) -> RealmRecord,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<bool, StoreError> {
        let keys = self.keys();
        let sealed = self.store.realm().await?.sealed;
        let generation = sealed.as_deref().and_then(seal::generation);
        let known = sealed.and_then(|sealed| RealmRecord::open(&keys, &sealed).ok());
        let realm = next(known.as_ref().map(|(_, record)| record));
        let last = match known {
            Some((_, record)) if record == realm && generation == Some(keys.generation()) => {
                return Ok(false);
            }
            Some((revision, _)) => Some(revision),
            None => None,
        };
        self.store.publish_realm(&realm.seal(&keys, next_revision(last, now), random)).await?;
        Ok(true)
    }

    /// Deletes every key of a user.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn remove(&self, user: Pseudonym) -> Result<(), StoreError> {
        self.store.remove(&[user]).await
    }

    /// Deletes every key of users who are not in `keep`, which must be complete. Returns how many
    /// users were removed.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn remove_unlisted(&self, keep: &HashSet<Pseudonym>) -> Result<usize, StoreError> {
        let unlisted: Vec<Pseudonym> =
            self.store.users().await?.into_iter().filter(|user| !keep.contains(user)).collect();
        self.store.remove(&unlisted).await?;
        Ok(unlisted.len())
    }

    /// Begins a fill if the realm needs one. Returns the nodes before anything is written to them,
    /// for [`Publishing::complete_fill`] after everything is written.
    ///
    /// `users` are all users that the realm has, or nothing if some are not known. If Redis holds
    /// no state of them, its nodes count as empty: every state is written after this, and says
    /// which codes may have been used before.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn begin_fill(
        &self,
        users: Option<&[Pseudonym]>,
        random: &mut impl CryptoRng,
    ) -> Result<Inspection, StoreError> {
        let mut inspection = self.store.inspect().await?;
        if inspection.ready {
            // Another publisher may have checked nodes that this one has not seen before.
            self.store.see(&inspection);
            return Ok(inspection);
        }
        if !inspection.nodes.iter().all(|node| node.empty)
            && let Some(users) = users
            && self.store.has_no_state_of(users).await?
        {
            for node in &mut inspection.nodes {
                node.empty = true;
            }
        }
        inspection.fill_id = format!("{:016x}", random.next_u64());
        self.store.begin_fill(&inspection.fill_id).await?;
        Ok(inspection)
    }

    /// Publishes the whole realm and declares it complete. Sidecars do not trust a node that is not
    /// checked before this has ended. Returns whether a fill was necessary.
    ///
    /// # Errors
    /// If Redis does not answer, or a node is replaced during the fill. Then the caller tries
    /// again.
    pub async fn fill(
        &self,
        realm: &RealmRecord,
        users: &[DesiredUser],
        unlisted: UnlistedUsers,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<bool, StoreError> {
        let listed: Vec<Pseudonym> = users
            .iter()
            .map(|user| self.keys().pseudonym(&user.record.definition.username))
            .collect();
        // Users that could not be read may have a state.
        let known = (unlisted == UnlistedUsers::Remove).then_some(listed.as_slice());
        let inspection = self.begin_fill(known, random).await?;
        self.publish_realm(realm, now, random).await?;
        if self
            .write(users, !inspection.ready, now, random)
            .await?
            .contains(&PublishOutcome::Conflict)
        {
            return Err(StoreError::Conflict);
        }
        if unlisted == UnlistedUsers::Remove {
            self.remove_unlisted(&listed.into_iter().collect()).await?;
        }
        if !inspection.ready {
            self.store.complete_fill(&inspection).await?;
        }
        Ok(!inspection.ready)
    }
}

/// Returns what must be written for `desired`, if anything.
fn difference(
    keys: &RealmKeys,
    desired: &DesiredUser,
    pseudonym: Pseudonym,
    published: &Published,
    renew: bool,
    now: UnixMillis,
    random: &mut impl CryptoRng,
) -> Option<Publication> {
    let known =
        published.sealed.as_ref().and_then(|sealed| UserRecord::open(keys, pseudonym, sealed).ok());
    if !renew
        && let Some((revision, record)) = &known
        && Some(*revision) == published.revision
        && published.sealed.as_deref().and_then(seal::generation) == Some(keys.generation())
        && *record == desired.record
        && (desired.reset.is_none() || desired.reset == published.reset)
    {
        return None;
    }
    let of_state = published.revision.and_then(|revision| plausible(revision, now));
    let known_revision = known.as_ref().map(|(revision, _)| *revision).max(of_state);
    let revision = next_revision(known_revision, now);
    Some(Publication {
        pseudonym,
        expected: published.revision,
        revision,
        sealed: desired.record.seal(keys, pseudonym, revision, random),
        fresh: desired.fresh,
        revoke: known.is_none_or(|(_, record)| destination_changed(&record, &desired.record)),
        disabled: desired.disabled,
        reset: desired.reset.clone(),
    })
}

/// Whether a code in flight could reach, or could have been issued for, another person than the one
/// that the new record describes.
fn destination_changed(old: &UserRecord, new: &UserRecord) -> bool {
    let destination = |record: &UserRecord| {
        let definition = &record.definition;
        (definition.delivery_method, definition.email.clone(), definition.phone_number.clone())
    };
    old.seed != new.seed
        || old.definition.totp != new.definition.totp
        || old.definition.enabled != new.definition.enabled
        || destination(old) != destination(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_rises_even_when_the_clock_went_back() {
        assert_eq!(next_revision(None, UnixMillis::new(100)), Revision(100));
        assert_eq!(next_revision(Some(Revision(50)), UnixMillis::new(100)), Revision(100));
        assert_eq!(next_revision(Some(Revision(500)), UnixMillis::new(100)), Revision(501));
        assert_eq!(next_revision(Some(Revision(u64::MAX)), UnixMillis::new(100)).0, u64::MAX);
    }

    #[test]
    fn a_revision_of_the_state_that_is_far_ahead_is_ignored() {
        let day = 24 * 3_600_000;
        for (revision, is_plausible) in [(0, true), (100 + day, true), (101 + day, false)] {
            let found = plausible(Revision(revision), UnixMillis::new(100));
            assert_eq!(found.is_some(), is_plausible, "{revision}");
        }
    }
}
