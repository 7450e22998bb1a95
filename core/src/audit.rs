//! What is remembered of every request, for whoever has to find out later. Enters: what came of a
//! request, and whom it came from. Leaves: the user's history, trimmed by age.
//!
//! [`History`] is the history in memory. The same rules stand a second time in the scripts of the
//! Redis store, where it is a stream. What nothing else bounds, such as requests while blocked, is
//! written once and then counted; the counts are part of the next entry that is written. So nobody
//! can fill the store, or hide something in a crowd, by repeating themselves.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::Caller;
use crate::time::UnixMillis;
use crate::user::DeliveryMethod;

/// For so long, the same is only counted; then it is written again.
const COUNTED_FOR: Duration = Duration::from_hours(1);

/// The outcomes that nothing bounds: they can be had again and again, and change nothing.
const UNBOUNDED: [&str; 8] = [
    "blocked",
    "consumed",
    "delivery-limit-reached",
    "disabled-by-failures",
    "no-delivery-method",
    "no-secret",
    "too-soon",
    "used",
];

/// The longest time that entries are kept, in days.
pub const LONGEST_RETENTION_DAYS: u16 = 365;

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditPolicy {
    /// For how many days.
    pub retention_days: u16,
    /// Whether the end user's address and program are part of it, as far as services pass them on.
    pub origin: bool,
}

impl Default for AuditPolicy {
    fn default() -> Self {
        Self { retention_days: 30, origin: true }
    }
}

impl AuditPolicy {
    /// How long entries are kept.
    #[must_use]
    pub const fn retention(&self) -> Duration {
        Duration::from_hours(self.retention_days as u64 * 24)
    }
}

/// What is written beside an outcome.
#[derive(Clone, Debug, Default)]
pub struct AuditContext {
    /// How the user gets codes.
    pub channel: DeliveryMethod,
    /// The end user's address, where it is to be kept.
    pub address: Option<String>,
    /// The end user's program, where it is to be kept.
    pub user_agent: Option<String>,
    /// How long entries are kept.
    pub retention: Duration,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A code.
    Generate,
    /// Sending a code that was made.
    Delivery,
    /// Whether a code is right.
    Verify,
}

impl Operation {
    /// The name in entries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Delivery => "delivery",
            Self::Verify => "verify",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, by the store's clock.
    pub at: UnixMillis,
    /// What was asked for.
    pub operation: String,
    /// What it came to.
    pub outcome: String,
    /// Who asked.
    pub caller: String,
    /// How the user gets codes.
    pub channel: String,
    /// The end user's address.
    pub address: Option<String>,
    /// The end user's program.
    pub user_agent: Option<String>,
    /// What was counted and not written since this caller's entry before:
    /// `operation/outcome=count`, separated by spaces.
    pub repeated: Option<String>,
}

/// What is counted for a caller.
#[derive(Clone, Debug)]
struct Counted {
    since: UnixMillis,
    /// Each kind, in the order in which it came up first.
    kinds: Vec<(String, u64)>,
}

/// What happened to a user.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: VecDeque<Entry>,
    counted: HashMap<Caller, Counted>,
}

impl History {
    /// The entries, the oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }

    /// Writes an entry, or counts it.
    pub(crate) fn add(
        &mut self,
        operation: Operation,
        outcome: &'static str,
        caller: &Caller,
        audit: &AuditContext,
        now: UnixMillis,
    ) {
        let kind = format!("{}/{outcome}", operation.name());
        let unbounded = UNBOUNDED.contains(&outcome);
        let mut counted = self.counted.remove(caller);
        let fresh =
            counted.as_ref().is_some_and(|counted| counted.since.distance(now) < COUNTED_FOR);
        if let Some(known) = &mut counted
            && unbounded
            && fresh
            && let Some((_, count)) = known.kinds.iter_mut().find(|(name, _)| *name == kind)
        {
            *count += 1;
            self.counted.extend(counted.map(|counted| (caller.clone(), counted)));
            return;
        }
        let repeated: Vec<String> = counted
            .iter()
            .flat_map(|counted| &counted.kinds)
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name}={count}"))
            .collect();
        self.entries.push_back(Entry {
            at: now,
            operation: operation.name().to_owned(),
            outcome: outcome.to_owned(),
            caller: caller.to_string(),
            channel: audit.channel.name().to_owned(),
            address: audit.address.clone(),
            user_agent: audit.user_agent.clone(),
            repeated: (!repeated.is_empty()).then(|| repeated.join(" ")),
        });
        let oldest = now.offset(-i64::try_from(audit.retention.as_millis()).unwrap_or(i64::MAX));
        while self.entries.front().is_some_and(|entry| entry.at < oldest) {
            self.entries.pop_front();
        }
        if unbounded {
            let mut counted =
                counted.filter(|_| fresh).unwrap_or(Counted { since: now, kinds: Vec::new() });
            for (_, count) in &mut counted.kinds {
                *count = 0;
            }
            counted.kinds.push((kind, 0));
            self.counted.insert(caller.clone(), counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit() -> AuditContext {
        AuditContext { retention: AuditPolicy::default().retention(), ..AuditContext::default() }
    }

    fn outcomes(history: &History) -> Vec<(String, Option<String>)> {
        history
            .entries
            .iter()
            .map(|entry| (entry.outcome.clone(), entry.repeated.clone()))
            .collect()
    }

    #[test]
    fn two_unbounded_outcomes_in_turn_do_not_fill_the_history() {
        let (mut history, kms) = (History::default(), "kms".parse().unwrap());
        for millis in 0..1000 {
            let at = UnixMillis::new(1_000_000 + millis);
            history.add(Operation::Verify, "used", &kms, &audit(), at);
            history.add(Operation::Generate, "too-soon", &kms, &audit(), at);
        }
        assert_eq!(outcomes(&history), [("used".to_owned(), None), ("too-soon".to_owned(), None)]);
        history.add(Operation::Verify, "accepted", &kms, &audit(), UnixMillis::new(1_002_000));
        let repeated = "verify/used=999 generate/too-soon=999".to_owned();
        assert_eq!(outcomes(&history)[2], ("accepted".to_owned(), Some(repeated)));
        history.add(Operation::Verify, "used", &kms, &audit(), UnixMillis::new(1_003_000));
        assert_eq!(history.entries.len(), 4, "after another entry the first one is written again");
    }

    #[test]
    fn after_an_hour_the_same_is_written_again_with_what_was_counted() {
        let (mut history, kms) = (History::default(), "kms".parse().unwrap());
        for minutes in [0, 1, 59, 60, 61] {
            history.add(
                Operation::Verify,
                "blocked",
                &kms,
                &audit(),
                UnixMillis::from_seconds(minutes * 60),
            );
        }
        let repeated = Some("verify/blocked=2".to_owned());
        assert_eq!(
            outcomes(&history),
            [("blocked".to_owned(), None), ("blocked".to_owned(), repeated)]
        );
    }
}
