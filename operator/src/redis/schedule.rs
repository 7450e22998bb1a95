//! Decides which realms a pass of the monitor checks. No I/O.
//!
//! A realm that is not ready is checked at once, and after a failed refill when its delay is over.
//! The others take turns: a pass checks a few of them, so that its cost does not grow with their
//! number, and each is checked within half a minute.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Minimum number of realms that take turns in one pass.
const TURNS: usize = 64;
/// Number of passes within which every realm is checked once.
const ROUND: usize = 30;
/// First delay after a failed refill.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest delay after a failed refill.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// What the monitor knows about when it checked each realm, by namespace.
#[derive(Debug, Default)]
pub struct Schedule(HashMap<String, Entry>);

#[derive(Debug, Default)]
struct Entry {
    checked: Option<Instant>,
    /// Failures in a row, and when to try again.
    failed: Option<(u32, Instant)>,
}

impl Schedule {
    /// Returns which of `realms` a pass checks, as positions. Each realm is a namespace and whether
    /// it is urgent. Only a pass with `turns` checks realms that are not.
    pub fn due(&mut self, realms: &[(&str, bool)], turns: bool, now: Instant) -> Vec<usize> {
        let known: HashSet<&str> = realms.iter().map(|(namespace, _)| *namespace).collect();
        self.0.retain(|namespace, _| known.contains(namespace.as_str()));
        let waits = |namespace: &str| {
            self.0.get(namespace).and_then(|entry| entry.failed).is_some_and(|(_, at)| at > now)
        };
        let open = (0..realms.len()).filter(|position| !waits(realms[*position].0));
        let (mut due, mut others): (Vec<usize>, Vec<usize>) =
            open.partition(|position| realms[*position].1);
        if turns {
            let checked =
                |position: &usize| self.0.get(realms[*position].0).and_then(|entry| entry.checked);
            others.sort_by_key(checked);
            due.extend(others.into_iter().take(TURNS.max(realms.len().div_ceil(ROUND))));
        }
        due
    }

    /// Records that a realm was checked.
    pub fn checked(&mut self, namespace: &str, now: Instant) {
        self.entry(namespace).checked = Some(now);
    }

    /// Records that a realm is complete.
    pub fn complete(&mut self, namespace: &str) {
        self.entry(namespace).failed = None;
    }

    /// Records that a refill failed.
    pub fn failed(&mut self, namespace: &str, now: Instant) {
        let entry = self.entry(namespace);
        let count = entry.failed.map_or(0, |(count, _)| count);
        let delay = FIRST_DELAY
            .saturating_mul(1_u32.checked_shl(count).unwrap_or(u32::MAX))
            .min(LONGEST_DELAY);
        entry.failed = Some((count.saturating_add(1), now + delay));
    }

    /// Whether the last refill of a realm failed.
    pub fn has_failed(&self, namespace: &str) -> bool {
        self.0.get(namespace).is_some_and(|entry| entry.failed.is_some())
    }

    fn entry(&mut self, namespace: &str) -> &mut Entry {
        if !self.0.contains_key(namespace) {
            self.0.insert(namespace.to_owned(), Entry::default());
        }
        self.0.entry(namespace.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("realm-{number:05}")).collect()
    }

    /// Runs passes, and returns the number of realms that each of them checks.
    fn passes(schedule: &mut Schedule, realms: &[(&str, bool)], count: u64) -> Vec<usize> {
        let begin = Instant::now();
        let pass = |second| {
            let now = begin + Duration::from_secs(second);
            let due = schedule.due(realms, true, now);
            for position in &due {
                schedule.checked(realms[*position].0, now);
            }
            due.len()
        };
        (0..count).map(pass).collect()
    }

    #[test]
    fn every_realm_is_checked_once_in_thirty_passes_of_equal_size() {
        let names = names(3000);
        let realms: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), false)).collect();
        let mut schedule = Schedule::default();
        assert_eq!(passes(&mut schedule, &realms, 30), [100; 30]);
        assert!(schedule.0.values().all(|entry| entry.checked.is_some()));
        assert_eq!(schedule.0.len(), 3000);
    }

    #[test]
    fn few_realms_are_checked_in_every_pass() {
        let names = names(60);
        let realms: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), false)).collect();
        assert_eq!(passes(&mut Schedule::default(), &realms, 3), [60; 3]);
    }

    #[test]
    fn an_urgent_realm_is_checked_at_once_and_takes_no_other_ones_turn() {
        let names = names(200);
        let mut realms: Vec<(&str, bool)> =
            names.iter().map(|name| (name.as_str(), false)).collect();
        realms[150].1 = true;
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        assert_eq!(schedule.due(&realms, false, now), [150]);
        assert_eq!(schedule.due(&realms, true, now).len(), 65);
    }

    #[test]
    fn a_realm_that_cannot_be_filled_waits_longer_and_delays_no_other() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        let realms = [("broken", true), ("new", true)];
        for (failures, delay) in [1, 2, 4, 5, 5].into_iter().enumerate() {
            schedule.failed("broken", now);
            let at = |seconds| now + Duration::from_secs(seconds);
            assert_eq!(schedule.due(&realms, true, at(delay - 1)), [1], "{failures}");
            assert_eq!(schedule.due(&realms, true, at(delay)), [0, 1], "{failures}");
        }
        schedule.complete("broken");
        assert_eq!(schedule.due(&realms, true, now), [0, 1]);
        schedule.due(&realms[1..], true, now);
        assert!(!schedule.0.contains_key("broken"), "a realm that is gone is forgotten");
    }
}
