//! Compares the users of each realm in Redis with the users that there should be: removes orphaned
//! ones, and requeues those whose record is missing or differs.
//!
//! Each realm has its own due time: at once when it has become ready, and then every ten minutes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use twofactor_api::TwoFactorUser;
use twofactor_api::validate::validate;
use twofactor_core::names::Pseudonym;
use twofactor_core::record::UserRecord;
use twofactor_store::{Published, StoreError};

use crate::k8s::backoff::jittered;
use crate::metrics::{Metrics, Pass};
use crate::state::realms::{Readiness, Realm};
use crate::state::user_ref::user_ref;
use crate::state::{Context, random};

/// Interval between comparisons of a realm.
const PERIOD: Duration = Duration::from_mins(10);
/// Delay before a comparison that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Number of records that are read at once.
const BATCH: usize = 1000;

/// Compares realms until `stop`. The lists must be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    // Without it, the metric of a leader whose comparisons all fail would be absent, and no alert.
    context.runtime.metrics.passed(Pass::Comparison, context.runtime.clock.now());
    while !stop.is_cancelled() {
        let compared = stop.run_until_cancelled(compare_due(&context)).await;
        let Some(next) = compared else { return };
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep_until(next.into()) => {}
            () = context.runtime.comparisons.notified() => {}
        }
    }
}

/// Returns when a realm is compared again.
pub fn next() -> Instant {
    Instant::now() + jittered(PERIOD, &mut random())
}

/// Compares every realm that is due. Returns when the next one is.
async fn compare_due(context: &Context) -> Instant {
    let mut next = Instant::now() + PERIOD;
    let mut complete = true;
    for realm in context.realms.registry.all() {
        // A realm that is not ready is due when it has become ready.
        if realm.readiness() != Readiness::Ready {
            complete = false;
            continue;
        }
        let due = realm.next_comparison();
        if let Some(due) = due.filter(|due| *due > Instant::now()) {
            next = next.min(due);
            continue;
        }
        // Before the comparison, so that a request that comes meanwhile is not lost.
        realm.compare_next(Some(self::next()));
        let result = compare(context, &realm).await;
        Metrics::count(&context.runtime.metrics.sweeps, result.is_ok());
        complete &= result.is_ok();
        if let Err(error) = result {
            // The monitor logs that Redis does not answer.
            tracing::debug!(namespace = realm.namespace, %error, "failed to compare a realm in Redis; trying again");
            realm.compare_next(Some(Instant::now() + jittered(RETRY, &mut random())));
        }
        next = next.min(realm.next_comparison().unwrap_or_else(Instant::now));
    }
    if complete {
        context.runtime.metrics.passed(Pass::Comparison, context.runtime.clock.now());
    }
    next
}

/// Schedules the removal of orphaned users of `realm`, and requeues users whose record is missing
/// or differs.
pub async fn compare(context: &Context, realm: &Realm) -> Result<(), StoreError> {
    schedule_removals(context, realm).await?;
    requeue_changed(context, realm).await
}

/// Schedules the removal of orphaned users of `realm`.
pub async fn schedule_removals(context: &Context, realm: &Realm) -> Result<(), StoreError> {
    if context.runtime.refused.is_unlisted(&realm.namespace) {
        // The users of the realm are not known.
        return Ok(());
    }
    let known = realm.publisher.store().users().await?;
    let orphaned = {
        // The usernames stay locked until the removal is scheduled. A user that claims one of them
        // after that finds the removal pending.
        let usernames = context.users.usernames();
        let Some(owners) = usernames.owners(&realm.namespace) else {
            tracing::warn!(
                namespace = realm.namespace,
                "cleanup skipped, because a TwoFactorUser in this namespace cannot be read"
            );
            return Ok(());
        };
        let keys = realm.publisher.keys();
        let live = owners.iter().map(|(username, _)| keys.pseudonym(username)).collect();
        let orphaned = orphaned(&known, &live);
        for user in &orphaned {
            realm.schedule_removal(*user);
        }
        orphaned.len()
    };
    if orphaned > 0 {
        context.runtime.removals.notify_one();
        context.runtime.metrics.swept.inc_by(orphaned as u64);
        tracing::info!(
            namespace = realm.namespace,
            users = orphaned,
            "removing orphaned users from Redis"
        );
    }
    Ok(())
}

/// Returns the users in Redis that are not `live`.
fn orphaned(known: &[Pseudonym], live: &HashSet<Pseudonym>) -> Vec<Pseudonym> {
    known.iter().filter(|user| !live.contains(user)).copied().collect()
}

/// Requeues users that this process has published and whose record is missing or differs.
async fn requeue_changed(context: &Context, realm: &Realm) -> Result<(), StoreError> {
    let owners: Vec<(Pseudonym, Arc<str>)> = {
        let usernames = context.users.usernames();
        let owners = usernames.owners(&realm.namespace).unwrap_or_default().into_iter();
        let published = owners.filter(|(_, claim)| realm.was_published(&claim.uid));
        let keys = realm.publisher.keys();
        published.map(|(name, claim)| (keys.pseudonym(name), claim.name.clone())).collect()
    };
    for batch in owners.chunks(BATCH) {
        let users: Vec<Pseudonym> = batch.iter().map(|(user, _)| *user).collect();
        let published = realm.publisher.store().published(&users).await?;
        for ((pseudonym, name), published) in batch.iter().zip(published) {
            let reference = user_ref(&realm.namespace, name);
            let Some(user) = context.users.objects.get(&reference) else { continue };
            if !is_current(realm, &user, *pseudonym, &published) {
                context.users.queue.push(reference);
            }
        }
    }
    Ok(())
}

/// Whether what Redis holds of a user is complete and describes it. The seed is not compared: a
/// record names the object and the rotation that its seed belongs to.
fn is_current(
    realm: &Realm,
    user: &TwoFactorUser,
    pseudonym: Pseudonym,
    published: &Published,
) -> bool {
    // An invalid user has no record, and its reconciliation has reported that.
    let Ok(definition) = validate(user) else { return true };
    let opened = published
        .sealed
        .as_ref()
        .and_then(|sealed| UserRecord::open(&realm.publisher.keys(), pseudonym, sealed).ok());
    opened.is_some_and(|(revision, record)| {
        Some(revision) == published.revision
            && record.definition == definition
            && record.provenance.map(|provenance| provenance.owner) == user.uid()
    })
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
