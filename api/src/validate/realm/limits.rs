//! Validates what a realm says about limits and histories. What the realm does not say stays as the
//! operator's own settings have it.

use std::ops::RangeInclusive;

use twofactor_core::audit::AuditPolicy;
use twofactor_core::limits::Limits;

use super::super::Findings;
use crate::realm::{AuditSpec, LimitsSpec};
use crate::rules::realm::{
    DELIVERIES_PER_HOUR, ENTRIES, FAILURES_PER_DAY, GENERATE_INTERVAL_SECONDS, GENERATES_PER_HOUR,
    RETENTION_DAYS,
};

/// The limits of a realm. Absent ones default to the operator's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsPolicy {
    /// Minimum number of seconds between two codes for a user.
    pub generate_interval_seconds: Option<u16>,
    /// Maximum number of codes for a user within an hour.
    pub generates_per_hour: Option<u16>,
    /// Maximum number of deliveries for all users within an hour.
    pub deliveries_per_hour: Option<u32>,
    /// Maximum number of failures for a user within a day from one namespace.
    pub failures_per_day: Option<u16>,
}

/// What a realm records of requests. Absent fields default to the operator's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditOverrides {
    /// Number of days for which entries are kept.
    pub retention_days: Option<u16>,
    /// Maximum number of entries of a user's history.
    pub entries: Option<u16>,
    /// Whether the end user's address and user agent are recorded.
    pub origin: Option<bool>,
}

impl LimitsPolicy {
    /// Returns the limits, with `defaults` for absent ones.
    #[must_use]
    pub fn over(&self, defaults: Limits) -> Limits {
        Limits {
            generate_interval_seconds: self
                .generate_interval_seconds
                .unwrap_or(defaults.generate_interval_seconds),
            generates_per_hour: self.generates_per_hour.unwrap_or(defaults.generates_per_hour),
            deliveries_per_hour: self.deliveries_per_hour.unwrap_or(defaults.deliveries_per_hour),
            failures_per_day: self.failures_per_day.unwrap_or(defaults.failures_per_day),
        }
    }
}

impl AuditOverrides {
    /// Returns the policy, with `defaults` for absent fields.
    #[must_use]
    pub fn over(&self, defaults: AuditPolicy) -> AuditPolicy {
        AuditPolicy {
            retention_days: self.retention_days.unwrap_or(defaults.retention_days),
            entries: self.entries.unwrap_or(defaults.entries),
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
        failures_per_day: number(
            "spec.limits.failuresPerDay",
            spec.failures_per_day,
            &FAILURES_PER_DAY,
            findings,
        ),
    }
}

pub(super) fn check_audit(spec: Option<&AuditSpec>, findings: &mut Findings) -> AuditOverrides {
    let Some(spec) = spec else { return AuditOverrides::default() };
    let retention_days =
        number("spec.audit.retentionDays", spec.retention_days, &RETENTION_DAYS, findings);
    let entries = number("spec.audit.entries", spec.entries, &ENTRIES, findings);
    AuditOverrides { retention_days, entries, origin: spec.origin }
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
