//! Hands a user to the sidecars. Enters: a user's record, as it should be. Leaves: the record in
//! the store, unless the user has gone meanwhile: then nothing of them.

use std::time::Duration;

use thiserror::Error;
use twofactor_core::names::Pseudonym;
use twofactor_core::user::Username;
use twofactor_store::StoreError;
use twofactor_store::publisher::DesiredUser;

use crate::failpoint::{self, Step};
use crate::state::realms::{Readiness, Realm};
use crate::state::{Context, random};

/// How long to wait for a realm that is being filled.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a user is not published.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The store does not answer.
    #[error("Redis does not answer")]
    RedisUnavailable,
    /// The realm is being filled, which takes longer than this user can wait.
    #[error("Redis is being filled")]
    RealmNotReady,
    /// The store answered with an error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Sidecars can read the record.
    Current,
    /// The user is gone, or not the owner of the username any more. Nothing of them is published.
    Withdrawn,
}

/// Publishes the user with this UID. `newcomer`: what there is under their username belongs to
/// somebody else.
pub async fn publish(
    context: &Context,
    realm: &Realm,
    uid: &str,
    desired: DesiredUser,
    newcomer: bool,
) -> Result<Published, PublishError> {
    let username = desired.record.definition.username.clone();
    let pseudonym = realm.publisher.keys().pseudonym(&username);
    if newcomer {
        // Remembered, so that it is not forgotten when the store is away.
        realm.schedule_removal(pseudonym);
    }
    match realm.wait_until_ready(PATIENCE).await {
        Readiness::Ready => {}
        Readiness::Pending => return Err(PublishError::RealmNotReady),
        Readiness::Unavailable => return Err(PublishError::RedisUnavailable),
    }
    let _shared = realm.publish_lock.read().await;
    if !context.owns(&realm.namespace, &username, uid) {
        return Ok(Published::Withdrawn);
    }
    if realm.is_removal_pending(&pseudonym) {
        realm.publisher.remove(pseudonym).await?;
        realm.removed(&[pseudonym]);
        failpoint::hit(Step::PredecessorRemoved);
    }
    let random = &mut random();
    realm.publisher.publish_with_retry(&[desired], &context.clock, random).await?;
    failpoint::hit(Step::Published);
    if context.owns(&realm.namespace, &username, uid) {
        realm.remember_published(uid);
        return Ok(Published::Current);
    }
    retract(context, realm, &username, pseudonym).await?;
    Ok(Published::Withdrawn)
}

/// The user went while they were being published.
async fn retract(
    context: &Context,
    realm: &Realm,
    username: &Username,
    pseudonym: Pseudonym,
) -> Result<(), StoreError> {
    realm.schedule_removal(pseudonym);
    if let Some(owner) = context.owner(&realm.namespace, username) {
        // Whoever owns the name now clears it first.
        context.queue.push(crate::state::queue::user_ref(&realm.namespace, &owner));
        return Ok(());
    }
    realm.publisher.remove(pseudonym).await?;
    realm.removed(&[pseudonym]);
    Ok(())
}
