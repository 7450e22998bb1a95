//! Computes codes of time steps (RFC 6238), and the steps that a submitted code matches.
//!
//! The result is not a yes or no, because a decision needs the [`Step`]: each step is accepted
//! once.

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::code::Code;
use crate::seed::Seed;
use crate::time::{Step, UnixMillis};

/// The hash function of HMAC (RFC 6238 §1.2). Many authenticators support only SHA-1, which is
/// secure in HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC-SHA-1, the default everywhere.
    #[default]
    #[serde(rename = "SHA1")]
    Sha1,
    /// HMAC-SHA-256.
    #[serde(rename = "SHA256")]
    Sha256,
    /// HMAC-SHA-512.
    #[serde(rename = "SHA512")]
    Sha512,
}

impl Algorithm {
    /// Returns the name in `otpauth` URIs and manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }
}

/// Maximum duration of a step, in seconds.
pub const LONGEST_PERIOD: u32 = 120;

/// How codes are computed from a seed. Every value is within its documented range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedParameters")]
pub struct TotpParameters {
    algorithm: Algorithm,
    digits: u8,
    period: u32,
    skew: u8,
}

#[derive(Deserialize)]
struct UncheckedParameters {
    algorithm: Algorithm,
    digits: u8,
    period: u32,
    skew: u8,
}

impl TryFrom<UncheckedParameters> for TotpParameters {
    type Error = ParameterError;

    fn try_from(unchecked: UncheckedParameters) -> Result<Self, Self::Error> {
        Self::new(unchecked.algorithm, unchecked.digits, unchecked.period, unchecked.skew)
    }
}

/// A parameter outside its range.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ParameterError {
    /// RFC 4226 §5.3 wants at least 6 digits; codes are 8 at most.
    #[error("digits must be 6 to 8, not {0}")]
    Digits(u8),
    /// A shorter period would leave too little time to type a code, and a longer one would make a
    /// code valid for too long.
    #[error("periodSeconds must be 15 to 120, not {0}")]
    Period(u32),
    /// RFC 6238 §5.2 recommends at most one step.
    #[error("skew must be 0 or 1, not {0}")]
    Skew(u8),
}

impl Default for TotpParameters {
    /// The values that every authenticator supports: SHA-1, 6 digits, 30 seconds. One step of skew.
    fn default() -> Self {
        Self { algorithm: Algorithm::Sha1, digits: 6, period: 30, skew: 1 }
    }
}

impl TotpParameters {
    /// Checks the ranges: `digits` 6 to 8, `period` 15 to 120 seconds, `skew` 0 or 1 steps.
    ///
    /// # Errors
    /// Names the first parameter that is out of its range.
    pub fn new(
        algorithm: Algorithm,
        digits: u8,
        period: u32,
        skew: u8,
    ) -> Result<Self, ParameterError> {
        if !(6..=8).contains(&digits) {
            return Err(ParameterError::Digits(digits));
        }
        if !(15..=LONGEST_PERIOD).contains(&period) {
            return Err(ParameterError::Period(period));
        }
        if skew > 1 {
            return Err(ParameterError::Skew(skew));
        }
        Ok(Self { algorithm, digits, period, skew })
    }

    /// Returns the hash function of HMAC.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the number of digits of a code: 6 to 8.
    #[must_use]
    pub const fn digits(&self) -> u8 {
        self.digits
    }

    /// Returns the duration of a step in seconds: 15 to 120.
    #[must_use]
    pub const fn period(&self) -> u32 {
        self.period
    }

    /// Returns the number of steps before and after the current one whose codes are accepted: 0 or
    /// 1.
    #[must_use]
    pub const fn skew(&self) -> u8 {
        self.skew
    }

    /// Returns the step of `now`.
    #[must_use]
    pub fn step_at(&self, now: UnixMillis) -> Step {
        Step::new(now.seconds() / u64::from(self.period))
    }
}

/// Computes codes from a seed and its parameters.
pub struct Totp {
    generator: totp_rs::Totp,
    parameters: TotpParameters,
}

impl Totp {
    /// Prepares the computation.
    #[must_use]
    pub fn new(seed: &Seed, parameters: TotpParameters) -> Self {
        let algorithm = match parameters.algorithm {
            Algorithm::Sha1 => totp_rs::Algorithm::SHA1,
            Algorithm::Sha256 => totp_rs::Algorithm::SHA256,
            Algorithm::Sha512 => totp_rs::Algorithm::SHA512,
        };
        // The library's own checks are skipped, because `Seed` and `TotpParameters` have checked
        // more.
        let generator = totp_rs::Builder::new()
            .with_algorithm(algorithm)
            .with_digits(parameters.digits)
            .with_step_duration(u64::from(parameters.period))
            .with_secret(totp_rs::Secret::new(seed.expose_secret().into()))
            .build_noncompliant();
        Self { generator, parameters }
    }

