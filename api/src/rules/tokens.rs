//! The rules of a realm's tokens.

use std::ops::RangeInclusive;

/// Allowed lifetimes of a token, in seconds.
pub(crate) const LIFETIME_SECONDS: RangeInclusive<i32> = 1..=300;
/// Maximum number of audiences of a realm.
pub(crate) const AUDIENCES: usize = 64;

pub(crate) const AUDIENCE_PATTERN: &str = r"^[!#-&(-+\--\[\]-~]+$";
