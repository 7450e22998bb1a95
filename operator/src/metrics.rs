//! Counts what the controller does, for Prometheus. The common metrics have the names of
//! controller-runtime, so that its dashboards work. No label holds the name of an object, except
//! those of the few users whose data was spoilt.

mod number;
mod redis;
mod repaired;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::Metric;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use twofactor_core::time::UnixMillis;
use twofactor_server::metrics::Registrar;
use twofactor_store::StoreFailure;
use twofactor_store::redis::Strength;

pub use self::number::number;
pub use self::redis::RedisUsage;
use self::repaired::RepairedUsers;

/// The value of the labels `controller` and `name`.
pub const CONTROLLER: &str = "twofactoruser";
/// controller-runtime's buckets, without the finest.
const BUCKETS: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0];

/// How a reconciliation ended, as controller-runtime calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The user is up to date.
    Success,
    /// The user is requeued after a while.
    RequeueAfter,
    /// The reconciliation failed.
    Error,
}

/// All metrics of the controller.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: IntCounterVec,
    errors: IntCounter,
    durations: HistogramVec,
    users: IntGaugeVec,
    users_not_ready: Reasons,
    realms: IntGaugeVec,
    replacing_keys: IntGauge,
    realms_not_ready: Reasons,
    realm_states: IntGaugeVec,
    passes: IntGaugeVec,
    /// Users in the queue.
    pub queue_depth: IntGauge,
    /// Users that wait until their realm is ready in Redis.
    pub parked: IntGauge,
    /// Users whose records have to be removed from Redis.
    pub removals_pending: IntGauge,
    /// User objects that could not be read.
    pub unreadable: IntCounter,
    /// Refills of realms in Redis.
    pub refills: IntCounterVec,
    /// Realms that were usable without a refill after Redis was replaced.
    pub kept: IntCounter,
    /// Orphaned users that were removed from Redis.
    pub swept: IntCounter,
    /// Comparisons of the users of a realm in Redis.
    pub sweeps: IntCounterVec,
    /// Whether this replica leads.
    pub leader: IntGauge,
    /// Whether Redis answers.
    pub store_up: IntGauge,
    store_failures: IntCounterVec,
    redis_weakness: IntGaugeVec,
    /// What Redis uses of its memory and clients, and its clock.
    pub redis_usage: RedisUsage,
    /// Whether the configured access to Redis is in use.
    pub redis_access_current: IntGauge,
    redis_certificates: IntGaugeVec,
    needs: IntGaugeVec,
    /// `TwoFactorRealm`s that could not be read.
    pub realms_unreadable: IntCounter,
    /// Pods that ask for the sidecar and have none.
    pub pods_not_injected: IntGauge,
    /// Users that failed attempts have disabled.
    pub disabled_by_failures: IntGauge,
    repaired: RepairedUsers,
    /// Times that histories were shortened.
    pub histories_shortened: IntCounter,
    /// Pods whose namespace is not allowed by the realm.
    pub pods_waiting: IntGauge,
    /// Pods whose sidecar has another version.
    pub pods_outdated: IntGauge,
    /// Events that were dropped because too many were pending.
    pub events_dropped: IntCounter,
}

/// A pass over all realms in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Redis answered what it knows of the realms that were due.
    Check,
    /// The users of every realm were compared with the user objects.
    Comparison,
}

impl Pass {
    const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Comparison => "comparison",
        }
    }
}

/// Creates a registrar with what every process shows.
pub fn registrar() -> prometheus::Result<Registrar> {
    Registrar::of_version(env!("CARGO_PKG_VERSION"))
}

/// Creates the counter of `TwoFactorRealm`s that could not be read.
pub fn realms_unreadable(registrar: &mut Registrar) -> prometheus::Result<IntCounter> {
    registrar.counter(
        "twofactor_realms_unreadable_total",
        "Times that the program saw a TwoFactorRealm that this version cannot read.",
    )
}

