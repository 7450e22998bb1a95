//! Metrics for Prometheus. Labels are constant words: none holds a name, an address or any other
//! text that a caller chooses.

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
    /// Registers the metrics. Fails only if a name is invalid.
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
            "Records from Redis that were not used, by reason; investigate any increase.",
            &["reason"],
        )?;
        let store_failures = counter(
            "twofactor_store_failures_total",
            "Reads of the realm that failed, by reason; there is one a second, or every five without requests.",
            &["reason"],
        )?;
        let credential_changes = counter(
            "twofactor_credentials_changes_total",
            "Changes of the mounted credentials, by outcome.",
            &["outcome"],
        )?;
        // A vector also where there is no label, because a value that is not known yet is not
        // shown.
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let store_answers = gauge(
            "twofactor_store_answers",
            "1 if the store answered the last read of the realm, 0 if not.",
            &[],
        )?;
        let namespace_allowed = gauge(
            "twofactor_namespace_allowed",
            "1 if the realm allows this sidecar's namespace, 0 if not.",
            &[],
        )?;
        let credentials = gauge(
            "twofactor_credentials_current",
            "1 if the credentials in use are those of the folder, 0 if those cannot be used.",
            &[],
        )?;
        let redis_weakness = gauge(
            "twofactor_redis_weakness",
            "1 for a setting of Redis that is too weak, 0 if it is not.",
            &["setting"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "twofactor_http_request_duration_seconds",
                "Time from the head of a request to its answer.",
            )
            .buckets(BUCKETS.to_vec()),
            &["route"],
        )?;
        registry.register(Box::new(durations.clone()))?;
        let delivery_durations = HistogramVec::new(
            HistogramOpts::new(
                "twofactor_delivery_duration_seconds",
                "Time until a provider accepted or refused a code, by channel.",
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

    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    pub fn store(&self) -> &StoreMetrics {
        &self.store
    }

    /// Counts a request.
    pub fn request(&self, route: &'static str, status: StatusCode, took: Duration) {
        self.requests.with_label_values(&[route, status.as_str()]).inc();
        self.durations.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// Counts the outcome of a generate or verify.
    pub fn decision(&self, operation: &'static str, outcome: &'static str) {
        self.decisions.with_label_values(&[operation, outcome]).inc();
    }

    /// Counts a delivery, sent or not.
    pub fn delivery(&self, channel: &'static str, outcome: &'static str, took: Duration) {
        self.deliveries.with_label_values(&[channel, outcome]).inc();
        self.delivery_durations.with_label_values(&[channel]).observe(took.as_secs_f64());
    }

    /// Counts a record that was not used.
    pub fn refused_record(&self, reason: &'static str) {
        self.refused_records.with_label_values(&[reason]).inc();
    }

    /// Counts a failed read of the realm.
    pub fn store_failure(&self, reason: &'static str) {
        self.store_failures.with_label_values(&[reason]).inc();
    }

    pub fn store_answers(&self, answers: bool) {
        self.store_answers.with_label_values::<&str>(&[]).set(answers.into());
    }

    pub fn namespace_allowed(&self, allowed: bool) {
        self.namespace_allowed.with_label_values::<&str>(&[]).set(allowed.into());
    }

    /// Sets the strength of a setting of Redis; an unknown one is not shown.
    pub fn redis_setting(&self, setting: &'static str, strength: Strength) {
        if strength == Strength::Unknown {
            let _ = self.redis_weakness.remove_label_values(&[setting]);
        } else {
            self.redis_weakness
                .with_label_values(&[setting])
                .set((strength == Strength::Weak).into());
        }
    }

    pub fn credentials_current(&self, current: bool) {
        self.credentials.with_label_values::<&str>(&[]).set(current.into());
    }

    /// Counts a change of the mounted credentials, taken over or refused.
    pub fn credentials_changed(&self, outcome: &'static str) {
        self.credential_changes.with_label_values(&[outcome]).inc();
    }
}
