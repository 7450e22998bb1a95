//! The decision: what a submitted code is worth, and whether a code may be issued.
//!
//! Enters: what the sidecar computed (which steps a code would match, its tag) and the user's state. Leaves: one
//! outcome, and the state changed by it, in one step that nothing comes between.
//!
//! [`UserState`] is the decision for a store in memory. The same rules stand a second time in the scripts of the
//! Redis store; one conformance suite holds both to this page:
//!
//! 1. A node that the publisher has not checked, a missing state, a clock that is off and a record that is not
//!    the current one decide nothing ([`Undecided`]).
//! 2. A block is looked at before anything that could show whether the code was right.
//! 3. A delivered code must have been issued to this caller, be unused and not be past its promised expiry.
//! 4. An authenticator's code must be of a step within the skew, later than every accepted one, and later than
//!    anything that could have been accepted before the store was lost.
//! 5. A success burns the step for everybody and all outstanding codes of its caller.
//! 6. A wrong, expired or never issued code counts; a used one and a request while blocked do not.

use std::collections::HashMap;
use std::time::Duration;

use thiserror::Error;

use crate::names::{Caller, CodeTag};
use crate::seal::Revision;
use crate::time::{Step, UnixMillis};

/// How far the clock of the one who asks may be off before a decision is refused and asked for again.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// When failures slow a caller down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Failures in a row from which on the caller is blocked for this user.
    pub threshold: u32,
    /// The first block; every further failure doubles it.
    pub first_block: Duration,
    /// The longest block.
    pub longest_block: Duration,
}

/// The throttle of every realm: five failures, then 30 seconds, doubling to an hour.
pub const THROTTLE: Throttle =
    Throttle { threshold: 5, first_block: Duration::from_secs(30), longest_block: Duration::from_hours(1) };

impl Throttle {
    /// How long the caller is blocked after this many failures in a row.
    #[must_use]
    pub fn block_after(&self, failures: u32) -> Option<Duration> {
        let doublings = failures.checked_sub(self.threshold)?;
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        Some(self.first_block.saturating_mul(factor).min(self.longest_block))
    }
}

/// Why nothing was decided and nothing counted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Undecided {
    /// The Redis node started, or became master, after the publisher last checked it.
    #[error("the Redis node has not been checked since it started or was promoted")]
    Unguarded,
    /// The store has no state for this user.
    #[error("the store has no state for this user")]
    NoState,
    /// The record that the request was computed from is not the current one.
    #[error("the user's record has changed: revision {} is current", current.0)]
    Stale {
        /// The current revision.
        current: Revision,
    },
    /// The asker's clock is off.
    #[error("the clock differs from the store's")]
    ClockOff {
        /// The store's clock.
        now: UnixMillis,
    },
}

/// How the user gets codes, as far as the decision is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// A code that was issued and delivered.
    Delivered,
    /// A code that the user's authenticator app computed.
    Authenticator,
}

/// A submitted code, and what it would match.
#[derive(Clone, Debug)]
pub struct Verification {
    /// Of the record that the rest was computed from.
    pub revision: Revision,
    /// Who asks.
    pub caller: Caller,
    /// The asker's clock.
    pub asked_at: UnixMillis,
    /// How this user gets codes.
    pub factor: Factor,
    /// What the code is called in the OTP log.
    pub tag: CodeTag,
    /// The steps around `asked_at` whose code this is, ascending.
    pub matches: Vec<Step>,
    /// Seconds that a step lasts.
    pub period: u32,
    /// Steps before and after the current one that are accepted.
    pub skew: u8,
}

/// What a submitted code is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted, once.
    Accepted,
    /// The code was right, but is used up, or may have been before the store was lost.
    Used,
    /// The right code of this moment, never issued to this caller.
    NeverIssued,
    /// Wrong.
    Wrong,
    /// It was issued to this caller, and has expired.
    Expired,
    /// Not looked at: too many failures.
    Blocked {
        /// Until the next try is looked at.
        retry_after: Duration,
    },
}

/// A code that is to be delivered.
#[derive(Clone, Debug)]
pub struct Issuance {
    /// Of the record that the rest was computed from.
    pub revision: Revision,
    /// Who asks.
    pub caller: Caller,
    /// The asker's clock.
    pub asked_at: UnixMillis,
    /// The step whose code it is.
    pub step: Step,
    /// What the code is called in the OTP log.
    pub tag: CodeTag,
    /// Seconds that a step lasts.
    pub period: u32,
    /// How long the code is accepted.
    pub lifetime: Duration,
}

/// Whether a code may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issue {
    /// It is in the OTP log. Asked again within the same step, it is the same entry with the same expiry.
    Issued {
        /// Until when it is accepted; a whole second.
        expires_at: UnixMillis,
    },
    /// The code of this step is used up; the next step has another one.
    Consumed {
        /// Until the next step.
        retry_after: Duration,
    },
}

