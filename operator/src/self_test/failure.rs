//! Describes the finding that was not as it should be.

use thiserror::Error;

/// The finding that was not as it should be.
#[derive(Debug, Error)]
#[error("FAILED: {what}: {why}")]
pub struct Failure {
    what: String,
    why: String,
}

/// Returns the failure of a check.
pub(super) fn failure(what: &str, why: &impl ToString) -> Failure {
    Failure { what: what.to_owned(), why: why.to_string() }
}
