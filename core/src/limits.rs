//! Computes how long to wait until the next code may be requested.
//!
//! Windows slide: the last hour counts and not the current one. So no user gets twice the limit
//! around the full hour, and the time to wait is exact. A moment that is further ahead than its
//! window does not count, because the clock was set back since; a nearer one does. So a wrong clock
//! never locks a user out permanently.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::Caller;
use crate::time::UnixMillis;

const HOUR: Duration = Duration::from_hours(1);
const MINUTE_MILLIS: u64 = 60_000;
const MINUTES_OF_AN_HOUR: u64 = 60;

/// Maximum interval between two codes that can be configured, in seconds.
pub const MAXIMUM_INTERVAL_SECONDS: u16 = 3600;
/// Maximum number of codes within an hour for a user that can be configured. Each is stored for an
/// hour.
pub const MAXIMUM_GENERATES_PER_HOUR: u16 = 100;
/// Maximum number of codes of a user and caller in flight at the same time. There can only be so
/// many if the other limits are disabled and there are many contexts.
pub const MAXIMUM_CODES_IN_FLIGHT: usize = 64;
/// Maximum number of deliveries within an hour for a realm that can be configured.
pub const MAXIMUM_DELIVERIES_PER_HOUR: u32 = 1_000_000;
/// Maximum number of failures within a day for a user and caller that can be configured.
pub const MAXIMUM_FAILURES_PER_DAY: u16 = 1000;

/// Limits on how often codes are issued and sent. 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Minimum number of seconds between two codes for a user, of all services together.
    pub generate_interval_seconds: u16,
    /// Maximum number of codes for a user within an hour, of all services together.
    pub generates_per_hour: u16,
    /// Maximum number of deliveries for all users of a realm within an hour. It bounds the cost of
    /// a mistake, or of an attacker who knows many usernames.
    pub deliveries_per_hour: u32,
    /// Maximum number of failures for a user within a day, of one caller. A success does not change
    /// it.
    pub failures_per_day: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            generate_interval_seconds: 60,
            generates_per_hour: 10,
            deliveries_per_hour: 1000,
            failures_per_day: 20,
        }
    }
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self {
        generate_interval_seconds: 0,
        generates_per_hour: 0,
        deliveries_per_hour: 0,
        failures_per_day: 0,
    };

    /// Returns how many codes for a user within an hour one of several callers may request: half of
    /// them, so that none of the callers can use up what all of them need.
    #[must_use]
    pub const fn share_of_generates(&self, callers: usize) -> u16 {
        if callers > 1 { self.generates_per_hour.div_ceil(2) } else { self.generates_per_hour }
    }

    /// Returns how many deliveries within an hour one of several callers may cause: half of the
    /// realm's.
    #[must_use]
    pub const fn share_of_deliveries(&self, callers: usize) -> u32 {
        if callers > 1 { self.deliveries_per_hour.div_ceil(2) } else { self.deliveries_per_hour }
    }

    /// Returns the minimum interval between two codes.
    #[must_use]
    pub const fn generate_interval(&self) -> Duration {
        Duration::from_secs(self.generate_interval_seconds as u64)
    }
}

/// The moments at which codes were issued for one user.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The last moment, unless the provider refused the code.
    last: Option<UnixMillis>,
    /// The moments of the last hour.
    moments: Vec<UnixMillis>,
}

impl Asked {
    /// Returns how long to wait until the next code may be issued, or nothing if it may be issued
    /// now.
    pub(crate) fn wait(&self, limits: Limits, now: UnixMillis) -> Option<Duration> {
        let interval = limits.generate_interval();
        let pause = self
            .last
            .filter(|last| counts(*last, interval, now))
            .map(|last| left(last, interval, now));
        pause.max(self.wait_for_hour(limits.generates_per_hour, now))
    }

    /// Returns how long to wait until there are fewer than `most` moments within an hour.
    pub(crate) fn wait_for_hour(&self, most: u16, now: UnixMillis) -> Option<Duration> {
        let mut within: Vec<UnixMillis> =
            self.moments.iter().copied().filter(|moment| counts(*moment, HOUR, now)).collect();
        within.sort_unstable();
        let most = usize::from(most);
        // Enough moments must leave the window that one more does not exceed the limit.
        match within.len().checked_sub(most) {
            Some(surplus) if most > 0 => Some(left(within[surplus], HOUR, now)),
            _ => None,
        }
    }

