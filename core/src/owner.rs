//! Describes which operator owns the data of an installation in Redis: a mark that the Lease of its
//! cluster and Redis both hold.
//!
//! The number of the mark rises with each sign of life, in the Lease first and then in Redis. So
//! the Lease of the owner is never behind Redis, and that of a copy of its cluster is.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use rand_core::CryptoRng;
use thiserror::Error;

/// Length of the ID of a lineage, in bytes.
const LINEAGE_BYTES: usize = 8;
/// Highest number, which Lua still counts exactly. It takes millions of years.
const HIGHEST: u64 = (1 << 53) - 1;

/// The mark of an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerMark {
    lineage: String,
    number: u64,
}

/// A text is no mark.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 16 hexadecimal digits, a space and a number")]
pub struct OwnerMarkError;

impl OwnerMark {
    /// Begins a lineage: the leaders of one cluster, each of which continues the mark of the one
    /// before.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; LINEAGE_BYTES];
        random.fill_bytes(&mut bytes);
        Self { lineage: HEXLOWER.encode(&bytes), number: 1 }
    }

    /// Returns the mark of the next sign of life.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { lineage: self.lineage.clone(), number: (self.number + 1).min(HIGHEST) }
    }

    /// Whether an operator with this mark may take the place of what Redis holds: a mark of its own
    /// lineage with no higher number, or none.
    #[must_use]
    pub fn continues(&self, held: Option<&str>) -> bool {
        let held = held.and_then(|held| held.parse::<Self>().ok());
        held.is_none_or(|held| held.lineage == self.lineage && held.number <= self.number)
    }

    /// The ID of the lineage: 16 hexadecimal digits.
    #[must_use]
    pub fn lineage(&self) -> &str {
        &self.lineage
    }

    /// The number of the sign of life.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for OwnerMark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.lineage, self.number)
    }
}

impl FromStr for OwnerMark {
    type Err = OwnerMarkError;

    fn from_str(text: &str) -> Result<Self, OwnerMarkError> {
        let (lineage, number) = text.split_once(' ').ok_or(OwnerMarkError)?;
        let is_lineage = lineage.len() == 2 * LINEAGE_BYTES
            && lineage.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_number = number.len() <= 16 && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|number| is_number && *number <= HIGHEST);
        match number {
            Some(number) if is_lineage => Ok(Self { lineage: lineage.to_owned(), number }),
            _ => Err(OwnerMarkError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_from_its_text_and_continues_its_own_lineage() {
        let mark: OwnerMark = "00112233445566aa 7".parse().unwrap();
        assert_eq!(mark.to_string(), "00112233445566aa 7");
        assert_eq!(mark.next().to_string(), "00112233445566aa 8");
        for text in [
            "",
            "00112233445566aa",
            "00112233445566aa ",
            "00112233445566aa +7",
            "00112233445566AA 7",
            "0011 7",
            "00112233445566aa 9007199254740992",
            "00112233445566aa 7 8",
        ] {
            assert_eq!(text.parse::<OwnerMark>(), Err(OwnerMarkError), "{text}");
        }
        assert!(mark.continues(Some("00112233445566aa 7")) && mark.continues(Some("damaged")));
        assert!(mark.continues(None));
        assert!(!mark.continues(Some("00112233445566aa 8")), "the Lease is that of a copy");
        assert!(!mark.continues(Some("0011223344556600 1")));
        let highest: OwnerMark = "00112233445566aa 9007199254740991".parse().unwrap();
        assert_eq!(highest.next(), highest);
    }
}
