//! Publishes a user's record to Redis. If the user was deleted during publishing, the record is
//! removed again.

use thiserror::Error;
use twofactor_core::decision::Undecided;
use twofactor_store::StoreError;
use twofactor_store::publisher::DesiredUser;

use crate::failpoint::{self, Step};
use crate::state::realms::{Readiness, Realm};
use crate::state::user_ref::user_ref;
use crate::state::{Runtime, UserState, random};

/// Why a user is not published.
#[derive(Debug, Error)]
pub enum PublishError {
    /// Redis does not answer.
    #[error("Redis does not answer")]
    RedisUnavailable,
    /// Another operator owns the data in Redis.
    #[error("another operator of this installation owns the data in Redis")]
    OwnedByAnother,
    /// The realm is being checked or filled.
    #[error("Redis is being filled")]
    RealmNotReady,
    /// The clocks of Redis and of this process differ by more than a minute.
    #[error("the clocks of Redis and of the operator differ by more than a minute")]
    ClockDiffers,
    /// Redis answered with an error.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Undecided(Undecided::ClockOff { .. }) => Self::ClockDiffers,
            // The node was replaced, and the monitor has not checked the new one yet.
            StoreError::Undecided(_) => Self::RealmNotReady,
            error => Self::Store(error),
        }
    }
}

/// The result of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Sidecars can read the record.
    Current,
    /// The user was deleted or no longer owns the username, so nothing of it is published.
    Withdrawn,
}

/// Publishes the user with this UID. For a `newcomer`, the keys of its username belong to an
/// earlier user and are removed first.
pub async fn publish(
    runtime: &Runtime,
    users: &UserState,
    realm: &Realm,
    uid: &str,
    desired: DesiredUser,
    newcomer: bool,
) -> Result<Published, PublishError> {
    let username = desired.record.definition.username.clone();
    let pseudonym = realm.publisher.keys().pseudonym(&username);
    if newcomer {
        // The removal is scheduled, so that it is not lost if Redis does not answer.
        realm.schedule_removal(pseudonym);
    }
    match realm.readiness() {
        Readiness::Ready => {}
        Readiness::Pending => return Err(PublishError::RealmNotReady),
        Readiness::Unavailable => return Err(PublishError::RedisUnavailable),
        Readiness::OwnedByAnother => return Err(PublishError::OwnedByAnother),
    }
    let _shared = realm.publish_lock.read().await;
    let _kept = realm.removal_lock.read().await;
    if !users.owns(&realm.namespace, &username, uid) {
        return Ok(Published::Withdrawn);
    }
    if realm.is_removal_pending(&pseudonym) {
        realm.publisher.remove(pseudonym).await?;
        realm.removed(&[pseudonym]);
        failpoint::hit(Step::PredecessorRemoved);
    }
    let random = &mut random();
    let published = realm.publisher.publish_with_retry(&[desired], &runtime.clock, random).await;
    if realm.written() {
        runtime.realm_removals.notify_one();
    }
    published?;
    failpoint::hit(Step::Published);
    if users.owns(&realm.namespace, &username, uid) {
        realm.remember_published(uid);
        return Ok(Published::Current);
    }
    // The user was deleted during publishing. A new owner of the username is published again.
    realm.schedule_removal(pseudonym);
    runtime.removals.notify_one();
    if let Some(owner) = users.owner(&realm.namespace, &username) {
        users.queue.push(user_ref(&realm.namespace, &owner));
    }
    Ok(Published::Withdrawn)
}
