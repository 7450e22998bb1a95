//! Computes retry delays: a delay doubles with each failure in a row, and has jitter so that
//! objects that failed together are not retried together.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand_core::Rng;

/// The first delay.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay if the object or a permission has to be fixed.
pub const LONGEST: Duration = Duration::from_mins(5);
/// Longest delay if a server is unavailable, because it recovers without a change of the object.
pub const LONGEST_UNAVAILABLE: Duration = Duration::from_secs(5);

/// The failures in a row of each object.
#[derive(Debug)]
pub struct Backoff<K>(Mutex<HashMap<K, u32>>);

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Backoff<K> {
    /// Records a failure, and returns the delay before the next attempt, which is about `longest`
    /// at most.
    pub fn failed(&self, object: &K, longest: Duration, random: &mut impl Rng) -> Duration {
        let mut failures = self.failures();
        let count = failures.entry(object.clone()).or_default();
        let delay = exponential(*count).min(longest);
        *count = count.saturating_add(1);
        jittered(delay, random)
    }

    /// Resets the failures of an object that succeeded or was deleted.
    pub fn forget(&self, object: &K) {
        self.failures().remove(object);
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<K, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exponential(failures: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
}

/// Returns `delay` with a jitter of 25 %.
pub fn jittered(delay: Duration, random: &mut impl Rng) -> Duration {
    let share = 750 + random.next_u32() % 501;
    delay.saturating_mul(share) / 1000
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_start_again_after_success() {
        let (backoff, mut random) = (Backoff::default(), UnwrapErr(SysRng));
        let mut expect = |longest, expected: u64| {
            let delay = backoff.failed(&"alice", longest, &mut random);
            let expected = Duration::from_secs(expected);
            assert!(
                delay >= expected * 3 / 4 && delay <= expected * 5 / 4,
                "{delay:?} for {expected:?}"
            );
        };
        for seconds in [1, 2, 4, 8] {
            expect(LONGEST, seconds);
        }
        expect(LONGEST_UNAVAILABLE, 5);
        for _ in 0..40 {
            backoff.failed(&"alice", LONGEST, &mut UnwrapErr(SysRng));
        }
        expect(LONGEST, 300);
        backoff.forget(&"alice");
        expect(LONGEST, 1);
    }
}
