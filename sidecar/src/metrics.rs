//! Metrics for Prometheus. Enters: what happened, as one of a few constant words. Leaves: counters and
//! histograms. No label ever holds a name, an address or anything else that a caller chooses.

use std::time::Duration;

use http::StatusCode;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// From a tenth of a millisecond, which a decision takes, to the ten seconds after which delivery gives up.
const BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All metrics of the sidecar.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    decisions: IntCounterVec,
    deliveries: IntCounterVec,
    refused_records: IntCounterVec,
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
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "twofactor_http_request_duration_seconds",
                "Time from a request's head to its answer.",
            )
            .buckets(BUCKETS.to_vec()),
            &["route"],
        )?;
        registry.register(Box::new(durations.clone()))?;
        let build = IntGaugeVec::new(
            Opts::new("twofactor_build_info", "Always 1; the version is a label."),
            &["version"],
        )?;
        registry.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self { registry, requests, durations, decisions, deliveries, refused_records })
    }

    /// What `/metrics` shows.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
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
    pub fn delivery(&self, channel: &'static str, outcome: &'static str) {
        self.deliveries.with_label_values(&[channel, outcome]).inc();
    }

    /// A record was there and not used.
    pub fn refused_record(&self, reason: &'static str) {
        self.refused_records.with_label_values(&[reason]).inc();
    }
}
