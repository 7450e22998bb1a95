//! What a realm says about limits and about what is kept of requests. Enters: both parts of a spec.
//! Leaves: what differs from the operator's own settings, or everything that is wrong.

use std::ops::RangeInclusive;

use twofactor_core::audit::{AuditPolicy, LONGEST_RETENTION_DAYS};
use twofactor_core::limits::{
    LONGEST_INTERVAL_SECONDS, Limits, MOST_DELIVERIES_PER_HOUR, MOST_GENERATES_PER_HOUR,
};

use super::super::Findings;
use crate::realm::{AuditSpec, LimitsSpec};

/// How many seconds there may be between two codes for a user.
pub const GENERATE_INTERVAL_SECONDS: RangeInclusive<i32> = 0..=LONGEST_INTERVAL_SECONDS as i32;
/// How many codes there may be for a user within an hour.
pub const GENERATES_PER_HOUR: RangeInclusive<i32> = 0..=MOST_GENERATES_PER_HOUR as i32;
/// How many codes may be sent for a realm within an hour.
pub const DELIVERIES_PER_HOUR: RangeInclusive<i32> = 0..=MOST_DELIVERIES_PER_HOUR.cast_signed();
/// For how many days the users' histories may be kept.
pub const RETENTION_DAYS: RangeInclusive<i32> = 1..=LONGEST_RETENTION_DAYS as i32;

/// What a realm says about limits; what is absent is the operator's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsPolicy {
    /// Seconds from one code for a user to the next.
    pub generate_interval_seconds: Option<u16>,
    /// Codes for a user within an hour.
    pub generates_per_hour: Option<u16>,
    /// Deliveries for all users within an hour.
    pub deliveries_per_hour: Option<u32>,
}

/// What a realm says about what is kept of requests; what is absent is the operator's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditOverrides {
    /// For how many days.
    pub retention_days: Option<u16>,
    /// Whether the end user's address and program are kept.
    pub origin: Option<bool>,
}

impl LimitsPolicy {
    /// The limits, where `defaults` are the operator's.
    #[must_use]
    pub fn over(&self, defaults: Limits) -> Limits {
        Limits {
            generate_interval_seconds: self
                .generate_interval_seconds
                .unwrap_or(defaults.generate_interval_seconds),
            generates_per_hour: self.generates_per_hour.unwrap_or(defaults.generates_per_hour),
            deliveries_per_hour: self.deliveries_per_hour.unwrap_or(defaults.deliveries_per_hour),
        }
    }
}

impl AuditOverrides {
    /// The policy, where `defaults` is the operator's.
    #[must_use]
    pub fn over(&self, defaults: AuditPolicy) -> AuditPolicy {
        AuditPolicy {
            retention_days: self.retention_days.unwrap_or(defaults.retention_days),
            origin: self.origin.unwrap_or(defaults.origin),
        }
    }
}

pub(super) fn check_limits(spec: Option<&LimitsSpec>, findings: &mut Findings) -> LimitsPolicy {
    let Some(spec) = spec else { return LimitsPolicy::default() };
    LimitsPolicy {
        generate_interval_seconds: number(
            "spec.limits.generateIntervalSeconds",
            spec.generate_interval_seconds,
            &GENERATE_INTERVAL_SECONDS,
            findings,
        ),
        generates_per_hour: number(
            "spec.limits.generatesPerHour",
            spec.generates_per_hour,
            &GENERATES_PER_HOUR,
            findings,
        ),
        deliveries_per_hour: number(
            "spec.limits.deliveriesPerHour",
            spec.deliveries_per_hour,
            &DELIVERIES_PER_HOUR,
            findings,
        ),
    }
}

pub(super) fn check_audit(spec: Option<&AuditSpec>, findings: &mut Findings) -> AuditOverrides {
    let Some(spec) = spec else { return AuditOverrides::default() };
    let retention_days =
        number("spec.audit.retentionDays", spec.retention_days, &RETENTION_DAYS, findings);
    AuditOverrides { retention_days, origin: spec.origin }
}

fn number<T: TryFrom<i32>>(
    field: &str,
    value: Option<i32>,
    range: &RangeInclusive<i32>,
    findings: &mut Findings,
) -> Option<T> {
    let value = value?;
    let number = T::try_from(value).ok().filter(|_| range.contains(&value));
    if number.is_none() {
        findings
            .add(field, format_args!("must be {} to {}, not {value}", range.start(), range.end()));
    }
    number
}