    /// Records that a code is issued now.
    pub(crate) fn add(&mut self, limits: Limits, now: UnixMillis) {
        if limits.generates_per_hour == 0 {
            // Without a limit, nothing would bound the number of moments.
            self.moments.clear();
        } else {
            self.moments.retain(|moment| counts(*moment, HOUR, now));
            self.moments.push(now);
        }
        self.last = Some(now);
    }

    /// Cancels the interval that began with the code issued at `moment`, because the provider
    /// refused it and the user does not have it. The code still counts for the hour.
    pub(crate) fn undo_last_interval(&mut self, moment: UnixMillis) {
        if self.last == Some(moment) {
            self.last = None;
        }
    }
}

fn counts(moment: UnixMillis, window: Duration, now: UnixMillis) -> bool {
    moment.distance(now) < window
}

fn left(moment: UnixMillis, window: Duration, now: UnixMillis) -> Duration {
    now.until(moment.offset(i64::try_from(window.as_millis()).unwrap_or(i64::MAX)))
}

/// Whether a realm may send one more code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// It may, and the code is counted.
    Granted,
    /// The realm has reached its hourly limit.
    LimitReached {
        /// Time until the next code may be sent.
        retry_after: Duration,
    },
    /// The caller has used its share of the realm's hourly limit.
    ShareUsedUp {
        /// Time until the next code of this caller may be sent.
        retry_after: Duration,
    },
}

/// How many codes of a realm were sent in each minute of the last hour, for each caller.
#[derive(Clone, Debug, Default)]
pub struct Deliveries(BTreeMap<u64, BTreeMap<String, u64>>);

impl Deliveries {
    /// Counts one more of `caller`, unless there were `most` within the hour, or `most_own` of this
    /// caller. `most_own` has no effect unless it is between 0 and `most`.
    pub fn take(
        &mut self,
        caller: &Caller,
        most: u32,
        most_own: u32,
        now: UnixMillis,
    ) -> Allowance {
        let current = now.millis() / MINUTE_MILLIS;
        self.0.retain(|minute, _| minute.abs_diff(current) < MINUTES_OF_AN_HOUR);
        // What was counted while the clock was ahead leaves the hour as if it was counted now.
        for (_, counts) in self.0.split_off(&(current + 2)) {
            for (caller, count) in counts {
                *self.0.entry(current).or_default().entry(caller).or_default() += count;
            }
        }
        let all = |counts: &BTreeMap<String, u64>| counts.values().sum();
        let own = |counts: &BTreeMap<String, u64>| {
            counts.get(caller.as_str()).copied().unwrap_or_default()
        };
        let last = self.last_minute_over(most, all);
        let is_shared = (1..most).contains(&most_own);
        let own_last = is_shared.then(|| self.last_minute_over(most_own, own)).flatten();
        let retry_after =
            |minute: u64| now.until(UnixMillis::new((minute + MINUTES_OF_AN_HOUR) * MINUTE_MILLIS));
        match (last, own_last) {
            (None, None) => {
                let counts = self.0.entry(current).or_default();
                *counts.entry(caller.as_str().to_owned()).or_default() += 1;
                Allowance::Granted
            }
            (last, Some(own)) if last.is_none_or(|last| own > last) => {
                Allowance::ShareUsedUp { retry_after: retry_after(own) }
            }
            (last, _) => {
                Allowance::LimitReached { retry_after: retry_after(last.unwrap_or(current)) }
            }
        }
    }

