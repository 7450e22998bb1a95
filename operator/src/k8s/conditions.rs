//! Builds the conditions of a status, and keeps the transition time of those that are unchanged.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The state of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    /// Whether the condition is met.
    pub is_met: bool,
    /// The reason, as one word.
    pub reason: &'static str,
    /// The reason, as a sentence.
    pub message: String,
}

impl ConditionState {
    /// Returns the state of a condition that is met.
    pub fn met(reason: &'static str, message: impl Into<String>) -> Self {
        Self { is_met: true, reason, message: message.into() }
    }

    /// Returns the state of a condition that is not met.
    pub fn unmet(reason: &'static str, message: impl Into<String>) -> Self {
        Self { is_met: false, reason, message: message.into() }
    }
}

/// Builds the condition `kind`, with the time of its last transition.
pub fn condition(
    old: &[Condition],
    kind: &str,
    state: ConditionState,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = if state.is_met { "True" } else { "False" };
    let since = old
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == status)
        .map_or(Time(now), |condition| condition.last_transition_time.clone());
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: state.reason.to_owned(),
        message: state.message,
        observed_generation: generation,
        last_transition_time: since,
    }
}

/// Returns a time rounded down to seconds, because Kubernetes stores no fractions.
pub fn whole_seconds(millis: u64) -> Timestamp {
    i64::try_from(millis / 1000)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
}
