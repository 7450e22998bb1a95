//! Passes an administrator's request to reset failures to Redis, requeues users whose status
//! differs from what Redis knows about failed attempts, and has spoilt data of users repaired.
//!
//! Redis alone decides which users are disabled. The request is part of what is published, as often
//! as necessary: Redis carries out each value once, also if a refill repeats it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::names::Pseudonym;
use twofactor_store::{Found, StoreError, UserCheck};

use super::publish::PublishError;
use super::subject::Subject;
use crate::k8s::backoff::jittered;
use crate::k8s::events::Notice;
use crate::metrics::number;
use crate::state::realms::{Readiness, Realm};
use crate::state::user_objects::Summary;
use crate::state::user_ref::user_ref;
use crate::state::{Context, random};

/// Interval between checks. Redis does not report which users are disabled, nor what a sidecar has
/// spoilt, and a check is one small script for each user.
const PERIOD: Duration = Duration::from_secs(30);

/// The request to reset the user's failures, as Redis stores it.
pub fn request(realm: &Realm, user: &TwoFactorUser) -> Option<String> {
    let request = user.annotations().get(labels::RESET_FAILURES_ANNOTATION)?;
    Some(realm.publisher.keys().request_tag(request))
}

/// Whether the status says that failed attempts have disabled the user, and no later request has
/// reset them.
pub fn had_disabled(user: &TwoFactorUser) -> bool {
    let request = user.annotations().get(labels::RESET_FAILURES_ANNOTATION);
    let answered = user.status.as_ref().and_then(|status| status.failures_reset.as_ref());
    Summary::of(user).disabled_by_failures && (request.is_none() || request == answered)
}

/// Whether failed attempts have disabled the user.
pub async fn have_disabled(subject: &Subject<'_>) -> Result<bool, PublishError> {
    let store = subject.realm.publisher.store();
    Ok(store.disabled(&[subject.pseudonym()]).await? == [true])
}

/// Returns an Event if the published record carries out a request now. A new user has no failures
/// to reset.
pub fn notice(user: &TwoFactorUser, newcomer: bool) -> Option<Notice> {
    let request = user.annotations().get(labels::RESET_FAILURES_ANNOTATION)?;
    let answered = user.status.as_ref().and_then(|status| status.failures_reset.as_ref());
    (!newcomer && answered != Some(request)).then(|| {
        Notice::normal(
            "FailuresReset",
            "Failed attempts were reset, as requested: no service is blocked, and they do not disable the user",
        )
    })
}

/// Checks all realms until `stop`, and one at once where that is requested. The lists must be
/// complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let next = || Instant::now() + jittered(PERIOD, &mut random());
    let mut next_round = next();
    // Disabled users by realm. A realm that does not answer keeps its last number.
    let mut counts: HashMap<String, usize> = HashMap::new();
    loop {
        let is_round = tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(next_round) => true,
            () = context.realms.registry.check_requested.notified() => false,
        };
        let realms = context.realms.registry.all();
        counts.retain(|namespace, _| realms.iter().any(|realm| realm.namespace == *namespace));
        for realm in realms {
            if realm.readiness() != Readiness::Ready || !(realm.take_check_request() || is_round) {
                continue;
            }
            match check_realm(&context, &realm).await {
                Ok(count) => drop(counts.insert(realm.namespace.clone(), count)),
                Err(error) => {
                    tracing::debug!(namespace = realm.namespace, %error, "failed to ask Redis which users failed attempts have disabled");
                }
            }
        }
        if is_round {
            next_round = next();
        }
        let all: usize = counts.values().sum();
        context.runtime.metrics.disabled_by_failures.set(number(all));
    }
}

/// Requeues users whose status differs from what Redis knows, or whose data was spoilt. Returns the
/// number of disabled users.
async fn check_realm(context: &Context, realm: &Realm) -> Result<usize, StoreError> {
    let owners: Vec<(Pseudonym, String)> = {
        let usernames = context.users.usernames();
        let owners = usernames.owners(&realm.namespace).unwrap_or_default();
        let keys = realm.publisher.keys();
        owners
            .into_iter()
            .map(|(username, claim)| (keys.pseudonym(username), claim.name.as_ref().to_owned()))
            .collect()
    };
    let (pseudonyms, names): (Vec<Pseudonym>, Vec<String>) = owners.into_iter().unzip();
    let checks = realm.publisher.store().check_users(&pseudonyms).await?;
    let count = checks.iter().filter(|check| check.disabled).count();
    for (name, UserCheck { found, disabled }) in names.into_iter().zip(checks) {
        let reference = user_ref(&realm.namespace, &name);
        if found != Found::Fine {
            if found == Found::Repaired {
                context.runtime.metrics.repaired(&reference.namespace, &reference.name);
                tracing::warn!(user = %reference, "spoilt data of a user removed from Redis");
            }
            context.users.queue.push(reference);
            continue;
        }
        let Some(status) = context.users.objects.summary(&reference) else { continue };
        // If the user is not ready for another reason, the status has that one.
        let is_news = disabled != status.disabled_by_failures && (!disabled || status.ready);
        if is_news {
            context.users.queue.push(reference);
        }
    }
    if realm.publisher.store().check_counts().await? {
        tracing::warn!(namespace = realm.namespace, "spoilt counts of a realm removed from Redis");
    }
    Ok(count)
}