    /// Returns the last minute that has to leave the hour until fewer than `most` are left, or
    /// nothing if there are fewer.
    fn last_minute_over(
        &self,
        most: u32,
        count: impl Fn(&BTreeMap<String, u64>) -> u64,
    ) -> Option<u64> {
        let mut left: u64 = self.0.values().map(&count).sum();
        let mut last = None;
        for (minute, counts) in &self.0 {
            if left < u64::from(most) {
                break;
            }
            last = Some(*minute);
            left -= count(counts);
        }
        // A limit of 0 is reached at any time.
        last.or((left >= u64::from(most)).then_some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_798_000_020_000;

    fn seconds(seconds: u64) -> UnixMillis {
        UnixMillis::new(NOW + seconds * 1000)
    }

    fn wait(asked: &Asked, limits: Limits, at: u64) -> Option<u64> {
        asked.wait(limits, seconds(at)).map(|wait| wait.as_secs())
    }

    #[test]
    fn one_a_minute_and_ten_within_any_hour() {
        let mut asked = Asked::default();
        for number in 0..10 {
            assert_eq!(wait(&asked, Limits::default(), number * 60), None, "{number}");
            asked.add(Limits::default(), seconds(number * 60));
            assert!(wait(&asked, Limits::default(), number * 60 + 1).is_some());
        }
        assert_eq!(wait(&asked, Limits::default(), 600), Some(3000));
        assert_eq!(wait(&asked, Limits::default(), 3599), Some(1));
        assert_eq!(wait(&asked, Limits::default(), 3600), None);
        asked.add(Limits::default(), seconds(3600));
        assert_eq!(
            wait(&asked, Limits::default(), 3601),
            Some(59),
            "both hold, the longer wait counts"
        );
        assert_eq!(wait(&asked, Limits { generates_per_hour: 3, ..Limits::NONE }, 3600), Some(480));
        assert_eq!(wait(&asked, Limits::NONE, 3600), None);
    }

    #[test]
    fn a_refused_code_does_not_count_for_the_pause_but_counts_for_the_hour() {
        let limits = Limits { generates_per_hour: 1, ..Limits::default() };
        let mut asked = Asked::default();
        asked.add(limits, seconds(0));
        asked.undo_last_interval(seconds(1));
        assert_eq!(
            wait(&asked, Limits::default(), 1),
            Some(59),
            "another request's moment changes nothing"
        );
        asked.undo_last_interval(seconds(0));
        assert_eq!(wait(&asked, Limits::default(), 1), None);
        assert_eq!(wait(&asked, limits, 1), Some(3599));
    }

    #[test]
    fn moments_are_not_recorded_without_an_hourly_limit() {
        let mut asked = Asked::default();
        for moment in 0..1000 {
            asked.add(Limits::NONE, seconds(moment));
        }
        assert!(asked.moments.is_empty());
    }

    #[test]
    fn a_clock_that_is_set_back_locks_no_user_out_permanently() {
        let mut asked = Asked::default();
        asked.add(Limits::default(), seconds(100_000));
        assert_eq!(wait(&asked, Limits::default(), 0), None);
        let mut asked = Asked::default();
        asked.add(Limits::default(), seconds(30));
        assert_eq!(wait(&asked, Limits::default(), 0), Some(90), "a little ahead counts");
    }

    #[test]
    fn a_realm_reaches_its_hourly_limit_and_learns_how_long_to_wait() {
        let (mut deliveries, kms) = (Deliveries::default(), "kms".parse().unwrap());
        let mut take = |most, at| deliveries.take(&kms, most, most, seconds(at));
        for minute in [0, 0, 10] {
            assert_eq!(take(3, minute * 60), Allowance::Granted);
        }
        let used_up =
            |seconds| Allowance::LimitReached { retry_after: Duration::from_secs(seconds) };
        // NOW is the beginning of a minute.
        assert_eq!(take(3, 600), used_up(3000));
        assert_eq!(take(3, 3600), Allowance::Granted);
        assert_eq!(take(1, 3600), used_up(3600));
    }

    #[test]
    fn deliveries_that_were_counted_while_the_clock_was_ahead_count_for_an_hour_from_now_on() {
        let (mut deliveries, kms) = (Deliveries::default(), "kms".parse().unwrap());
        let mut take = |at| deliveries.take(&kms, 1, 0, seconds(at));
        assert_eq!(take(59 * 60), Allowance::Granted);
        let hour = Duration::from_hours(1);
        assert_eq!(take(0), Allowance::LimitReached { retry_after: hour });
        assert_eq!(take(3600), Allowance::Granted);
    }
}
