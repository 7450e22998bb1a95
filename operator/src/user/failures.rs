//! Passes an administrator's request to reset failures to Redis, requeues users whose status
//! differs from what Redis knows about failed attempts, and has spoilt data of users repaired.
//!
//! Redis alone decides which users are disabled. The request is part of what is published, as often
//! as necessary: Redis carries out each value once, also if a refill repeats it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::{Instant, sleep, sleep_until};
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
use crate::state::user_ref::{UserRef, user_ref};
use crate::state::{Context, random};

/// Shortest interval between two checks of a user. Redis does not report which users are disabled,
/// nor what a sidecar has spoilt, and a check is one small script for each user.
const PERIOD: Duration = Duration::from_secs(30);
/// Number of users that are asked for in one request.
const CHUNK: u32 = 100;
/// Interval between two such requests, so that Redis runs at most 1,000 of these scripts a second,
/// which is about 1 % of its time. With more than 30,000 users, the interval between two checks of
/// a user is longer than [`PERIOD`].
const PAUSE: Duration = Duration::from_millis(100);

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

/// Checks all realms in turn until `stop`, and one at once where that is requested. The lists must
/// be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let checks = async { tokio::join!(check_in_turn(&context), check_at_once(&context)) };
    stop.run_until_cancelled(checks).await;
}

async fn check_in_turn(context: &Context) -> Infallible {
    let pause = || jittered(PERIOD, &mut random());
    let mut next = Instant::now() + pause();
    // Disabled users by realm. A realm that does not answer keeps its last number.
    let mut counts: HashMap<String, usize> = HashMap::new();
    loop {
        sleep_until(next).await;
        next = Instant::now() + pause();
        let realms = context.realms.registry.all();
        counts.retain(|namespace, _| realms.iter().any(|realm| realm.namespace == *namespace));
        for realm in realms {
            if let Some(count) = check_realm(context, &realm).await {
                counts.insert(realm.namespace.clone(), count);
            }
        }
        let all: usize = counts.values().sum();
        context.runtime.metrics.disabled_by_failures.set(number(all));
    }
}

async fn check_at_once(context: &Context) -> Infallible {
    loop {
        context.realms.registry.check_requested.notified().await;
        for realm in context.realms.registry.all() {
            if realm.take_check_request() {
                check_realm(context, &realm).await;
            }
        }
    }
}

/// Checks a realm that is ready. Returns the number of disabled users, unless Redis does not
/// answer.
async fn check_realm(context: &Context, realm: &Realm) -> Option<usize> {
    if realm.readiness() != Readiness::Ready {
        return None;
    }
    match check_users(context, realm).await {
        Ok(count) => Some(count),
        Err(error) => {
            tracing::debug!(namespace = realm.namespace, %error, "failed to ask Redis which users failed attempts have disabled");
            None
        }
    }
}

/// Checks all users of a realm. Returns the number of disabled ones.
async fn check_users(context: &Context, realm: &Realm) -> Result<usize, StoreError> {
    let owners: Vec<(Pseudonym, String)> = {
        let usernames = context.users.usernames();
        let owners = usernames.owners(&realm.namespace).unwrap_or_default();
        let keys = realm.publisher.keys();
        owners
            .into_iter()
            .map(|(username, claim)| (keys.pseudonym(username), claim.name.as_ref().to_owned()))
            .collect()
    };
    let mut count = 0;
    for chunk in owners.chunks(CHUNK as usize) {
        let pseudonyms: Vec<Pseudonym> = chunk.iter().map(|(pseudonym, _)| *pseudonym).collect();
        let checks = realm.publisher.store().check_users(&pseudonyms).await?;
        count += checks.iter().filter(|check| check.disabled).count();
        for ((_, name), check) in chunk.iter().zip(checks) {
            take_note(context, &user_ref(&realm.namespace, name), check);
        }
        sleep(PAUSE * u32::try_from(chunk.len()).unwrap_or(CHUNK) / CHUNK).await;
    }
    if realm.publisher.store().check_counts().await? {
        tracing::warn!(namespace = realm.namespace, "spoilt counts of a realm removed from Redis");
    }
    Ok(count)
}

/// Requeues a user whose status differs from what Redis knows, or whose data was spoilt.
fn take_note(context: &Context, user: &UserRef, UserCheck { found, disabled }: UserCheck) {
    if found != Found::Fine {
        if found == Found::Repaired {
            context.runtime.metrics.repaired(&user.namespace, &user.name);
            tracing::warn!(%user, "spoilt data of a user removed from Redis");
        }
        context.users.queue.push(user.clone());
        return;
    }
    let Some(status) = context.users.objects.summary(user) else { return };
    // If the user is not ready for another reason, the status has that one.
    let is_news = disabled != status.disabled_by_failures && (!disabled || status.ready);
    if is_news {
        context.users.queue.push(user.clone());
    }
}
