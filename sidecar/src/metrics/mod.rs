//! Metrics for Prometheus. Enters: what happened, as one of a few constant words. Leaves: counters
//! and histograms. No label ever holds a name, an address or anything else that a caller chooses.

pub mod store;

use std::time::Duration;

use http::StatusCode;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use twofactor_store::redis::Strength;

use self::store::{BUCKETS, StoreMetrics};

/// All metrics of the sidecar.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    decisions: IntCounterVec,
    deliveries: IntCounterVec,
    delivery_durations: HistogramVec,
    refused_records: IntCounterVec,
    store_failures: IntCounterVec,
    store_answers: IntGaugeVec,
    namespace_allowed: IntGaugeVec,
    credentials: IntGaugeVec,
    credential_changes: IntCounterVec,
    store: StoreMetrics,
    redis_weakness: IntGaugeVec,
}

impl Metrics {
    /// New metrics in a registry of their own.
    ///
    /// # Errors
    /// Only when a name is not a metric name: a defect.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let requests = counter(
            "twofactor_http_requests_total",
            "Requests to the API's routes, by route and status.",
            &["route", "status"],
        )?;
        let decisions = counter(
            "twofactor_decisions_total",
            "Decisions about codes, by operation and outcome.",
            &["operation", "outcome"],
        )?;
        let deliveries = counter(
            "twofactor_deliveries_total",
            "Deliveries of codes, by channel and outcome.",
            &["channel", "outcome"],
        )?;
        let refused_records = counter(
            "twofactor_records_refused_total",
            "Records from Redis that were not used, by reason: any of these deserves a look.",
            &["reason"],
        )?;
        let store_failures = counter(
            "twofactor_store_failures_total",
            "Looks at the store, one a second, that failed, by reason.",
            &["reason"],
        )?;
        let credential_changes = counter(
            "twofactor_credentials_changes_total",
            "Changes of the mounted credentials, by outcome.",
            &["outcome"],
        )?;
        // A vector also where there is no label, because a value that is not known yet is not shown.
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let store_answers = gauge(
            "twofactor_store_answers",
            "1 when the store answered the last look at it, 0 when not.",
            &[],
        )?;
        let namespace_allowed = gauge(
            "twofactor_namespace_allowed",
            "1 when the realm allows this sidecar's namespace, 0 when not.",
            &[],
        )?;
        let credentials = gauge(
            "twofactor_credentials_current",
            "1 when the credentials in use are those of the folder, 0 when those cannot be used.",
            &[],
        )?;
        let redis_weakness = gauge(
            "twofactor_redis_weakness",
            "1 for a setting of Redis that is weaker than it should be, 0 when not.",
            &["setting"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "twofactor_http_request_duration_seconds",
                "Time from a request's head to its answer.",
            )
            .buckets(BUCKETS.to_vec()),
            &["route"],
        )?;
        registry.register(Box::new(durations.clone()))?;
        let delivery_durations = HistogramVec::new(
            HistogramOpts::new(
                "twofactor_delivery_duration_seconds",
                "Time until a provider took a code or it was known that it does not, by channel.",
            )
            .buckets(BUCKETS.to_vec()),
            &["channel"],
        )?;
        registry.register(Box::new(delivery_durations.clone()))?;
        let build =
            gauge("twofactor_build_info", "Always 1; the version is a label.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            store: StoreMetrics::new(&registry)?,
            registry,
            requests,
            durations,
            decisions,
            deliveries,
            delivery_durations,
            refused_records,
            store_failures,
            store_answers,
            namespace_allowed,
            credentials,
            credential_changes,
            redis_weakness,
        })
    }

    /// What `/metrics` shows.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// What the store is asked for.
    #[must_use]
    pub fn store(&self) -> &StoreMetrics {
        &self.store
    }

    /// A request was answered.
    pub fn request(&self, route: &'static str, status: StatusCode, took: Duration) {
        self.requests.with_label_values(&[route, status.as_str()]).inc();
        self.durations.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// A generate or verify came to an outcome.
    pub fn decision(&self, operation: &'static str, outcome: &'static str) {
        self.decisions.with_label_values(&[operation, outcome]).inc();
    }

    /// A code was sent, or not.
    pub fn delivery(&self, channel: &'static str, outcome: &'static str, took: Duration) {
        self.deliveries.with_label_values(&[channel, outcome]).inc();
        self.delivery_durations.with_label_values(&[channel]).observe(took.as_secs_f64());
    }

    /// A record was there and not used.
    pub fn refused_record(&self, reason: &'static str) {
        self.refused_records.with_label_values(&[reason]).inc();
    }

    /// A look at the store failed.
    pub fn store_failure(&self, reason: &'static str) {
        self.store_failures.with_label_values(&[reason]).inc();
    }

    /// Whether the store answered the last look at it.
    pub fn store_answers(&self, answers: bool) {
        self.store_answers.with_label_values::<&str>(&[]).set(answers.into());
    }

    /// Whether the realm lets this sidecar's namespace in.
    pub fn namespace_allowed(&self, allowed: bool) {
        self.namespace_allowed.with_label_values::<&str>(&[]).set(allowed.into());
    }

    /// How a setting of Redis is. What it does not tell is not shown.
    pub fn redis_setting(&self, setting: &'static str, strength: Strength) {
        if strength == Strength::Unknown {
            let _ = self.redis_weakness.remove_label_values(&[setting]);
        } else {
            self.redis_weakness
                .with_label_values(&[setting])
                .set((strength == Strength::Weak).into());
        }
    }

    /// Whether the credentials in use are those of the folder.
    pub fn credentials_current(&self, current: bool) {
        self.credentials.with_label_values::<&str>(&[]).set(current.into());
    }

    /// The mounted credentials changed, and were taken over or not.
    pub fn credentials_changed(&self, outcome: &'static str) {
        self.credential_changes.with_label_values(&[outcome]).inc();
    }
}
