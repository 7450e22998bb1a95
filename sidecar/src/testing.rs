//! What tests of other crates use of this one.

pub use crate::delivery::{Delivery, DeliveryError, Message};
use crate::otp::outcome_log;
use crate::refusal::Refusal;

/// The outcomes of requests that are refused.
pub const REFUSALS: &[&str] = Refusal::ALL;
/// The outcomes of requests that are not refused.
pub const SUCCESSES: &[&str] = &outcome_log::SUCCESSES;
