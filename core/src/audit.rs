//! Records what became of each request, for later investigation.
//!
//! [`History`] is the history in memory. The scripts of the Redis store implement the same rules
//! with a list. Outcomes that nothing else bounds, such as requests while blocked, are written
//! once and then counted; the counts are part of the next entry. So no client can fill the store,
//! or hide an entry among many, by repeating requests.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::Caller;
use crate::time::UnixMillis;
use crate::user::DeliveryMethod;

/// Time for which a repeated outcome is only counted. Then it is written again.
const COUNTED_FOR: Duration = Duration::from_hours(1);

/// Outcomes that nothing else bounds: a client can cause them again and again, and they change
/// nothing.
const UNBOUNDED: [&str; 10] = [
    "blocked",
    "consumed",
    "delivery-limit-reached",
    "disabled-by-failures",
    "failures-used-up",
    "no-delivery-method",
    "no-secret",
    "share-used-up",
    "too-soon",
    "used",
];

/// Outcome of a request for a code that was issued, and is to be delivered.
pub(crate) const ISSUED: &str = "issued";

/// Maximum retention of entries, in days.
pub const MAXIMUM_RETENTION_DAYS: u16 = 365;

/// Maximum number of entries of a history that can be configured. Older ones are removed.
pub const MAXIMUM_ENTRIES: u16 = 500;
/// Minimum number of entries of a history that can be configured: some failures in a row, and what
/// was before them.
pub const MINIMUM_ENTRIES: u16 = 10;

/// What is recorded, and for how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditPolicy {
    /// Number of days for which entries are kept.
    pub retention_days: u16,
    /// Maximum number of entries of a user's history.
    pub entries: u16,
    /// Whether the end user's address and user agent are recorded, if services pass them on.
    pub origin: bool,
}

impl Default for AuditPolicy {
    fn default() -> Self {
        Self { retention_days: 30, entries: MAXIMUM_ENTRIES, origin: true }
    }
}

impl AuditPolicy {
    /// Returns how long entries are kept.
    #[must_use]
    pub const fn retention(&self) -> Duration {
        Duration::from_hours(self.retention_days as u64 * 24)
    }
}

/// What the history records beside an outcome.
#[derive(Clone, Debug)]
pub struct AuditContext {
    /// How the user gets codes.
    pub channel: DeliveryMethod,
    /// The end user's address, if it is recorded.
    pub address: Option<String>,
    /// The end user's user agent, if it is recorded.
    pub user_agent: Option<String>,
    /// How long entries are kept.
    pub retention: Duration,
    /// Maximum number of entries of the history.
    pub most_entries: u16,
}

impl AuditContext {
    /// Returns what the policy wants of a request, without the end user's address and user agent.
    #[must_use]
    pub const fn new(policy: AuditPolicy, channel: DeliveryMethod) -> Self {
        let (retention, most_entries) = (policy.retention(), policy.entries);
        Self { channel, address: None, user_agent: None, retention, most_entries }
    }
}

/// What the calling service requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To issue a code.
    Generate,
    /// To deliver an issued code.
    Delivery,
    /// To verify a code.
    Verify,
}

impl Operation {
    /// Returns the name in entries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Delivery => "delivery",
            Self::Verify => "verify",
        }
    }
}

/// One entry of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The time of the request, by the store's clock.
    pub at: UnixMillis,
    /// The operation that was requested.
    pub operation: String,
    /// The outcome.
    pub outcome: String,
    /// The namespace of the calling service.
    pub caller: String,
    /// How the user gets codes.
    pub channel: String,
    /// The end user's address.
    pub address: Option<String>,
    /// The end user's user agent.
    pub user_agent: Option<String>,
    /// Outcomes that were counted but not written since this caller's previous entry:
    /// `operation/outcome=count`, separated by spaces.
    pub repeated: Option<String>,
}

/// The counts of one caller.
#[derive(Clone, Debug)]
struct Counted {
    since: UnixMillis,
    /// Each kind, in the order of its first occurrence.
    kinds: Vec<(String, u64)>,
}

/// The history of a user.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: VecDeque<Entry>,
    counted: HashMap<Caller, Counted>,
}

impl History {
    /// Returns the entries, the oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }

    /// Forgets what was counted and not written.
    pub(crate) fn forget_counts(&mut self) {
        self.counted.clear();
    }

    /// Writes an entry, or only counts it.
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
        // What becomes of an issued code is the next entry, which has the counts. Otherwise a limit
        // of deliveries would leave an entry each time.
        let mut counted = if outcome == ISSUED { None } else { self.counted.remove(caller) };
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
        while self.entries.len() > usize::from(audit.most_entries)
            || self.entries.front().is_some_and(|entry| entry.at < oldest)
        {
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
        AuditContext::new(AuditPolicy::default(), DeliveryMethod::Email)
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
    fn deliveries_that_a_limit_stops_leave_one_entry_beside_those_of_the_issued_codes() {
        let (mut history, kms) = (History::default(), "kms".parse().unwrap());
        for minute in 0..5 {
            let at = UnixMillis::from_seconds(minute * 60);
            history.add(Operation::Generate, ISSUED, &kms, &audit(), at);
            history.add(Operation::Delivery, "delivery-limit-reached", &kms, &audit(), at);
        }
        let stopped = history.entries.iter().filter(|entry| entry.outcome != ISSUED).count();
        assert_eq!((stopped, history.entries.len()), (1, 6));
        history.add(Operation::Delivery, "sent", &kms, &audit(), UnixMillis::from_seconds(600));
        let repeated = "delivery/delivery-limit-reached=4".to_owned();
        assert_eq!(outcomes(&history)[6], ("sent".to_owned(), Some(repeated)));
    }

    #[test]
    fn a_realm_can_have_shorter_histories() {
        let (mut history, kms) = (History::default(), "kms".parse().unwrap());
        let policy = AuditPolicy { entries: 10, ..AuditPolicy::default() };
        let audit = AuditContext::new(policy, DeliveryMethod::App);
        for second in 0..20 {
            let at = UnixMillis::from_seconds(second);
            history.add(Operation::Verify, "accepted", &kms, &audit, at);
        }
        assert_eq!((history.entries.len(), history.entries[0].at.seconds()), (10, 10));
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