impl Metrics {
    /// Registers the metrics.
    #[allow(clippy::too_many_lines, reason = "a list with one entry for each metric")]
    pub fn new(r: &mut Registrar) -> prometheus::Result<Self> {
        let errors = r.counters(
            "controller_runtime_reconcile_errors_total",
            &["controller"],
            "Reconciles that failed.",
        )?;
        let depth = r.gauges("workqueue_depth", &["name"], "Users that wait to be reconciled.")?;
        let metrics = Self {
            reconciles: r.counters(
                "controller_runtime_reconcile_total",
                &["controller", "result"],
                "Reconciles of users by result: success, requeue_after, error.",
            )?,
            errors: errors.with_label_values(&[CONTROLLER]),
            durations: r.histograms(
                "controller_runtime_reconcile_time_seconds",
                &["controller"],
                &BUCKETS,
                "Duration of reconciles.",
            )?,
            users: r.gauges("twofactor_users", &["ready"], "Users, by whether they are ready.")?,
            users_not_ready: Reasons::new(r.gauges(
                "twofactor_users_not_ready",
                &["reason"],
                "Users that are not ready, by the reason of the condition; none while they have no condition.",
            )?),
            realms: r.gauges(
                "twofactor_realms",
                &["ready"],
                "TwoFactorRealm objects, by whether they are ready.",
            )?,
            replacing_keys: r.gauge(
                "twofactor_realms_replacing_keys",
                "Realms whose keys are being replaced. It takes some minutes; longer if a pod has a sidecar of another version.",
            )?,
            realms_not_ready: Reasons::new(r.gauges(
                "twofactor_realms_not_ready",
                &["reason"],
                "TwoFactorRealm objects that are not ready, by the reason of the condition.",
            )?),
            realm_states: r.gauges(
                "twofactor_realm_states",
                &["state"],
                "Namespaces with users by the state of their realm in Redis: ready, filling, unavailable, owned-by-another.",
            )?,
            queue_depth: depth.with_label_values(&[CONTROLLER]),
            parked: r.gauge(
                "twofactor_users_parked",
                "Users that are not reconciled until their realm is ready in Redis.",
            )?,
            removals_pending: r.gauge(
                "twofactor_removals_pending",
                "Users without an object whose records have to be removed from Redis.",
            )?,
            unreadable: r.counter(
                "twofactor_users_unreadable_total",
                "Times that the operator saw a TwoFactorUser that this version cannot read.",
            )?,
            refills: r.counters(
                "twofactor_refills_total",
                &["result"],
                "Times that a realm was published again because Redis was new or had lost data.",
            )?,
            kept: r.counter(
                "twofactor_realms_kept_total",
                "Times that a realm was usable without a refill after a restart or failover of Redis.",
            )?,
            swept: r.counter("twofactor_swept_users_total", "Orphaned users removed from Redis.")?,
            sweeps: r.counters(
                "twofactor_sweeps_total",
                &["result"],
                "Comparisons of the users of a realm in Redis with the TwoFactorUser objects.",
            )?,
            passes: r.gauges(
                "twofactor_last_pass_timestamp_seconds",
                &["pass"],
                "Unix time at which the leader last completed a pass over the realms without an error: check (every second), comparison (every ten minutes; before the first one, when this replica began with it).",
            )?,
            leader: r.gauge("twofactor_leader", "1 if this replica is the leader, otherwise 0.")?,
            store_up: r.gauge(
                "twofactor_store_up",
                "1 if Redis answers the leader, otherwise 0.",
            )?,
            store_failures: r.counters(
                "twofactor_store_failures_total",
                &["reason"],
                "Checks of Redis that failed: no-answer, access-refused, too-many-clients, scripts-missing.",
            )?,
            redis_weakness: r.gauges(
                "twofactor_redis_weakness",
                &["setting"],
                "1 for a setting of Redis that is weaker than it should be, otherwise 0; absent if it is unknown.",
            )?,
            redis_usage: RedisUsage::new(r)?,
            realms_unreadable: realms_unreadable(r)?,
            redis_access_current: r.gauge(
                "twofactor_redis_access_current",
                "1 if the password and the certificates that are configured for Redis are in use, 0 if Redis does not accept them (yet), or they cannot be read.",
            )?,
            redis_certificates: r.gauges(
                "twofactor_redis_certificate_end_timestamp_seconds",
                &["certificate"],
                "When the first certificate ends of those that connections to Redis use: authority, client or server; absent without one, and server without one that the operator makes.",
            )?,
            needs: r.gauges(
                "twofactor_leader_blocked",
                &["need"],
                "1 while the leader cannot begin to work, because it lacks installation, master-key, redis-certificate, redis-password or redis-owner; the log and an Event say why.",
            )?,
            disabled_by_failures: r.gauge(
                "twofactor_users_disabled_by_failures",
                "Users that a hundred failed attempts in a row have disabled, until an administrator resets the failures.",
            )?,
            repaired: RepairedUsers::new(r)?,
            histories_shortened: r.counter(
                "twofactor_histories_shortened_total",
                "Times that the histories of all users were shortened, because the memory of Redis was almost full.",
            )?,
            pods_not_injected: r.gauge(
                "twofactor_pods_not_injected",
                "Labelled pods that run without the sidecar.",
            )?,
            pods_waiting: r.gauge(
                "twofactor_pods_waiting",
                "Pods with the sidecar that wait for credentials, because the realm does not allow their namespace or has no users.",
            )?,
            pods_outdated: r.gauge(
                "twofactor_pods_outdated",
                "Pods whose sidecar was added by another version of the operator.",
            )?,
            events_dropped: r.counter(
                "twofactor_events_dropped_total",
                "Events that were not emitted because too many were waiting.",
            )?,
        };
        metrics.show_outcomes();
        Ok(metrics)
    }

