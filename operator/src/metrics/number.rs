//! Converts a count into the value of a metric.

/// A count as the value of a metric.
pub fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
