//! The publisher: makes the store hold what is true elsewhere.
//!
//! Enters: the users and the realm as they should be. Leaves: a store that holds exactly that, on a
//! node that is checked. Only differences are written. The operator is one publisher; `dev` is
//! another.

use std::collections::HashSet;

use rand_core::CryptoRng;
use twofactor_core::key::RealmKeys;
use twofactor_core::names::Pseudonym;
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;

use crate::clock::Clock;
use crate::{Inspection, Publication, Published, Publishing, Store, StoreError};

/// Maximum number of attempts to publish users whom another publisher changes at the same time.
const ATTEMPTS: usize = 3;

/// A user as they should be.
#[derive(Clone, Debug)]
pub struct DesiredUser {
    /// The record.
    pub record: UserRecord,
    /// Whether the seed was made just now, so that no code of it can have been used.
    pub fresh: bool,
    /// The request to reset the user's failures, if there is one: carried out once for each value.
    pub reset: Option<String>,
}

/// What publishing a user came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It was there already.
    Unchanged,
    /// It is current now.
    Written,
    /// Somebody else wrote it meanwhile; the next pass looks again.
    Conflict,
}

/// What becomes of users who are in the store and not in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnlistedUsers {
    /// The list is complete: they are gone.
    Remove,
    /// Part of the list could not be read: they may be there.
    Keep,
}

/// The publisher of one realm.
#[derive(Debug)]
pub struct Publisher {
    store: Publishing,
    keys: RealmKeys,
}

/// The next revision: the time, unless that would not rise.
fn next_revision(last: Option<Revision>, now: UnixMillis) -> Revision {
    Revision(last.map_or(0, |revision| revision.0 + 1).max(now.millis()))
}

impl Publisher {
    /// A publisher into `store` under `keys`.
    #[must_use]
    pub fn new(store: Store, keys: RealmKeys) -> Self {
        Self { store: Publishing::new(store), keys }
    }

    /// The store that is published into.
    #[must_use]
    pub fn store(&self) -> &Publishing {
        &self.store
    }

    /// The keys that are published under.
    #[must_use]
    pub fn keys(&self) -> &RealmKeys {
        &self.keys
    }

