//! Removes orphaned keys from Redis: of usernames without an owner, and of realms without a
//! namespace. If Redis does not answer, it removes them later.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use twofactor_core::names::Pseudonym;
use twofactor_store::StoreError;

use crate::k8s::backoff::jittered;
use crate::metrics::Metrics;
use crate::state::realms::{Readiness, Realm};
use crate::state::user_ref::user_ref;
use crate::state::{Context, random};

/// Interval between searches for orphaned keys, in case one was missed.
const SAFETY_NET: Duration = Duration::from_mins(10);
/// Delay after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Returns the users in Redis that are not `live`.
pub fn orphaned<S: BuildHasher>(
    known: &[Pseudonym],
    live: &HashSet<Pseudonym, S>,
) -> Vec<Pseudonym> {
    known.iter().filter(|user| !live.contains(user)).copied().collect()
}

/// Removes orphaned users of `realm`, and requeues users that were published and are missing in
/// Redis. Returns the number of removed users.
pub async fn sweep(context: &Context, realm: &Realm) -> Result<usize, StoreError> {
    let known = realm.publisher.store().users().await?;
    // The lock prevents publishing between the reading of the usernames and the removal.
    let _alone = realm.publish_lock.write().await;
    let (live, missing) = {
        let usernames = context.users.usernames();
        let Some(owners) = usernames.owners(&realm.namespace) else {
            tracing::warn!(
                namespace = realm.namespace,
                "cleanup skipped, because a TwoFactorUser in this namespace cannot be read"
            );
            return Ok(0);
        };
        let known: HashSet<&Pseudonym> = known.iter().collect();
        let mut live = HashSet::with_capacity(owners.len());
        let mut missing = Vec::new();
        for (username, claim) in owners {
            let pseudonym = realm.publisher.keys().pseudonym(username);
            if !known.contains(&pseudonym) && realm.was_published(&claim.uid) {
                missing.push(claim.name.clone());
            }
            live.insert(pseudonym);
        }
        (live, missing)
    };
    for name in missing {
        context.users.queue.push(user_ref(&realm.namespace, &name));
    }
    let orphaned = orphaned(&known, &live);
    realm.publisher.store().remove(&orphaned).await?;
    if !orphaned.is_empty() {
        context.runtime.metrics.swept.inc_by(orphaned.len() as u64);
        tracing::info!(
            namespace = realm.namespace,
            users = orphaned.len(),
            "removed orphaned users from Redis"
        );
    }
    Ok(orphaned.len())
}

/// Removes orphaned keys until `stop`. The lists must be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut next_sweep = Instant::now();
    while !stop.is_cancelled() {
        let removed = remove(&context).await;
        let mut swept = Ok(true);
        if removed.is_ok() && Instant::now() >= next_sweep {
            swept = sweep_all(&context).await;
            Metrics::count(&context.runtime.metrics.sweeps, swept.is_ok());
            if matches!(swept, Ok(true)) {
                next_sweep = Instant::now() + jittered(SAFETY_NET, &mut random());
            }
        }
        let patience = match (removed, swept) {
            (Ok(()), Ok(true)) => next_sweep.saturating_duration_since(Instant::now()),
            (Ok(()), Ok(false)) => RETRY,
            (Err(error), _) | (_, Err(error)) => {
                // The monitor logs that Redis does not answer.
                tracing::debug!(%error, "failed to remove orphaned keys from Redis; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = timeout(patience, context.runtime.removals.notified()) => {}
        }
    }
}

/// Removes keys that are known to be orphaned.
async fn remove(context: &Context) -> Result<(), StoreError> {
    for realm in context.realms.registry.all() {
        if realm.pending_removals().is_empty() {
            continue;
        }
        let _alone = realm.publish_lock.write().await;
        let pending = realm.pending_removals();
        realm.publisher.store().remove(&pending).await?;
        realm.removed(&pending);
    }
    for realm in context.realms.registry.deleted() {
        context.realms.registry.store_of(&realm).remove_realm().await?;
        context.realms.registry.forget(&realm);
        tracing::info!(%realm, "removed an orphaned realm from Redis");
    }
    Ok(())
}

/// Searches all realms. Returns whether every realm was ready for it.
async fn sweep_all(context: &Context) -> Result<bool, StoreError> {
    let known =
        context.realms.registry.store().realms(&context.realms.registry.installation).await?;
    // A realm without users is kept as long as its namespace exists.
    for realm in &known {
        // Users of other namespaces belong to another operator.
        if let Some(namespace) = context.realms.registry.namespace_of(realm)
            && context.runtime.watched.includes(&namespace)
        {
            let is_new = context.realms.registry.get(&namespace).is_none();
            if context.realms.registry.get_or_create(&namespace).await.is_ok() && is_new {
                // Its services need a login too.
                context.services.credentials_queue.realm_changed(namespace);
            }
        }
    }
    for realm in context.realms.registry.orphaned(known) {
        context.realms.registry.store_of(&realm).remove_realm().await?;
        tracing::info!(%realm, "removed an orphaned realm from Redis");
    }
    let mut complete = true;
    for realm in context.realms.registry.all() {
        // A realm that is being filled is searched at the end of that. One that has not been
        // checked yet follows later.
        if realm.readiness() == Readiness::Ready {
            sweep(context, &realm).await?;
        } else {
            complete = false;
        }
    }
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_of_users_that_do_not_exist_are_orphaned() {
        let user = |byte| Pseudonym::from_bytes([byte; 16]);
        let live: HashSet<_> = [user(1), user(2)].into();
        assert_eq!(orphaned(&[user(1), user(3)], &live), [user(3)]);
        assert_eq!(orphaned(&[], &live), []);
    }
}
