//! Reads the realm's record again: every second while requests need it, and every 15 seconds
//! otherwise. Checks, metrics and a log line for each change say whether the store answers and
//! whether the realm allows this namespace.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::Check;
use twofactor_store::{StoreError, StoreFailure};

use crate::otp::service::{CurrentService, Service};

/// Interval between two questions whether the realm is to be read again.
///
/// A read is one round trip with the first bytes of the record and an HGETALL of some hundred
/// bytes; the record itself, of some kilobytes, is read only when it has changed. Requests are
/// refused within two seconds after a namespace is no longer allowed, because they read an older
/// realm themselves.
const REFRESH: Duration = Duration::from_secs(1);

/// Interval between two reads of the operator's heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The checks of the store and the realm in `/readyz?verbose`. They do not affect readiness,
/// because an outage of Redis would otherwise take every pod out of its Service.
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

/// Why the store does not answer, nothing if it does; each change is logged.
type StoreState = Option<StoreFailure>;

/// Reads the realm when it is due, until `stop`.
pub(crate) async fn refresh(current: CurrentService, checks: Checks, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut was_allowed, mut was_stale) = (None, true, false);
    let work = async {
        loop {
            ticks.tick().await;
            let service = current.load();
            if !service.records.is_realm_due() {
                continue;
            }
            let result = service.records.refresh_realm().await;
            service.records.refresh_heartbeat(HEARTBEAT).await;
            last = Some(report_store(&service, &checks, result.as_ref(), last));
            was_allowed = report_access(&service, &checks, was_allowed);
            was_stale = report_staleness(&service, was_stale).await;
            // The key is recorded with each read, so that after a replacement it is still published
            // for the services that check its last tokens.
            if let Some(realm) = service.records.known_realm() {
                let (now, time) = (Instant::now(), service.store.now());
                let _ = service.public_keys.current(&realm.record, now, time);
            }
        }
    };
    // A read that takes long does not delay the end of the process.
    stop.run_until_cancelled(work).await;
}

fn report_store(
    service: &Service,
    checks: &Checks,
    result: Result<&(), &StoreError>,
    last: Option<StoreState>,
) -> StoreState {
    let error = result.err();
    let state = error.map(StoreError::failure);
    if last != Some(state) {
        let cause = error.and_then(std::error::Error::source).map(ToString::to_string);
        match state {
            None => tracing::info!("the store answers"),
            Some(StoreFailure::AccessRefused) => tracing::warn!(
                cause,
                "Redis refuses access to this sidecar; requests are answered with 503 until it grants it"
            ),
            Some(StoreFailure::TooManyClients) => tracing::warn!(
                "Redis has too many clients; requests are answered with 503 until it accepts this one"
            ),
            // Reading the realm runs no script.
            Some(StoreFailure::NoAnswer | StoreFailure::ScriptsMissing) => {
                let error = error.map(ToString::to_string);
                tracing::warn!(
                    error,
                    cause,
                    "Redis does not answer; requests are answered with 503 until it does"
                );
            }
        }
    }
    if let Some(failure) = state {
        service.metrics.store_failure(failure.name());
    }
    service.metrics.store_answers(state.is_none());
    checks.redis.set(state.is_none());
    state
}

/// Reports whether an operator has worked within the time that the realm demands.
async fn report_staleness(service: &Service, was_stale: bool) -> bool {
    let Some(realm) = service.records.known_realm() else { return was_stale };
    let is_stale = service.records.is_stale(&realm.record).await;
    if is_stale && !was_stale {
        tracing::warn!(
            age = ?service.records.heartbeat_age(),
            "no operator has worked for longer than the realm allows; requests are answered with 503"
        );
    }
    if was_stale && !is_stale {
        tracing::info!("an operator works again");
    }
    is_stale
}

/// Reports whether the realm allows this namespace, if the realm is known.
fn report_access(service: &Service, checks: &Checks, was_allowed: bool) -> bool {
    let Some(allowed) =
        service.records.known_realm().map(|realm| service.is_allowed(&realm.record))
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
