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
use crate::realm::credentials::Request;
use crate::state::Context;
use crate::state::queue::user_ref;
use crate::state::realms::{Readiness, Realm};

/// How often to look for what is left over, although nothing should be.
const SAFETY_NET: Duration = Duration::from_mins(10);
/// How soon to try again.
const RETRY: Duration = Duration::from_secs(1);

/// Of everybody whom the store knows, those who are not `live`.
#[must_use]
pub fn strangers<S: BuildHasher>(
    known: &[Pseudonym],
    live: &HashSet<Pseudonym, S>,
) -> Vec<Pseudonym> {
    known.iter().filter(|user| !live.contains(user)).copied().collect()
}

/// Removes from the store whoever is not a user of `realm`. Users of whom the store knows nothing,
/// although they have been published, are looked at again. Tells how many were removed.
///
/// # Errors
/// When the store does not answer.
pub async fn sweep(context: &Context, realm: &Realm) -> Result<usize, StoreError> {
    let known = realm.publisher.store().users().await?;
    // Nobody is published between the look at the index and the removal.
    let _alone = realm.gate.write().await;
    let (live, missing) = {
        let index = context.index();
        let Some(owners) = index.owners(&realm.namespace) else {
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
            if !known.contains(&pseudonym) && realm.is_settled(&claim.uid) {
                missing.push(claim.name.clone());
            }
            live.insert(pseudonym);
        }
        (live, missing)
    };
    for name in missing {
        context.queue.push(user_ref(&realm.namespace, &name));
    }
    let strangers = strangers(&known, &live);
    realm.publisher.store().remove(&strangers).await?;
    if !strangers.is_empty() {
        context.metrics.swept.inc_by(strangers.len() as u64);
        tracing::info!(
            namespace = realm.namespace,
            users = strangers.len(),
            "removed users who are gone from Redis"
        );
    }
    Ok(strangers.len())
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
                next_sweep = Instant::now() + jittered(SAFETY_NET, &mut context.random());
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
        if realm.vacated().is_empty() {
            continue;
        }
        let _alone = realm.gate.write().await;
        let vacated = realm.vacated();
        realm.publisher.store().remove(&vacated).await?;
        realm.cleared(&vacated);
    }
    for realm in context.realms.abandoned() {
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
            && context.scopes.cover(&namespace)
        {
            let is_new = context.realms.get(&namespace).is_none();
            if context.realms.of(&namespace).await.is_ok() && is_new {
                // Its services have a login, too.
                let _ = context.credentials.send(Request::Realm(namespace));
            }
        }
    }
    for realm in context.realms.strangers(known) {
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
        assert_eq!(strangers(&[user(1), user(3)], &live), [user(3)]);
        assert_eq!(strangers(&[], &live), []);
    }
}
