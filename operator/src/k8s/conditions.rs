//! Builds conditions of a status, and finds those that have changed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The state of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    /// Whether it is so.
    pub is_met: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

impl ConditionState {
    /// It is so.
    pub fn met(reason: &'static str, message: impl Into<String>) -> Self {
        Self { is_met: true, reason, message: message.into() }
    }

    /// It is not.
    pub fn unmet(reason: &'static str, message: impl Into<String>) -> Self {
        Self { is_met: false, reason, message: message.into() }
    }
}

/// The condition that says this, with the time of the last transition.
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

/// The moment, in the whole seconds that Kubernetes keeps.
pub fn whole_seconds(millis: u64) -> Timestamp {
    i64::try_from(millis / 1000)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
}
