//! Counts what the controller does, for Prometheus. The common metrics have the names of
//! controller-runtime, so that its dashboards work. No label holds the name of an object.

mod redis;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use twofactor_store::StoreFailure;
use twofactor_store::redis::Strength;

pub use self::redis::RedisUsage;

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
    registry: Registry,
    reconciles: IntCounterVec,
    errors: IntCounter,
    durations: HistogramVec,
    users: IntGaugeVec,
    /// Users in the queue.
    pub queue_depth: IntGauge,
    /// Users that wait until their realm is ready in Redis.
    pub parked: IntGauge,
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
    needs: IntGaugeVec,
    /// `TwoFactorRealm`s that could not be read.
    pub realms_unreadable: IntCounter,
    /// Pods that ask for the sidecar and have none.
    pub pods_not_injected: IntGauge,
    /// Users that failed attempts have disabled.
    pub disabled_by_failures: IntGauge,
    /// Pods whose namespace is not allowed by the realm.
    pub pods_waiting: IntGauge,
    /// Events that were dropped because too many were pending.
    pub events_dropped: IntCounter,
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = collector?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    registered(registry, IntCounter::new(name, help))
}

/// Counts successes and errors.
fn results(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounterVec> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), &["result"]))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    registered(registry, IntGauge::new(name, help))
}

/// Creates a registry with what every process shows.
pub fn registry() -> prometheus::Result<Registry> {
    let registry = Registry::new();
    let options = Opts::new("twofactor_build_info", "Always 1; the version is a label.");
    let build = registered(&registry, IntGaugeVec::new(options, &["version"]))?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    Ok(registry)
}

/// Creates the counter of `TwoFactorRealm`s that could not be read.
pub fn realms_unreadable(registry: &Registry) -> prometheus::Result<IntCounter> {
    counter(
        registry,
        "twofactor_realms_unreadable_total",
        "Times that a TwoFactorRealm was seen that this version cannot read.",
    )
}

fn needs(registry: &Registry) -> prometheus::Result<IntGaugeVec> {
    let options = Opts::new(
        "twofactor_leader_blocked",
        "1 while the leader cannot begin to work, by what it needs.",
    );
    registered(registry, IntGaugeVec::new(options, &["need"]))
}

fn durations(registry: &Registry) -> prometheus::Result<HistogramVec> {
    let options = HistogramOpts::new(
        "controller_runtime_reconcile_time_seconds",
        "Length of time per reconciliation per controller",
    );
    registered(registry, HistogramVec::new(options.buckets(BUCKETS.to_vec()), &["controller"]))
}

fn store_failures(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    let options =
        Opts::new("twofactor_store_failures_total", "Checks of Redis that failed, by reason.");
    registered(registry, IntCounterVec::new(options, &["reason"]))
}

fn kept(registry: &Registry) -> prometheus::Result<IntCounter> {
    counter(
        registry,
        "twofactor_realms_kept_total",
        "Times that a realm was usable without a refill after a restart or failover of Redis.",
    )
}

fn redis_weakness(registry: &Registry) -> prometheus::Result<IntGaugeVec> {
    let options = Opts::new(
        "twofactor_redis_weakness",
        "1 if a setting of Redis is weaker than it should be, otherwise 0.",
    );
    registered(registry, IntGaugeVec::new(options, &["setting"]))
}

impl Metrics {
    /// Creates the metrics and their registry.
    pub fn new() -> prometheus::Result<Self> {
        let registry = registry()?;
        let r = &registry;
        let errors = registered(
            r,
            IntCounterVec::new(
                Opts::new(
                    "controller_runtime_reconcile_errors_total",
                    "Total number of reconciliation errors per controller",
                ),
                &["controller"],
            ),
        )?;
        let depth = registered(
            r,
            IntGaugeVec::new(Opts::new("workqueue_depth", "Current depth of workqueue"), &["name"]),
        )?;
        let metrics = Self {
            reconciles: registered(
                r,
                IntCounterVec::new(
                    Opts::new(
                        "controller_runtime_reconcile_total",
                        "Total number of reconciliations per controller",
                    ),
                    &["controller", "result"],
                ),
            )?,
            errors: errors.with_label_values(&[CONTROLLER]),
            durations: durations(r)?,
            users: registered(
                r,
                IntGaugeVec::new(
                    Opts::new("twofactor_users", "Users, by whether they are ready."),
                    &["ready"],
                ),
            )?,
            queue_depth: depth.with_label_values(&[CONTROLLER]),
            parked: gauge(
                r,
                "twofactor_users_parked",
                "Users that are not reconciled until their realm is ready in Redis.",
            )?,
            unreadable: counter(
                r,
                "twofactor_users_unreadable_total",
                "Times that a TwoFactorUser was seen that this version cannot read.",
            )?,
            refills: results(
                r,
                "twofactor_refills_total",
                "Times that a realm was published again because Redis was new or had lost data.",
            )?,
            kept: kept(r)?,
            swept: counter(r, "twofactor_swept_users_total", "Orphaned users removed from Redis.")?,
            sweeps: results(
                r,
                "twofactor_sweeps_total",
                "Comparisons of the users of a realm in Redis with the user objects.",
            )?,
            leader: gauge(r, "twofactor_leader", "Whether this replica leads.")?,
            store_up: gauge(r, "twofactor_store_up", "Whether Redis answers.")?,
            store_failures: store_failures(r)?,
            redis_weakness: redis_weakness(r)?,
            redis_usage: RedisUsage::new(r)?,
            realms_unreadable: realms_unreadable(r)?,
            needs: needs(r)?,
            disabled_by_failures: gauge(
                r,
                "twofactor_users_disabled_by_failures",
                "Users disabled by a hundred failed attempts in a row, until an administrator resets the failures.",
            )?,
            pods_not_injected: gauge(
                r,
                "twofactor_pods_not_injected",
                "Pods that ask for the sidecar by their label and run without it.",
            )?,
            pods_waiting: gauge(
                r,
                "twofactor_pods_waiting",
                "Pods with the sidecar whose namespace is not allowed by the realm.",
            )?,
            events_dropped: counter(
                r,
                "twofactor_events_dropped_total",
                "Events dropped because too many were pending.",
            )?,
            registry,
        };
        metrics.show_outcomes();
        Ok(metrics)
    }

    /// Creates the counters with 0, so that a rate is right from the first event on.
    fn show_outcomes(&self) {
        for outcome in [Outcome::Success, Outcome::RequeueAfter, Outcome::Error] {
            self.reconciles.with_label_values(&[CONTROLLER, outcome.name()]);
        }
    }

    /// The registry that `/metrics` shows.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
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

    /// Counts a check of Redis that failed.
    pub fn store_failed(&self, failure: StoreFailure) {
        self.store_failures.with_label_values(&[failure.name()]).inc();
    }

    /// Shows whether the leader cannot begin to work, because it lacks what it needs.
    pub fn show_need(&self, need: &'static str, lacking: bool) {
        self.needs.with_label_values(&[need]).set(lacking.into());
    }

    /// Shows the number of users.
    pub fn show_users(&self, ready: usize, others: usize) {
        for (label, count) in [("true", ready), ("false", others)] {
            self.users.with_label_values(&[label]).set(i64::try_from(count).unwrap_or(i64::MAX));
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
