//! Metrics of the operations that the store is asked for.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec};
use twofactor_server::metrics::Registrar;
use twofactor_store::Observer;

/// Buckets from a tenth of a millisecond, which a decision takes, to the ten seconds of the timeout
/// for a delivery.
pub(super) const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// The metrics of the store.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    round_trips: IntCounterVec,
    durations: HistogramVec,
    stale_records: IntCounter,
}

impl StoreMetrics {
    /// Registers the metrics. Fails only if a name is invalid or registered already.
    pub fn new(r: &mut Registrar) -> Result<Self, prometheus::Error> {
        Ok(Self {
            round_trips: r.counters(
                "twofactor_store_round_trips_total",
                &["operation"],
                "Round trips to Redis: record, absence, realm, verify, issue, conclude, count-delivery.",
            )?,
            durations: r.histograms(
                "twofactor_store_operation_duration_seconds",
                &["operation"],
                &BUCKETS,
                "Durations of round trips to Redis, failed ones included.",
            )?,
            stale_records: r.counter(
                "twofactor_stale_records_total",
                "Decisions that were repeated because the record had changed.",
            )?,
        })
    }

    /// Counts a decision on a record that had changed.
    pub fn stale_record(&self) {
        self.stale_records.inc();
    }
}

impl Observer for StoreMetrics {
    fn operation(&self, name: &'static str, duration: Duration) {
        self.round_trips.with_label_values(&[name]).inc();
        self.durations.with_label_values(&[name]).observe(duration.as_secs_f64());
    }
}
