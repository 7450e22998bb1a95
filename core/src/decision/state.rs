//! Holds a user's state and the rules by which it changes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{
    BLOCK_MARGIN, BUDGET, CLOCK_TOLERANCE, DeliveryReport, Event, Factor, Issuance, Issue,
    LONGEST_AHEAD, Throttle, Undecided, Verdict, Verification,
};
use crate::audit::{Entry, History, Operation};
use crate::limits::{Asked, MAXIMUM_CODES_IN_FLIGHT};
use crate::names::{Caller, CodeTag};
use crate::seal::Revision;
use crate::time::{Step, UnixMillis};

/// An entry of the OTP log.
#[derive(Clone, Debug)]
struct IssuedCode {
    step: Step,
    issued_at: UnixMillis,
    expires_at: UnixMillis,
    period: u32,
    consumed: bool,
}

#[derive(Clone, Debug, Default)]
struct FailureRun {
    /// The number of failures in a row by the day, counted from the epoch.
    days: BTreeMap<u64, u32>,
    blocked_until: UnixMillis,
}

impl FailureRun {
    /// The failures in a row that are not too old.
    fn count(&self, throttle: &Throttle, now: UnixMillis) -> u32 {
        let today = day_of(now);
        let recent = self
            .days
            .iter()
            .filter(|(day, _)| **day + throttle.forget_after_days > today && **day <= today + 1);
        recent.fold(0_u32, |sum, (_, count)| sum.saturating_add(*count)).min(throttle.disable_after)
    }
}

/// The failures of a caller since the first one of a day.
#[derive(Clone, Copy, Debug)]
struct Budget {
    since: UnixMillis,
    used: u32,
}

fn day_of(now: UnixMillis) -> u64 {
    now.seconds() / 86_400
}

/// The state of a user between decisions.
#[derive(Clone, Debug)]
pub struct UserState {
    revision: Revision,
    /// Codes of steps up to this moment, and codes issued up to it, may have been used before the
    /// store lost data.
    since: UnixMillis,
    /// Steps that begin before this moment are used.
    accepted_until: UnixMillis,
    /// When this time comes, steps that begin before it are used: they were accepted while the
    /// clock was ahead.
    ahead: UnixMillis,
    failures: HashMap<Caller, FailureRun>,
    budgets: HashMap<Caller, Budget>,
    /// Whether there were too many failures in a row.
    disabled: bool,
    /// The last request to reset the failures that was carried out.
    reset: Option<String>,
    issued: HashMap<(Caller, CodeTag), IssuedCode>,
    asked: Asked,
    asked_by: HashMap<Caller, Asked>,
    history: History,
}

fn start_of(step: Step, period: u32) -> UnixMillis {
    UnixMillis::from_seconds(step.number().saturating_mul(u64::from(period)))
}

fn end_of(step: Step, period: u32) -> UnixMillis {
    start_of(Step::new(step.number().saturating_add(1)), period)
}

