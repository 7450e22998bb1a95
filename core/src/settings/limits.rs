//! Reads the limits and what is recorded of requests from variables.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{SettingsError, wrong};
use crate::audit::{AuditPolicy, MAXIMUM_ENTRIES, MAXIMUM_RETENTION_DAYS, MINIMUM_ENTRIES};
use crate::limits::{
    Limits, MAXIMUM_DELIVERIES_PER_HOUR, MAXIMUM_FAILURES_PER_DAY, MAXIMUM_GENERATES_PER_HOUR,
    MAXIMUM_INTERVAL_SECONDS,
};

/// Reads the limits on how often codes are issued and sent.
pub(super) fn limits(variable: impl Fn(&str) -> Option<String>) -> Result<Limits, SettingsError> {
    let defaults = Limits::default();
    Ok(Limits {
        generate_interval_seconds: number(
            &variable,
            "OTP_GENERATE_INTERVAL_SECONDS",
            0..=MAXIMUM_INTERVAL_SECONDS,
        )?
        .unwrap_or(defaults.generate_interval_seconds),
        generates_per_hour: number(
            &variable,
            "OTP_GENERATES_PER_HOUR",
            0..=MAXIMUM_GENERATES_PER_HOUR,
        )?
        .unwrap_or(defaults.generates_per_hour),
        deliveries_per_hour: number(
            &variable,
            "OTP_DELIVERIES_PER_HOUR",
            0..=MAXIMUM_DELIVERIES_PER_HOUR,
        )?
        .unwrap_or(defaults.deliveries_per_hour),
        failures_per_day: number(&variable, "OTP_FAILURES_PER_DAY", 0..=MAXIMUM_FAILURES_PER_DAY)?
            .unwrap_or(defaults.failures_per_day),
    })
}

/// Reads what is recorded of requests.
pub(super) fn audit(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<AuditPolicy, SettingsError> {
    let defaults = AuditPolicy::default();
    Ok(AuditPolicy {
        retention_days: number(&variable, "AUDIT_RETENTION_DAYS", 1..=MAXIMUM_RETENTION_DAYS)?
            .unwrap_or(defaults.retention_days),
        entries: number(&variable, "AUDIT_ENTRIES", MINIMUM_ENTRIES..=MAXIMUM_ENTRIES)?
            .unwrap_or(defaults.entries),
        origin: match variable("AUDIT_ORIGIN").as_deref() {
            None => defaults.origin,
            Some("true") => true,
            Some("false") => false,
            Some(_) => return Err(wrong("AUDIT_ORIGIN", "must be true or false")),
        },
    })
}

fn number<T: FromStr + PartialOrd + Display>(
    variable: impl Fn(&str) -> Option<String>,
    name: &'static str,
    range: RangeInclusive<T>,
) -> Result<Option<T>, SettingsError> {
    let Some(text) = variable(name) else { return Ok(None) };
    match text.parse::<T>() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => {
            Err(wrong(name, format!("must be a number from {} to {}", range.start(), range.end())))
        }
    }
}
