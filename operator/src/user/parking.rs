//! Parks users whose realm is not ready in Redis, and requeues them when it is. While Redis is
//! unavailable, nothing is read for them.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio_util::sync::CancellationToken;
use twofactor_api::{TwoFactorUser, labels};

use super::fetch::had_secret;
use crate::state::Context;
use crate::state::realms::Readiness;

/// Maximum time for which a new or changed user waits for a realm that is being checked or filled,
/// before its Secret is created and the delay is reported.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a user is reconciled now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It is reconciled.
    Open,
    /// It is parked, for at most this time if there is one.
    Closed(Option<Duration>),
}

/// Decides whether a user is reconciled, by the readiness of its realm, which it has had for
/// `elapsed`. A user whose status is about its current state has nothing to tell.
pub fn gate(readiness: Readiness, elapsed: Duration, is_reported: bool) -> Gate {
    match readiness {
        Readiness::Ready => Gate::Open,
        _ if is_reported => Gate::Closed(None),
        Readiness::Pending => match PATIENCE.saturating_sub(elapsed) {
            Duration::ZERO => Gate::Open,
            rest => Gate::Closed(Some(rest)),
        },
        Readiness::Unavailable | Readiness::OwnedByAnother => Gate::Open,
    }
}

/// Whether the user has a Secret, and its status is about its current state.
pub fn is_reported(user: &TwoFactorUser) -> bool {
    let Some(status) = &user.status else { return false };
    let rotate = user.annotations().get(labels::ROTATE_ANNOTATION);
    had_secret(user)
        && status.observed_generation == user.metadata.generation
        && (rotate.is_none() || rotate == status.rotated.as_ref())
}

/// Requeues parked users when their realm is ready, until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let became_ready = &context.realms.registry.became_ready;
    while stop.run_until_cancelled(became_ready.notified()).await.is_some() {
        for namespace in context.users.queue.parked_namespaces() {
            wake_if_ready(&context, &namespace);
        }
    }
}

/// Requeues the parked users of a namespace if its realm is ready or does not exist any more.
pub fn wake_if_ready(context: &Context, namespace: &str) {
    let realm = context.realms.registry.get(namespace);
    if realm.is_none_or(|realm| realm.readiness() == Readiness::Ready) {
        context.users.queue.wake(namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_wait_for_their_realm_and_only_new_and_changed_ones_are_reported() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        for (readiness, elapsed, is_reported, expected) in [
            (Readiness::Ready, second, false, Gate::Open),
            (Readiness::Ready, second, true, Gate::Open),
            (Readiness::Pending, second, true, Gate::Closed(None)),
            (Readiness::Pending, second, false, Gate::Closed(Some(second))),
            (Readiness::Pending, minute, false, Gate::Open),
            (Readiness::Unavailable, second, false, Gate::Open),
            (Readiness::Unavailable, minute, true, Gate::Closed(None)),
        ] {
            assert_eq!(
                gate(readiness, elapsed, is_reported),
                expected,
                "{readiness:?} {elapsed:?}"
            );
        }
    }
}