    /// Creates the counters with 0, so that a rate is right from the first event on.
    fn show_outcomes(&self) {
        // The leader alone follows it.
        self.redis_access_current.set(1);
        for outcome in [Outcome::Success, Outcome::RequeueAfter, Outcome::Error] {
            self.reconciles.with_label_values(&[CONTROLLER, outcome.name()]);
        }
        for counter in [&self.refills, &self.sweeps] {
            for result in ["success", "error"] {
                counter.with_label_values(&[result]);
            }
        }
    }

    /// Shows when a certificate for Redis ends.
    pub fn show_redis_certificate(&self, kind: &str, end: Option<UnixMillis>) {
        match end {
            Some(end) => {
                self.redis_certificates.with_label_values(&[kind]).set(number(end.seconds()));
            }
            None => drop(self.redis_certificates.remove_label_values(&[kind])),
        }
    }

    /// Records that a pass has ended without an error.
    pub fn passed(&self, pass: Pass, now: UnixMillis) {
        self.passes.with_label_values(&[pass.name()]).set(number(now.seconds()));
    }

    /// Counts a reconciliation and records its duration.
    pub fn reconciled(&self, outcome: Outcome, took: Duration) {
        self.reconciles.with_label_values(&[CONTROLLER, outcome.name()]).inc();
        if outcome == Outcome::Error {
            self.errors.inc();
        }
        self.durations.with_label_values(&[CONTROLLER]).observe(took.as_secs_f64());
    }

    /// Counts a success or an error.
    pub fn count(counter: &IntCounterVec, success: bool) {
        counter.with_label_values(&[if success { "success" } else { "error" }]).inc();
    }

    /// Shows whether a setting of Redis is weak. An unknown setting is not shown.
    pub fn show_setting(&self, setting: &'static str, strength: Strength) {
        if strength == Strength::Unknown {
            let _ = self.redis_weakness.remove_label_values(&[setting]);
        } else {
            self.redis_weakness
                .with_label_values(&[setting])
                .set((strength == Strength::Weak).into());
        }
    }

    /// Counts a user whose data a sidecar had spoilt.
    pub fn repaired(&self, namespace: &str, name: &str) {
        self.repaired.count(namespace, name);
    }

    /// Counts a check of Redis that failed.
    pub fn store_failed(&self, failure: StoreFailure) {
        self.store_failures.with_label_values(&[failure.name()]).inc();
    }

    /// Shows whether the leader cannot begin to work, because it lacks what it needs.
    pub fn show_need(&self, need: &'static str, lacking: bool) {
        self.needs.with_label_values(&[need]).set(lacking.into());
    }

    /// Shows the number of realms whose keys are being replaced.
    pub fn show_replacing_keys(&self, realms: usize) {
        self.replacing_keys.set(i64::try_from(realms).unwrap_or(i64::MAX));
    }

    /// Shows the number of users, of which those that are not ready by reason.
    pub fn show_users(&self, ready: usize, others: &BTreeMap<&'static str, usize>) {
        show_ready(&self.users, ready, others);
        self.users_not_ready.show(others);
    }

    /// Shows the number of realm objects, of which those that are not ready by reason.
    pub fn show_realms(&self, ready: usize, others: &BTreeMap<String, usize>) {
        show_ready(&self.realms, ready, others);
        self.realms_not_ready.show(others);
    }

    /// Shows the number of realms in each state.
    pub fn show_realm_states(&self, states: [(&'static str, usize); 4]) {
        for (state, realms) in states {
            self.realm_states.with_label_values(&[state]).set(number(realms));
        }
    }
}

fn show_ready<R>(gauges: &IntGaugeVec, ready: usize, others: &BTreeMap<R, usize>) {
    for (label, count) in [("true", ready), ("false", others.values().sum::<usize>())] {
        gauges.with_label_values(&[label]).set(number(count));
    }
}

/// Gauges by reason. A reason that was shown is 0 when it has no object any more, so that a graph
/// falls and does not end.
#[derive(Clone, Debug)]
struct Reasons(IntGaugeVec);

impl Reasons {
    const fn new(gauges: IntGaugeVec) -> Self {
        Self(gauges)
    }

    fn show<R: Borrow<str> + Ord>(&self, counts: &BTreeMap<R, usize>) {
        for family in self.0.collect() {
            for shown in family.get_metric().iter().flat_map(Metric::get_label) {
                if !counts.contains_key(shown.value()) {
                    self.0.with_label_values(&[shown.value()]).set(0);
                }
            }
        }
        for (reason, count) in counts {
            self.0.with_label_values(&[reason.borrow()]).set(number(*count));
        }
    }
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::RequeueAfter => "requeue_after",
            Self::Error => "error",
        }
    }
}
