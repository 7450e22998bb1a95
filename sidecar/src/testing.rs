//! What tests of other crates use of this one.

pub use crate::delivery::{Delivery, DeliveryError, Message};
use crate::metrics::Metrics;
use crate::otp::outcome_log;
use crate::refusal::Refusal;
use twofactor_server::metrics::{Metric, Registrar};

/// The outcomes of requests that are refused.
pub const REFUSALS: &[&str] = Refusal::ALL;
/// The outcomes of requests that are not refused.
pub const SUCCESSES: &[&str] = &outcome_log::SUCCESSES;

/// The descriptions of all metrics.
///
/// # Panics
/// Panics if one is registered twice.
#[must_use]
pub fn metrics() -> Vec<Metric> {
    let mut registrar = Registrar::of_version("").expect("a name");
    Metrics::register(&mut registrar).expect("names");
    registrar.into_metrics()
}
