//! Removes the realms of deleted namespaces from Redis. Searches all of Redis for what nothing else
//! finds: once after each start of a leader, after a loss in a Redis Cluster, and every few hours.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use twofactor_core::names::RealmId;
use twofactor_store::StoreError;
use twofactor_store::redis::FoundRealm;

use crate::k8s::backoff::jittered;
use crate::realm::key_states;
use crate::state::{Context, random};

/// Interval between searches without a reason.
const PERIOD: Duration = Duration::from_hours(6);
/// Minimum interval between two searches. Thousands of realms may ask for one at the same time.
const PAUSE: Duration = Duration::from_mins(1);
/// Delay after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Removes leftovers until `stop`. The lists must be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let is_due = &context.runtime.is_search_due;
    let mut next_search = Instant::now() + jittered(PERIOD, &mut random());
    let mut earliest = Instant::now();
    loop {
        let mut next = next_search;
        let searches = Instant::now() >= next_search
            || (is_due.load(Ordering::Relaxed) && Instant::now() >= earliest);
        let work = async {
            remove_deleted(&context).await?;
            if searches {
                is_due.store(false, Ordering::Relaxed);
                search(&context).await.inspect_err(|_| is_due.store(true, Ordering::Relaxed))?;
            }
            Ok::<_, StoreError>(())
        };
        let Some(result) = stop.run_until_cancelled(work).await else { return };
        if let Err(error) = result {
            // The monitor logs that Redis does not answer.
            tracing::debug!(%error, "failed to remove orphaned realms from Redis; trying again");
            next = next.min(Instant::now() + RETRY);
        } else if searches {
            next_search = Instant::now() + jittered(PERIOD, &mut random());
            earliest = Instant::now() + PAUSE;
            next = next_search;
        }
        if is_due.load(Ordering::Relaxed) {
            next = next.min(earliest.max(Instant::now() + RETRY));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(next) => {}
            () = context.runtime.realm_removals.notified() => {}
        }
    }
}

/// Removes the realms of deleted namespaces.
async fn remove_deleted(context: &Context) -> Result<(), StoreError> {
    let registry = &context.realms.registry;
    let deleted = registry.deleted();
    for realm in &deleted {
        // Before the removal, because a write that ends during it has to be noticed.
        registry.forget(realm);
        if let Err(error) = remove_realm(context, realm, &FoundRealm::default()).await {
            registry.not_removed(realm);
            return Err(error);
        }
    }
    forget_keys(context, &deleted).await;
    Ok(())
}

/// Forgets the keys of realms without a namespace.
async fn forget_keys(context: &Context, realms: &[RealmId]) {
    if let Err(error) = key_states::forget(context, realms).await {
        tracing::debug!(%error, "failed to forget the keys of deleted realms; trying again with the next one");
    }
}

/// Searches all of Redis, removes realms without a namespace, and has realms compared in which
/// users were found.
async fn search(context: &Context) -> Result<(), StoreError> {
    let registry = &context.realms.registry;
    let begun = Instant::now();
    let found = registry.store().search(&registry.installation).await?;
    for (id, realm) in &found {
        // A realm without users is kept as long as its namespace exists. Users of other namespaces
        // belong to another operator.
        if let Some(namespace) = registry.namespace_of(id)
            && context.runtime.watched.includes(&namespace)
        {
            let is_new = registry.get(&namespace).is_none();
            if let Ok(known) = registry.get_or_create(&namespace).await {
                if is_new {
                    // Its services need a login too.
                    context.services.credentials_queue.realm_changed(namespace);
                }
                if realm.users_added {
                    known.compare_next(None);
                }
            }
        }
    }
    context.runtime.comparisons.notify_one();
    for id in registry.orphaned(found.keys().cloned()) {
        remove_realm(context, &id, &found[&id]).await?;
    }
    if context.runtime.watched.0.is_empty() {
        // Of an operator that watches some namespaces, the others may only be out of sight.
        let known = registry.keys.all().into_iter().map(|(id, _)| id);
        forget_keys(context, &registry.orphaned(known)).await;
    }
    tracing::info!(realms = found.len(), took = ?begun.elapsed(), "Redis searched for orphaned keys");
    Ok(())
}

async fn remove_realm(
    context: &Context,
    id: &RealmId,
    found: &FoundRealm,
) -> Result<(), StoreError> {
    context.realms.registry.store_of(id).remove_realm(&found.node_keys).await?;
    tracing::info!(realm = %id, "removed an orphaned realm from Redis");
    Ok(())
}
