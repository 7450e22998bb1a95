//! Removes what belongs to nobody. Enters: usernames that lost their owner, realms that lost their
//! namespace, and everything that the store holds. Leaves: nothing of them in the store. What
//! cannot be removed now is removed when the store answers again.

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
use crate::state::queue::user_ref;
use crate::state::realms::{Readiness, Realm};
use crate::state::{Context, random};

/// How often to look for what is left over, although nothing should be.
const SAFETY_NET: Duration = Duration::from_mins(10);
/// How soon to try again.
const RETRY: Duration = Duration::from_secs(1);

/// Of everybody whom the store knows, those who are not `live`.
pub fn orphaned<S: BuildHasher>(
    known: &[Pseudonym],
    live: &HashSet<Pseudonym, S>,
) -> Vec<Pseudonym> {
    known.iter().filter(|user| !live.contains(user)).copied().collect()
}

/// Removes from the store whoever is not a user of `realm`. Users of whom the store knows nothing,
/// although they have been published, are looked at again. Tells how many were removed.
pub async fn sweep(context: &Context, realm: &Realm) -> Result<usize, StoreError> {
    let known = realm.publisher.store().users().await?;
    // Nobody is published between the look at the index and the removal.
    let _alone = realm.publish_lock.write().await;
    let (live, missing) = {
        let usernames = context.usernames();
        let Some(owners) = usernames.owners(&realm.namespace) else {
            tracing::warn!(
                namespace = realm.namespace,
                "not looking for leftovers, because a TwoFactorUser in this namespace cannot be read"
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
        context.queue.push(user_ref(&realm.namespace, &name));
    }
    let orphaned = orphaned(&known, &live);
    realm.publisher.store().remove(&orphaned).await?;
    if !orphaned.is_empty() {
        context.metrics.swept.inc_by(orphaned.len() as u64);
        tracing::info!(
            namespace = realm.namespace,
            users = orphaned.len(),
            "removed users who are gone from Redis"
        );
    }
    Ok(orphaned.len())
}

/// Removes everything that belongs to nobody until it is told to stop. Begins when the lists are
/// complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut next_sweep = Instant::now();
    while !stop.is_cancelled() {
        let removed = remove(&context).await;
        let mut swept = Ok(true);
        if removed.is_ok() && Instant::now() >= next_sweep {
            swept = sweep_all(&context).await;
            Metrics::count(&context.metrics.sweeps, swept.is_ok());
            if matches!(swept, Ok(true)) {
                next_sweep = Instant::now() + jittered(SAFETY_NET, &mut random());
            }
        }
        let patience = match (removed, swept) {
            (Ok(()), Ok(true)) => next_sweep.saturating_duration_since(Instant::now()),
            (Ok(()), Ok(false)) => RETRY,
            (Err(error), _) | (_, Err(error)) => {
                // The guard says so where everybody sees it.
                tracing::debug!(%error, "cannot remove from Redis what is gone; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = timeout(patience, context.removals.notified()) => {}
        }
    }
}

/// Removes what is known to belong to nobody.
async fn remove(context: &Context) -> Result<(), StoreError> {
    for realm in context.realms.all() {
        if realm.pending_removals().is_empty() {
            continue;
        }
        let _alone = realm.publish_lock.write().await;
        let pending = realm.pending_removals();
        realm.publisher.store().remove(&pending).await?;
        realm.removed(&pending);
    }
    for realm in context.realms.deleted() {
        context.realms.store_of(&realm).remove_realm().await?;
        context.realms.forget(&realm);
        tracing::info!(%realm, "removed a realm whose namespace is gone from Redis");
    }
    Ok(())
}

/// Tells whether every realm was swept.
async fn sweep_all(context: &Context) -> Result<bool, StoreError> {
    let known = context.realms.store().realms(&context.realms.installation).await?;
    // A realm whose users are all gone is looked after like the others, as long as there is its
    // namespace.
    for realm in &known {
        // Users of other namespaces are somebody else's to look after.
        if let Some(namespace) = context.realms.namespace_of(realm)
            && context.watched.includes(&namespace)
        {
            let is_new = context.realms.get(&namespace).is_none();
            if context.realms.get_or_create(&namespace).await.is_ok() && is_new {
                // Its services have a login, too.
                context.credentials_queue.realm_changed(namespace);
            }
        }
    }
    for realm in context.realms.orphaned(known) {
        context.realms.store_of(&realm).remove_realm().await?;
        tracing::info!(%realm, "removed a realm whose namespace is gone from Redis");
    }
    let mut complete = true;
    for realm in context.realms.all() {
        // One that is being filled is swept at the end of that; one that nobody has looked at yet
        // comes a little later.
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
    fn only_those_who_are_not_live_are_strangers() {
        let user = |byte| Pseudonym::from_bytes([byte; 16]);
        let live: HashSet<_> = [user(1), user(2)].into();
        assert_eq!(orphaned(&[user(1), user(3)], &live), [user(3)]);
        assert_eq!(orphaned(&[], &live), []);
    }
}