    /// Returns the code of a step.
    #[must_use]
    pub fn code_of(&self, step: Step) -> Code {
        let start = step.number().saturating_mul(u64::from(self.parameters.period));
        let token = self.generator.generate(start).to_string();
        let code = Code::parse(&token);
        drop(zeroize::Zeroizing::new(token));
        // The library pads codes to the number of digits.
        code.unwrap_or_else(|_| unreachable!("a generated code has 6 to 8 digits"))
    }

    /// Returns the steps that have the code `code`, from `margin` steps before `around` to `margin`
    /// steps after it.
    ///
    /// Every step of the window is computed and compared in constant time, so the duration depends
    /// on neither the code nor the seed.
    #[must_use]
    pub fn matching_steps(&self, code: &Code, around: Step, margin: u64) -> Vec<Step> {
        let submitted = code.expose_secret().as_bytes();
        let first = around.number().saturating_sub(margin);
        let last = around.number().saturating_add(margin);
        let mut matching = Vec::new();
        for number in first..=last {
            let expected = self.code_of(Step::new(number));
            if bool::from(expected.expose_secret().as_bytes().ct_eq(submitted)) {
                matching.push(Step::new(number));
            }
        }
        matching
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238 appendix B: seconds, then the code for SHA-1, SHA-256 and SHA-512.
    const VECTORS: [(u64, [&str; 3]); 6] = [
        (59, ["94287082", "46119246", "90693936"]),
        (1_111_111_109, ["07081804", "68084774", "25091201"]),
        (1_111_111_111, ["14050471", "67062674", "99943326"]),
        (1_234_567_890, ["89005924", "91819424", "93441116"]),
        (2_000_000_000, ["69279037", "90698825", "38618901"]),
        (20_000_000_000, ["65353130", "77737706", "47863826"]),
    ];

    fn rfc_totp(algorithm: Algorithm) -> Totp {
        let length = match algorithm {
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        };
        let seed =
            Seed::from_bytes(b"1234567890".iter().copied().cycle().take(length).collect()).unwrap();
        Totp::new(&seed, TotpParameters::new(algorithm, 8, 30, 1).unwrap())
    }

    #[test]
    fn the_vectors_of_rfc_6238_appendix_b_are_met() {
        for (index, algorithm) in
            [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512].into_iter().enumerate()
        {
            let totp = rfc_totp(algorithm);
            for (seconds, codes) in VECTORS {
                let step = totp.parameters.step_at(UnixMillis::from_seconds(seconds));
                assert_eq!(
                    totp.code_of(step).expose_secret(),
                    codes[index],
                    "{} at {seconds}",
                    algorithm.name()
                );
            }
        }
    }

    #[test]
    fn the_matched_step_is_the_result() {
        let totp = rfc_totp(Algorithm::Sha1);
        let code = totp.code_of(Step::new(1000));
        for (around, margin, expected) in [
            (1000, 0, vec![Step::new(1000)]),
            (1001, 1, vec![Step::new(1000)]),
            (998, 2, vec![Step::new(1000)]),
            (1002, 1, vec![]),
            (998, 1, vec![]),
            (0, 1, vec![]),
        ] {
            assert_eq!(
                totp.matching_steps(&code, Step::new(around), margin),
                expected,
                "around {around} ± {margin}"
            );
        }
    }

    #[test]
    fn a_code_with_another_number_of_digits_matches_nothing() {
        let totp = rfc_totp(Algorithm::Sha1);
        let code = totp.code_of(Step::new(7));
        let shorter = Code::parse(&code.expose_secret()[2..]).unwrap();
        assert_eq!(totp.matching_steps(&shorter, Step::new(7), 1), vec![]);
    }

    #[test]
    fn parameters_outside_their_ranges_are_refused_by_name() {
        for (digits, period, skew, error) in [
            (5, 30, 1, ParameterError::Digits(5)),
            (9, 30, 1, ParameterError::Digits(9)),
            (6, 14, 1, ParameterError::Period(14)),
            (6, 121, 1, ParameterError::Period(121)),
            (6, 30, 2, ParameterError::Skew(2)),
        ] {
            assert_eq!(
                TotpParameters::new(Algorithm::Sha1, digits, period, skew).unwrap_err(),
                error
            );
        }
    }
}
