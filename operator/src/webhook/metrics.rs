//! Metrics of the webhook. Enters: decisions and how long they took. Leaves: a counter by reason,
//! and a histogram.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::reason::Reason;

/// A decision takes a fraction of a millisecond; the rest is for the body to arrive.
const BUCKETS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Counters and the histogram.
#[derive(Clone, Debug)]
pub struct AdmissionMetrics {
    // Looked up once: a counter is an atomic number, the vector that it comes from has a lock.
    counters: HashMap<Reason, IntCounter>,
    seconds: Histogram,
}

impl AdmissionMetrics {
    /// New metrics in `registry`. Every reason is there from the start, with 0.
    ///
    /// # Errors
    /// Only when they are registered twice: a defect.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let total = IntCounterVec::new(
            Opts::new(
                "twofactor_admission_total",
                "Requests to the webhook, by what was decided and why; dry runs included.",
            ),
            &["decision", "reason"],
        )?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new(
                "twofactor_admission_seconds",
                "From a request's head to its answer, the arrival of the body included.",
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

    /// A request was answered.
    pub fn decided(&self, reason: Reason, took: Duration) {
        if let Some(counter) = self.counters.get(&reason) {
            counter.inc();
        }
        self.seconds.observe(took.as_secs_f64());
    }
}
