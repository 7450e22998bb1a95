//! Keeps a running sidecar's knowledge of its realm current. Enters: the present service. Leaves:
//! checks, metrics and a log line for each change: whether the store answers, and whether the realm
//! lets this namespace in.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::Check;
use twofactor_store::StoreError;

use crate::otp::service::{Current, Service};

/// How often the realm's record and the guards are read again. A namespace that is no longer let in
/// is refused within two seconds, reading and waiting included.
///
/// For Redis that is one round trip with a GET and an HGETALL, per sidecar and second. A thousand
/// sidecars are a thousand of them in a second, spread by the moments at which their pods started:
/// a few per cent of one core, where Redis does a hundred thousand and more. The record is a few
/// hundred bytes, and some kilobytes with a CA bundle and 256 namespaces.
const REFRESH: Duration = Duration::from_secs(1);

/// What `/readyz?verbose` tells about the store and the realm. None of it affects readiness: an
/// outage of Redis would take every pod out of its Service.
#[derive(Clone, Debug)]
pub(crate) struct Checks {
    pub(crate) redis: Check,
    pub(crate) namespace_allowed: Check,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Self {
            redis: Check::informational("redis"),
            namespace_allowed: Check::informational("namespace-allowed"),
        }
    }
}

/// What a look at the store came to; each change is worth a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    AccessRefused,
    Failed,
}

/// Looks at the realm every second until it is told to stop.
pub(crate) async fn refresh(current: Current, checks: Checks, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut was_allowed) = (None, true);
    let work = async {
        loop {
            ticks.tick().await;
            let service = current.load();
            let result = service.records.refresh_realm().await;
            last = Some(tell_outcome(&service, &checks, result.as_ref(), last));
            was_allowed = tell_allowed(&service, &checks, was_allowed);
            // Seen every second, so that a key that is replaced is still shown to those who check
            // the last tokens of it.
            let realm = service.records.known_realm();
            let tokens = realm.as_ref().and_then(|realm| realm.1.tokens.as_ref());
            let _ = service.public_keys.current(tokens, Instant::now());
        }
    };
    // A look that takes its time does not keep the process from ending.
    stop.run_until_cancelled(work).await;
}

fn tell_outcome(
    service: &Service,
    checks: &Checks,
    result: Result<&(), &StoreError>,
    last: Option<Outcome>,
) -> Outcome {
    let (outcome, cause) = match result {
        Ok(()) => (Outcome::Answered, None),
        Err(error) => {
            let outcome =
                if error.is_access_refused() { Outcome::AccessRefused } else { Outcome::Failed };
            (outcome, std::error::Error::source(error).map(ToString::to_string))
        }
    };
    if last != Some(outcome) {
        match outcome {
            Outcome::Answered => tracing::info!("the store answers"),
            Outcome::AccessRefused => tracing::warn!(
                cause,
                "Redis refuses access to this sidecar; requests are answered with 503 until it grants it"
            ),
            Outcome::Failed => {
                let error = result.err().map(ToString::to_string);
                tracing::warn!(
                    error,
                    cause,
                    "Redis does not answer; requests are answered with 503 until it does"
                );
            }
        }
    }
    match outcome {
        Outcome::Answered => {}
        Outcome::AccessRefused => service.metrics.store_failure("access-refused"),
        Outcome::Failed => service.metrics.store_failure("no-answer"),
    }
    service.metrics.store_answers(outcome == Outcome::Answered);
    checks.redis.set(outcome == Outcome::Answered);
    outcome
}

/// Tells whether the realm lets this namespace in, as far as it is known.
fn tell_allowed(service: &Service, checks: &Checks, was_allowed: bool) -> bool {
    let Some(allowed) = service.records.known_realm().map(|realm| service.is_allowed(&realm.1))
    else {
        return was_allowed;
    };
    if was_allowed && !allowed {
        tracing::warn!(
            caller = %service.caller,
            "the realm does not allow this namespace; requests are answered with 503 until it does"
        );
    }
    if !was_allowed && allowed {
        tracing::info!(caller = %service.caller, "the realm allows this namespace");
    }
    service.metrics.namespace_allowed(allowed);
    checks.namespace_allowed.set(allowed);
    allowed
}
