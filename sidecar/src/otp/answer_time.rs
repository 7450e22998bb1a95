//! Computes when uniform answers are given, and the `expires_at` that they contain.

use std::time::{Duration, Instant};

use twofactor_core::realm::OtpLifetime;
use twofactor_core::time::UnixMillis;

/// `expires_at` is counted from a multiple of this many seconds. A user who asks twice within it
/// gets the same answer twice, as an unknown name does.
const EXPIRY_ROUNDING: u64 = 30;
/// Answers are given at multiples of this after the request came. What is done for users only,
/// such as writing their history, takes a tenth of a millisecond and ends long before the first.
const ANSWER_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until the next moment at which a request that came at `began` may be answered.
pub async fn wait_for_answer_slot(began: Instant) {
    let passed = began.elapsed().as_nanos() / ANSWER_INTERVAL.as_nanos();
    let slot = u32::try_from(passed).unwrap_or(u32::MAX - 1) + 1;
    tokio::time::sleep_until((began + ANSWER_INTERVAL * slot).into()).await;
}

/// Returns the `expires_at` of an answer to a request that came at `now`, for any name.
pub fn expires_at(now: UnixMillis, lifetime: OtpLifetime) -> UnixMillis {
    let begin = now.seconds() / EXPIRY_ROUNDING * EXPIRY_ROUNDING;
    UnixMillis::from_seconds(begin + lifetime.duration().as_secs())
}

/// Returns the lifetime that a code of steps of `period` seconds is issued with, so that it is
/// accepted for as long as [`expires_at`] says even if it was asked for earlier in its step.
///
/// A lifetime of ten minutes is not extended, so a step that is not one of 30 seconds may shorten
/// it.
pub fn lifetime(lifetime: OtpLifetime, period: u32) -> Duration {
    let period = u64::from(period);
    let longer = match period {
        _ if EXPIRY_ROUNDING.is_multiple_of(period) => 0,
        _ if period.is_multiple_of(EXPIRY_ROUNDING) => period - EXPIRY_ROUNDING,
        _ => period,
    };
    (lifetime.duration() + Duration::from_secs(longer)).min(OtpLifetime::LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_accepted_for_as_long_as_its_answer_says() {
        for minutes in [1, 5, 8] {
            let lifetime_of = OtpLifetime::try_from(minutes).unwrap();
            for period in [15_u32, 20, 30, 45, 60, 100, 120] {
                for asked in (1_798_000_000..1_798_000_240).step_by(7) {
                    // The first time in its step; every later time in it gives the same entry.
                    let accepted_until =
                        UnixMillis::from_seconds(asked + lifetime(lifetime_of, period).as_secs());
                    let end = (asked / u64::from(period) + 1) * u64::from(period);
                    for again in (asked..end).step_by(5) {
                        let answered = expires_at(UnixMillis::from_seconds(again), lifetime_of);
                        assert!(answered <= accepted_until, "{minutes} {period} {asked} {again}");
                    }
                }
            }
        }
    }
}
