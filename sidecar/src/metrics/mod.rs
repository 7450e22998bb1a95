//! Metrics for Prometheus. Labels are constant words: none holds a name, an address or any other
//! text that a caller chooses.

pub mod store;

use std::time::Duration;

use http::StatusCode;
use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Registry};
use twofactor_server::metrics::Registrar;
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
    heartbeat_age: GaugeVec,
    credentials: IntGaugeVec,
    credential_changes: IntCounterVec,
    codes_exposed: IntGaugeVec,
    store: StoreMetrics,
    redis_weakness: IntGaugeVec,
}

impl Metrics {
    /// Registers the metrics of a new registry. Fails only if a name is invalid.
    pub fn new() -> Result<Self, prometheus::Error> {
        Self::register(&mut Registrar::of_version(env!("CARGO_PKG_VERSION"))?)
    }

    /// Registers the metrics.
    pub fn register(r: &mut Registrar) -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: r.counters(
                "twofactor_http_requests_total",
                &["route", "status"],
                "Requests to the API's routes.",
            )?,
            durations: r.histograms(
                "twofactor_http_request_duration_seconds",
                &["route"],
                &BUCKETS,
                "Time from the head of a request to its answer.",
            )?,
            decisions: r.counters(
                "twofactor_decisions_total",
                &["operation", "outcome"],
                "Decisions about codes: generate or verify, and the outcome.",
            )?,
            deliveries: r.counters(
                "twofactor_deliveries_total",
                &["channel", "outcome"],
                "Deliveries of codes: email, sms or webhook, and the outcome. With uniform answers, each request counts as channel any and outcome answered, whether or not the name is that of a user.",
            )?,
            delivery_durations: r.histograms(
                "twofactor_delivery_duration_seconds",
                &["channel"],
                &BUCKETS,
                "Time until a provider accepted a code, or the delivery failed.",
            )?,
            refused_records: r.counters(
                "twofactor_records_refused_total",
                &["reason"],
                "Records from Redis that were not used: truncated, format, key-generation, not-authentic, content, rolled-back. Investigate each of them.",
            )?,
            // Vectors also where there is no label, because a value that is not known yet is not
            // shown.
            store_answers: r.gauges(
                "twofactor_store_answers",
                &[],
                "1 if Redis answered the last check (one a second, or every five without requests), otherwise 0.",
            )?,
            store_failures: r.counters(
                "twofactor_store_failures_total",
                &["reason"],
                "Checks of Redis that failed: no-answer, access-refused, too-many-clients, scripts-missing.",
            )?,
            store: StoreMetrics::new(r)?,
            namespace_allowed: r.gauges(
                "twofactor_namespace_allowed",
                &[],
                "1 if the realm allows this sidecar's namespace, otherwise 0.",
            )?,
            heartbeat_age: r.fractions(
                "twofactor_operator_heartbeat_age_seconds",
                &[],
                "Time since an operator has last shown in Redis that it works, which it does every five seconds; absent if it is not known.",
            )?,
            credentials: r.gauges(
                "twofactor_credentials_current",
                &[],
                "1 if the credentials in use are those of the folder, 0 if those are invalid.",
            )?,
            credential_changes: r.counters(
                "twofactor_credentials_changes_total",
                &["outcome"],
                "Changes of the mounted credentials: taken-over, refused.",
            )?,
            codes_exposed: r.gauges(
                "twofactor_codes_exposed",
                &[],
                "1 if answers contain codes, which only dev does, otherwise 0.",
            )?,
            redis_weakness: r.gauges(
                "twofactor_redis_weakness",
                &["setting"],
                "1 for a setting of Redis that is weaker than it should be, otherwise 0; absent if it is unknown.",
            )?,
            registry: r.registry(),
        })
    }

    /// Sets whether answers contain codes.
    pub fn codes_exposed(&self, exposed: bool) {
        self.codes_exposed.with_label_values::<&str>(&[]).set(exposed.into());
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
    pub fn delivery(&self, channel: &'static str, outcome: &'static str, took: Option<Duration>) {
        self.deliveries.with_label_values(&[channel, outcome]).inc();
        if let Some(took) = took {
            self.delivery_durations.with_label_values(&[channel]).observe(took.as_secs_f64());
        }
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

    /// Sets the time since an operator has last shown that it works, if that is known.
    pub fn heartbeat_age(&self, age: Option<Duration>) {
        if let Some(age) = age {
            self.heartbeat_age.with_label_values::<&str>(&[]).set(age.as_secs_f64());
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