fn later(now: UnixMillis, duration: Duration) -> UnixMillis {
    now.offset(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

/// Returns the latest moment that a decision at `now` can have written.
fn latest(now: UnixMillis, period: u32) -> UnixMillis {
    later(now, Duration::from_secs(2 * u64::from(period)))
}

fn step_at(now: UnixMillis, period: u32) -> u64 {
    now.seconds() / u64::from(period)
}

/// Returns the latest step within the skew that has the code, because using it also uses an earlier
/// one with the same code.
fn latest_match(request: &Verification, now: UnixMillis) -> Option<Step> {
    let current = step_at(now, request.period);
    let within = |step: &&Step| step.number().abs_diff(current) <= u64::from(request.skew);
    request.matches.iter().filter(within).max().copied()
}

impl UserState {
    /// Creates the state of a user who is published for the first time, or again after the store
    /// lost data.
    ///
    /// `since` is the epoch only for a new seed, because none of its codes can have been used.
    #[must_use]
    pub fn new(revision: Revision, since: UnixMillis) -> Self {
        Self {
            revision,
            since,
            accepted_until: UnixMillis::default(),
            ahead: UnixMillis::default(),
            failures: HashMap::new(),
            budgets: HashMap::new(),
            disabled: false,
            reset: None,
            issued: HashMap::new(),
            asked: Asked::default(),
            asked_by: HashMap::new(),
            history: History::default(),
        }
    }

    /// Returns the revision of the record that decisions must be based on.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Makes a new record current at `now`. With `revoke`, the codes in flight are marked used,
    /// because the seed or the destination has changed.
    pub fn publish(&mut self, revision: Revision, revoke: bool, now: UnixMillis) {
        self.revision = revision;
        if revoke {
            // Their steps are marked used too: the same digits must neither be issued again nor
            // be accepted from an authenticator.
            for code in self.issued.values_mut() {
                code.consumed = true;
                self.accepted_until = self.accepted_until.max(end_of(code.step, code.period));
            }
        }
        self.move_back(later(now, LONGEST_AHEAD), now);
    }

    /// Marks a new state as that of a user who was disabled by failures before the store lost it.
    /// `reset` is the last request to reset them, which was carried out before.
    pub fn restore_failures(&mut self, disabled: bool, reset: Option<&str>) {
        self.disabled = disabled;
        self.reset = reset.map(str::to_owned);
    }

    /// Moves back what was written while the clock was ahead, which is everything after `latest`.
    fn move_back(&mut self, latest: UnixMillis, now: UnixMillis) {
        if self.since > latest || self.accepted_until > latest {
            self.ahead = self.ahead.max(self.since).max(self.accepted_until);
            if self.since > latest {
                self.since = now;
            }
            self.accepted_until = self.accepted_until.min(latest);
        } else if self.ahead <= latest {
            self.accepted_until = self.accepted_until.max(self.ahead);
        }
    }

    /// Forgets all failures and what was counted, unless this request was already carried out.
    pub fn reset_failures(&mut self, request: &str) {
        if self.reset.as_deref() != Some(request) {
            self.reset = Some(request.to_owned());
            self.failures.clear();
            self.budgets.clear();
            self.disabled = false;
            self.asked = Asked::default();
            self.asked_by.clear();
            self.history.forget_counts();
        }
    }

    /// The last request to reset the failures that was carried out.
    #[must_use]
    pub fn reset(&self) -> Option<&str> {
        self.reset.as_deref()
    }

    /// Returns whether failures have disabled the user.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.disabled
    }

    /// Returns the history, the oldest entry first.
    #[must_use]
    pub fn history(&self) -> Vec<Entry> {
        self.history.entries()
    }

    fn check(
        &mut self,
        revision: Revision,
        asked_at: UnixMillis,
        period: u32,
        now: UnixMillis,
    ) -> Result<(), Undecided> {
        if asked_at.distance(now) > CLOCK_TOLERANCE {
            return Err(Undecided::ClockOff { now });
        }
        if revision != self.revision {
            return Err(Undecided::Stale { current: self.revision });
        }
        let latest = latest(now, period);
        self.move_back(latest, now);
        self.issued.retain(|_, code| {
            code.issued_at <= latest && start_of(code.step, code.period) <= latest
        });
        Ok(())
    }

    /// Decides whether a submitted code is accepted.
    ///
    /// # Errors
    /// If the preconditions do not hold. Then nothing is counted.
    pub fn verify(
        &mut self,
        request: &Verification,
        throttle: &Throttle,
        now: UnixMillis,
    ) -> Result<Verdict, Undecided> {
        self.check(request.revision, request.asked_at, request.period, now)?;
        let verdict = self.evaluate(request, throttle, now);
        self.history.add(Operation::Verify, verdict.name(), &request.caller, &request.audit, now);
        Ok(verdict)
    }

    fn evaluate(
        &mut self,
        request: &Verification,
        throttle: &Throttle,
        now: UnixMillis,
    ) -> Verdict {
        if self.disabled {
            return Verdict::Disabled;
        }
        let budget = self.budgets.get(&request.caller).filter(|budget| {
            budget.since <= later(now, BLOCK_MARGIN) && budget.since.until(now) < BUDGET
        });
        let budget = budget.copied().unwrap_or(Budget { since: now, used: 0 });
        let most = u32::from(request.failures_per_day);
        if most > 0 && budget.used >= most {
            let retry_after = now.until(later(budget.since, BUDGET));
            return Verdict::FailuresUsedUp { retry_after };
        }
        let run = self.failures.get(&request.caller).cloned().unwrap_or_default();
        let known = run.count(throttle, now);
        // A block that lasts longer than these failures cause was set while the clock was ahead.
        let longest = throttle.block_after(known.max(throttle.threshold)).unwrap_or_default();
        let block = now.until(run.blocked_until);
        if block > Duration::ZERO && block <= longest + BLOCK_MARGIN {
            return Verdict::Blocked { retry_after: block };
        }
        let verdict = match request.factor {
            Factor::Delivered => self.verify_delivered(request, now),
            Factor::Authenticator => self.verify_authenticator(request, now),
        };
        match verdict {
            Verdict::Accepted => {
                self.failures.remove(&request.caller);
            }
            Verdict::Wrong | Verdict::Expired | Verdict::NeverIssued => {
                let count = known.saturating_add(1);
                let blocked_until = throttle
                    .block_after(count)
                    .map_or(UnixMillis::default(), |block| later(now, block));
                let mut days = run.days;
                *days.entry(day_of(now)).or_default() += 1;
                let run = FailureRun { days, blocked_until };
                self.failures.insert(request.caller.clone(), run);
                if most > 0 {
                    let budget = Budget { used: budget.used.saturating_add(1), ..budget };
                    self.budgets.insert(request.caller.clone(), budget);
                }
                let runs = self.failures.values();
                let all = runs.fold(0_u32, |sum, run| sum.saturating_add(run.count(throttle, now)));
                self.disabled = all >= throttle.disable_after;
            }
            Verdict::Used
            | Verdict::Blocked { .. }
            | Verdict::FailuresUsedUp { .. }
            | Verdict::Disabled => {}
        }
        verdict
    }

    fn verify_delivered(&mut self, request: &Verification, now: UnixMillis) -> Verdict {
        let Some(entry) = self.issued.get(&(request.caller.clone(), request.tag)) else {
            let Some(step) = latest_match(request, now) else { return Verdict::Wrong };
            // The answer shows that the guess was right, so the code must not be issued later.
            self.accepted_until = self.accepted_until.max(end_of(step, request.period));
            return Verdict::NeverIssued;
        };
        if entry.consumed || (self.since.millis() > 0 && entry.issued_at <= self.since) {
            return Verdict::Used;
        }
        if now > entry.expires_at {
            return Verdict::Expired;
        }
        let (step, period) = (entry.step, entry.period);
        for ((caller, _), other) in &mut self.issued {
            if *caller == request.caller || other.step == step {
                other.consumed = true;
            }
        }
        self.accepted_until = self.accepted_until.max(end_of(step, period));
        Verdict::Accepted
    }

    fn verify_authenticator(&mut self, request: &Verification, now: UnixMillis) -> Verdict {
        let Some(step) = latest_match(request, now) else { return Verdict::Wrong };
        let possibly_used = self.since.millis() > 0
            && step.number() <= step_at(self.since, request.period) + u64::from(request.skew);
        if possibly_used || start_of(step, request.period) < self.accepted_until {
            return Verdict::Used;
        }
        self.accepted_until = end_of(step, request.period);
        Verdict::Accepted
    }

    /// Adds a code to the OTP log, unless it was used or was requested too soon.
    ///
    /// # Errors
    /// If the preconditions do not hold. A step that is not the store's current one counts as an
    /// error of the clock, so that the sidecar computes the code again for the current step.
    pub fn issue(&mut self, request: &Issuance, now: UnixMillis) -> Result<Issue, Undecided> {
        self.check(request.revision, request.asked_at, request.period, now)?;
        if request.step.number() != step_at(now, request.period) {
            return Err(Undecided::ClockOff { now });
        }
        let issue = self.issue_within_limits(request, now);
        self.history.add(Operation::Generate, issue.name(), &request.caller, &request.audit, now);
        Ok(issue)
    }

    fn issue_within_limits(&mut self, request: &Issuance, now: UnixMillis) -> Issue {
        if self.disabled {
            return Issue::Disabled;
        }
        let wait = self.asked.wait(request.limits, now);
        let own = self.asked_by.get(&request.caller);
        let share = request.own_per_hour;
        let is_shared = (1..request.limits.generates_per_hour).contains(&share);
        let own = own.filter(|_| is_shared).and_then(|asked| asked.wait_for_hour(share, now));
        if let Some(retry_after) = own
            && own > wait
        {
            return Issue::ShareUsedUp { retry_after };
        }
        if let Some(retry_after) = wait {
            return Issue::TooSoon { retry_after, in_flight: self.in_flight(&request.caller, now) };
        }
        let issue = self.issue_now(request, now);
        if matches!(issue, Issue::Issued { .. }) {
            self.asked.add(request.limits, now);
            if is_shared {
                let own = self.asked_by.entry(request.caller.clone()).or_default();
                own.add(request.limits, now);
            }
        }
        issue
    }

    /// Returns the latest expiry among this caller's unused codes.
    fn in_flight(&self, caller: &Caller, now: UnixMillis) -> Option<UnixMillis> {
        let lost = |code: &IssuedCode| self.since.millis() > 0 && code.issued_at <= self.since;
        let codes = self.issued.iter().filter(|((of, _), _)| of == caller).map(|(_, code)| code);
        codes
            .filter(|code| !code.consumed && !lost(code) && code.expires_at >= now)
            .map(|code| code.expires_at)
            .max()
    }

    /// Returns whether a code of this time was issued to another caller, which has the same digits.
    fn is_taken(&self, request: &Issuance) -> bool {
        let start = start_of(request.step, request.period);
        let end = end_of(request.step, request.period);
        self.issued.iter().any(|((caller, _), code)| {
            *caller != request.caller
                && start_of(code.step, code.period) < end
                && end_of(code.step, code.period) > start
        })
    }

    fn issue_now(&mut self, request: &Issuance, now: UnixMillis) -> Issue {
        let (current, asked_at) = (request.step.number(), now);
        let consumed =
            Issue::Consumed { retry_after: now.until(end_of(request.step, request.period)) };
        let possibly_used =
            self.since.millis() > 0 && current <= step_at(self.since, request.period);
        if possibly_used || start_of(request.step, request.period) < self.accepted_until {
            return consumed;
        }
        // An entry is needed until it has expired and its step has ended.
        self.issued.retain(|_, code| code.expires_at.max(end_of(code.step, code.period)) >= now);
        if self.is_taken(request) {
            return consumed;
        }
        let key = (request.caller.clone(), request.tag);
        if let Some(entry) = self.issued.get(&key)
            && entry.step == request.step
            && entry.expires_at >= now
        {
            let expires_at = entry.expires_at;
            return if entry.consumed { consumed } else { Issue::Issued { expires_at, asked_at } };
        }
        let own = self.issued.iter().filter(|((caller, _), _)| *caller == request.caller);
        let ends: Vec<UnixMillis> =
            own.map(|(_, code)| code.expires_at.max(end_of(code.step, code.period))).collect();
        if ends.len() >= MAXIMUM_CODES_IN_FLIGHT
            && let Some(first) = ends.into_iter().min()
        {
            // One millisecond more, because an entry is kept through the millisecond in which it
            // expires.
            let retry_after = now.until(first.offset(1));
            return Issue::TooSoon { retry_after, in_flight: self.in_flight(&request.caller, now) };
        }
        let expires_at = UnixMillis::from_seconds(now.seconds() + request.lifetime.as_secs());
        let entry = IssuedCode {
            step: request.step,
            issued_at: now,
            expires_at,
            period: request.period,
            consumed: false,
        };
        self.issued.insert(key, entry);
        Issue::Issued { expires_at, asked_at }
    }

    /// Records what became of a delivery.
    pub fn record_delivery(&mut self, report: &DeliveryReport, now: UnixMillis) {
        match report.event {
            Event::Refused { asked_at } => self.asked.undo_last_interval(asked_at),
            // The interval still applies, so that a realm at its limit is not asked more often than
            // one that sends codes.
            Event::DeliveryLimitReached
            | Event::DeliveryShareUsedUp
            | Event::Sent
            | Event::NoSecret
            | Event::NoDeliveryMethod => {}
        }
        let event = report.event;
        self.history.add(event.operation(), event.name(), &report.caller, &report.audit, now);
    }
}
