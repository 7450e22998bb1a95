//! Counts the webhook's decisions by reason and measures how long they take.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::reason::Reason;

/// Histogram buckets in seconds. A decision takes a fraction of a millisecond; the larger buckets
/// are for bodies that arrive slowly.
const BUCKETS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// The webhook's metrics.
#[derive(Clone, Debug)]
pub struct AdmissionMetrics {
    // Looked up once, because the vector that counters come from has a lock.
    counters: HashMap<Reason, IntCounter>,
    seconds: Histogram,
}

impl AdmissionMetrics {
    /// Registers the metrics. Every reason starts with 0.
    ///
    /// # Errors
    /// Fails only if they are registered twice, which would be a defect.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let total = IntCounterVec::new(
            Opts::new(
                "twofactor_admission_total",
                "Requests to the webhook by decision and reason, dry runs included.",
            ),
            &["decision", "reason"],
        )?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new(
                "twofactor_admission_seconds",
                "Seconds from the head of a request to its answer, including the arrival of the body.",
            )
            .buckets(BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(total.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        let counter = |reason: &Reason| {
            (*reason, total.with_label_values(&[reason.verdict().name(), reason.name()]))
        };
        Ok(Self { counters: Reason::ALL.iter().map(counter).collect(), seconds })
    }

    /// Counts an answered request.
    pub fn decided(&self, reason: Reason, took: Duration) {
        if let Some(counter) = self.counters.get(&reason) {
            counter.inc();
        }
        self.seconds.observe(took.as_secs_f64());
    }
}