/// An entry of the OTP log.
#[derive(Clone, Debug)]
struct IssuedCode {
    step: Step,
    issued_at: UnixMillis,
    expires_at: UnixMillis,
    period: u32,
    consumed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct FailureRun {
    count: u32,
    blocked_until: UnixMillis,
}

/// What is remembered of a user between decisions.
#[derive(Clone, Debug)]
pub struct UserState {
    revision: Revision,
    /// Codes of steps up to this moment, and codes issued up to it, may have been used before the store was lost.
    since: UnixMillis,
    /// Steps that begin before this moment are burned.
    accepted_until: UnixMillis,
    failures: HashMap<Caller, FailureRun>,
    issued: HashMap<(Caller, CodeTag), IssuedCode>,
}

fn start_of(step: Step, period: u32) -> UnixMillis {
    UnixMillis::from_seconds(step.number().saturating_mul(u64::from(period)))
}

fn end_of(step: Step, period: u32) -> UnixMillis {
    start_of(Step::new(step.number().saturating_add(1)), period)
}

fn step_at(now: UnixMillis, period: u32) -> u64 {
    now.seconds() / u64::from(period)
}

impl UserState {
    /// The state of a user who is published for the first time, or again after the store was lost.
    ///
    /// `since` is the epoch only for a seed that was just generated: nothing of it can have been used.
    #[must_use]
    pub fn new(revision: Revision, since: UnixMillis) -> Self {
        Self {
            revision,
            since,
            accepted_until: UnixMillis::default(),
            failures: HashMap::new(),
            issued: HashMap::new(),
        }
    }

    /// The revision of the record that decisions must be based on.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A new record is current. With `revoke`, the codes in flight are burned: the seed or the destination changed.
    pub fn publish(&mut self, revision: Revision, revoke: bool) {
        self.revision = revision;
        if revoke {
            // Burned with their steps: the same digits must not be issued, or come from an authenticator, once more.
            for code in self.issued.values_mut() {
                code.consumed = true;
                self.accepted_until = self.accepted_until.max(end_of(code.step, code.period));
            }
        }
    }

    fn check(&self, revision: Revision, asked_at: UnixMillis, now: UnixMillis) -> Result<(), Undecided> {
        if asked_at.distance(now) > CLOCK_TOLERANCE {
            return Err(Undecided::ClockOff { now });
        }
        if revision != self.revision {
            return Err(Undecided::Stale { current: self.revision });
        }
        Ok(())
    }

    /// Decides about a submitted code.
    ///
    /// # Errors
    /// When nothing can be decided on this ground; nothing is counted then.
    pub fn verify(
        &mut self,
        request: &Verification,
        throttle: &Throttle,
        now: UnixMillis,
    ) -> Result<Verdict, Undecided> {
        self.check(request.revision, request.asked_at, now)?;
        let run = self.failures.get(&request.caller).copied().unwrap_or_default();
        if run.blocked_until > now {
            return Ok(Verdict::Blocked { retry_after: now.until(run.blocked_until) });
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
                let count = run.count.saturating_add(1);
                let blocked_until = throttle.block_after(count).map_or(UnixMillis::default(), |block| {
                    now.offset(i64::try_from(block.as_millis()).unwrap_or(i64::MAX))
                });
                self.failures.insert(request.caller.clone(), FailureRun { count, blocked_until });
            }
            Verdict::Used | Verdict::Blocked { .. } => {}
        }
        Ok(verdict)
    }

    fn verify_delivered(&mut self, request: &Verification, now: UnixMillis) -> Verdict {
        let Some(entry) = self.issued.get(&(request.caller.clone(), request.tag)) else {
            let current = step_at(now, request.period);
            let right_now =
                request.matches.iter().any(|step| step.number().abs_diff(current) <= u64::from(request.skew));
            return if right_now { Verdict::NeverIssued } else { Verdict::Wrong };
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
        let current = step_at(now, request.period);
        let skew = u64::from(request.skew);
        // The latest matching step: burning it burns the earlier one with the same code as well.
        let Some(step) = request.matches.iter().filter(|step| step.number().abs_diff(current) <= skew).max()
        else {
            return Verdict::Wrong;
        };
        let possibly_used =
            self.since.millis() > 0 && step.number() <= step_at(self.since, request.period) + skew;
        if possibly_used || start_of(*step, request.period) < self.accepted_until {
            return Verdict::Used;
        }
        self.accepted_until = end_of(*step, request.period);
        Verdict::Accepted
    }

    /// Puts a code into the OTP log, unless it is used up.
    ///
    /// # Errors
    /// When nothing can be decided on this ground. A step that is not the store's current one is an error of
    /// the clock too: the one who asks computes the code again for the step that is.
    pub fn issue(&mut self, request: &Issuance, now: UnixMillis) -> Result<Issue, Undecided> {
        self.check(request.revision, request.asked_at, now)?;
        let current = step_at(now, request.period);
        if request.step.number() != current {
            return Err(Undecided::ClockOff { now });
        }
        let possibly_used = self.since.millis() > 0 && current <= step_at(self.since, request.period);
        if possibly_used || start_of(request.step, request.period) < self.accepted_until {
            return Ok(Issue::Consumed { retry_after: now.until(end_of(request.step, request.period)) });
        }
        // An entry is kept while it could be accepted or its step come again.
        self.issued.retain(|_, code| code.expires_at.max(end_of(code.step, code.period)) >= now);
        let key = (request.caller.clone(), request.tag);
        if let Some(entry) = self.issued.get(&key)
            && entry.step == request.step
            && entry.expires_at >= now
        {
            return Ok(if entry.consumed {
                Issue::Consumed { retry_after: now.until(end_of(request.step, request.period)) }
            } else {
                Issue::Issued { expires_at: entry.expires_at }
            });
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
        Ok(Issue::Issued { expires_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_double_from_the_threshold_to_an_hour() {
        let seconds = |failures| THROTTLE.block_after(failures).map(|block| block.as_secs());
        assert_eq!(seconds(4), None);
        assert_eq!(seconds(5), Some(30));
        assert_eq!(seconds(6), Some(60));
        assert_eq!(seconds(11), Some(1920));
        assert_eq!(seconds(12), Some(3600));
        assert_eq!(seconds(u32::MAX), Some(3600));
    }
}