    /// The record that the store holds of a user, where one is there and opens.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn current(&self, user: Pseudonym) -> Result<Option<UserRecord>, StoreError> {
        let sealed = self.store.record(&user).await?;
        Ok(sealed
            .and_then(|sealed| UserRecord::open(&self.keys, user, &sealed).ok())
            .map(|(_, record)| record))
    }

    /// Makes users current; one outcome for each, in their order. Nobody else is touched.
    ///
    /// # Errors
    /// When Redis does not answer; part of the users may have been written then.
    pub async fn publish(
        &self,
        users: &[DesiredUser],
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<Vec<PublishOutcome>, StoreError> {
        self.write(users, false, now, random).await
    }

    /// Makes users current under new revisions, also where nothing is different: sidecars may have
    /// seen higher ones than a node knows that has lost writes.
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
        let pseudonyms: Vec<Pseudonym> = users
            .iter()
            .map(|user| self.keys.pseudonym(&user.record.definition.username))
            .collect();
        let published = self.store.published(&pseudonyms).await?;
        let mut outcomes = vec![PublishOutcome::Unchanged; users.len()];
        let mut batch = Vec::new();
        let mut positions = Vec::new();
        for (position, (user, published)) in users.iter().zip(published).enumerate() {
            let difference =
                self.difference(user, pseudonyms[position], &published, renew, now, random);
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

    /// What has to be written for `desired`, if anything.
    fn difference(
        &self,
        desired: &DesiredUser,
        pseudonym: Pseudonym,
        published: &Published,
        renew: bool,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Option<Publication> {
        let known = published
            .sealed
            .as_ref()
            .and_then(|sealed| UserRecord::open(&self.keys, pseudonym, sealed).ok());
        if !renew
            && let Some((revision, record)) = &known
            && Some(*revision) == published.revision
            && *record == desired.record
            && (desired.reset.is_none() || desired.reset == published.reset)
        {
            return None;
        }
        let known_revision = known.as_ref().map(|(revision, _)| *revision).max(published.revision);
        let revision = next_revision(known_revision, now);
        Some(Publication {
            pseudonym,
            expected: published.revision,
            revision,
            sealed: desired.record.seal(&self.keys, pseudonym, revision, random),
            fresh: desired.fresh,
            revoke: known.is_none_or(|(_, record)| destination_changed(&record, &desired.record)),
            reset: desired.reset.clone(),
        })
    }

    /// Makes the realm's record current, if it is not. Tells whether it was written.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn publish_realm(
        &self,
        realm: &RealmRecord,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<bool, StoreError> {
        let known = self
            .store
            .realm()
            .await?
            .sealed
            .and_then(|sealed| RealmRecord::open(&self.keys, &sealed).ok());
        let last = match known {
            Some((_, record)) if record == *realm => return Ok(false),
            Some((revision, _)) => Some(revision),
            None => None,
        };
        self.store.publish_realm(&realm.seal(&self.keys, next_revision(last, now), random)).await?;
        Ok(true)
    }

    /// Leaves nothing of a user.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn remove(&self, user: Pseudonym) -> Result<(), StoreError> {
        self.store.remove(&[user]).await
    }

    /// Leaves nothing of anybody who is not in `keep`. Tells how many were removed. Call it only
    /// with a complete list.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn remove_unlisted(&self, keep: &HashSet<Pseudonym>) -> Result<usize, StoreError> {
        let unlisted: Vec<Pseudonym> =
            self.store.users().await?.into_iter().filter(|user| !keep.contains(user)).collect();
        self.store.remove(&unlisted).await?;
        Ok(unlisted.len())
    }

    /// The store before anything is written to it, to be handed to [`Publishing::complete_fill`] after
    /// everything is. Where a realm has to be filled, this marks the beginning.
    ///
    /// A realm of which there is no user yet is as good as an empty node: whatever will be there
    /// was written after this, and says itself what may have been used before.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn begin_fill(&self, random: &mut impl CryptoRng) -> Result<Inspection, StoreError> {
        let mut inspection = self.store.inspect().await?;
        if inspection.ready {
            return Ok(inspection);
        }
        if !inspection.nodes.iter().all(|node| node.empty) && self.store.users().await?.is_empty() {
            for node in &mut inspection.nodes {
                node.empty = true;
            }
        }
        inspection.fill_id = format!("{:016x}", random.next_u64());
        self.store.begin_fill(&inspection.fill_id).await?;
        Ok(inspection)
    }

    /// Makes the whole realm current, and says so to sidecars: what a refill after a loss consists
    /// of. Nothing of a node that was not checked is trusted before this has ended. Tells whether
    /// anything had been lost.
    ///
    /// # Errors
    /// When Redis does not answer, or becomes another node meanwhile; call it again then.
    pub async fn fill(
        &self,
        realm: &RealmRecord,
        users: &[DesiredUser],
        unlisted: UnlistedUsers,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<bool, StoreError> {
        let inspection = self.begin_fill(random).await?;
        self.publish_realm(realm, now, random).await?;
        if self
            .write(users, !inspection.ready, now, random)
            .await?
            .contains(&PublishOutcome::Conflict)
        {
            return Err(StoreError::Conflict);
        }
        if unlisted == UnlistedUsers::Remove {
            let keep = users
                .iter()
                .map(|user| self.keys.pseudonym(&user.record.definition.username))
                .collect();
            self.remove_unlisted(&keep).await?;
        }
        if !inspection.ready {
            self.store.complete_fill(&inspection).await?;
        }
        Ok(!inspection.ready)
    }
}

/// Whether a code in flight could reach, or could have been made for, somebody else than the new
/// record means.
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
    }
}
