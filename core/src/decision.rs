//! Decides whether a submitted code is accepted, and whether a code may be issued.
//!
//! The sidecar computes which steps a code would match and its tag. A decision compares this with
//! the user's state and changes the state, in one step that nothing can interrupt.
//!
//! [`UserState`] makes the decisions of a store in memory. The scripts of the Redis store implement
//! the same rules, and one conformance suite checks that both follow this page:
//!
//! 1. A node that the publisher has not checked, a missing state, a clock that is off and a record
//!    that is not the current one decide nothing ([`Undecided`]).
//! 2. A block is checked before anything that could show whether the code was right.
//! 3. A delivered code must have been issued to this caller, be unused and not be past its promised
//!    expiry. The codes of a step are issued to one caller only, and not at all once a code of it
//!    was guessed.
//! 4. An authenticator's code must be of a step within the skew, later than every accepted one, and
//!    later than anything that could have been accepted before the store lost data.
//! 5. A success marks the step used for every caller, and all outstanding codes of its caller.
//! 6. A wrong, expired or never issued code counts as a failure; a used one and a request while
//!    blocked do not.
//! 7. A hundred failures in a row within 30 days, of all callers together, disable the user until
//!    an administrator resets them. A success ends the run of its caller only. Each caller also has
//!    a budget of failures a day, which a success does not change.
//! 8. The limits on how often codes are requested are checked before a code is issued or sent
//!    again; codes in flight are not changed. One of several callers gets half of a user's codes.
//! 9. A moment that is further ahead than two steps was written while the store's clock was ahead.
//!    It is moved back, so that no user is locked out, and what was accepted then is used again
//!    when that time comes.
//! 10. The outcome is written to the user's history (`crate::audit`) in the same step.

mod state;

use std::time::Duration;

use thiserror::Error;

pub use self::state::UserState;
use crate::audit::{AuditContext, Operation};
use crate::limits::Limits;
use crate::names::{Caller, CodeTag};
use crate::seal::Revision;
use crate::time::{Step, UnixMillis};
use crate::totp::LONGEST_PERIOD;

/// Maximum difference between the sidecar's clock and the store's. With a larger one, nothing is
/// decided and the sidecar asks again.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// Maximum time by which a moment in a state can be ahead: two of the longest steps. One that is
/// further ahead was written while the clock was ahead.
pub const LONGEST_AHEAD: Duration = Duration::from_secs(2 * LONGEST_PERIOD as u64);

/// Time by which a block may last longer than the failures cause, because the clock was set back a
/// little. One that lasts even longer was set while the clock was ahead, and has no effect.
pub const BLOCK_MARGIN: Duration = Duration::from_mins(1);

/// The rules by which failures block a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Number of failures in a row after which the caller is blocked for this user.
    pub threshold: u32,
    /// Duration of the first block. Every further failure doubles it.
    pub first_block: Duration,
    /// Maximum duration of a block.
    pub longest_block: Duration,
    /// Number of failures in a row, of all callers together, after which the user is disabled.
    pub disable_after: u32,
    /// Number of days after which a failure does not count any more.
    pub forget_after_days: u64,
}

/// The throttle of every realm: blocked for 30 seconds after five failures, doubling to an hour,
/// and disabled after 100 failures in a row, the maximum that NIST SP 800-63B allows.
pub const THROTTLE: Throttle = Throttle {
    threshold: 5,
    first_block: Duration::from_secs(30),
    longest_block: Duration::from_hours(1),
    disable_after: 100,
    forget_after_days: 30,
};

/// Duration of the budget of failures of a user and caller. It begins with the first failure.
pub const BUDGET: Duration = Duration::from_hours(24);

impl Throttle {
    /// Returns how long the caller is blocked after this number of failures in a row.
    #[must_use]
    pub fn block_after(&self, failures: u32) -> Option<Duration> {
        let doublings = failures.checked_sub(self.threshold)?;
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        Some(self.first_block.saturating_mul(factor).min(self.longest_block))
    }
}

/// Reason why nothing was decided and nothing counted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Undecided {
    /// The Redis node started, or became master, after the publisher last checked it.
    #[error("the Redis node has not been checked since it started or was promoted")]
    UncheckedNode,
    /// The store has no state for this user.
    #[error("the store has no state for this user")]
    NoState,
    /// The request was computed from a record that is not the current one.
    #[error("the user's record has changed: revision {} is current", current.0)]
    Stale {
        /// The current revision.
        current: Revision,
    },
    /// The sidecar's clock is off.
    #[error("the clock differs from the store's")]
    ClockOff {
        /// The time of the store's clock.
        now: UnixMillis,
    },
}

/// How the user gets codes, as far as a decision depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// A code that was issued and delivered.
    Delivered,
    /// A code that the user's authenticator app computed.
    Authenticator,
}

/// A request to verify a code, with what the code would match.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The revision of the record that the request was computed from.
    pub revision: Revision,
    /// The namespace of the calling service.
    pub caller: Caller,
    /// The time of the sidecar's clock.
    pub asked_at: UnixMillis,
    /// How this user gets codes.
    pub factor: Factor,
    /// The name of the code in the OTP log.
    pub tag: CodeTag,
    /// The steps around `asked_at` that have this code, ascending.
    pub matches: Vec<Step>,
    /// Duration of a step in seconds.
    pub period: u32,
    /// Number of accepted steps before and after the current one.
    pub skew: u8,
    /// Maximum number of failures of this caller within a day. 0 means no limit.
    pub failures_per_day: u16,
    /// What the history records beside the verdict.
    pub audit: AuditContext,
}

/// The result of verifying a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The code is accepted, once.
    Accepted,
    /// The code is right, but was used, or may have been used before the store lost data.
    Used,
    /// The code is right at this moment, but was never issued to this caller. It will not be.
    NeverIssued,
    /// The code is wrong.
    Wrong,
    /// The code was issued to this caller, and has expired.
    Expired,
    /// The code was not checked, because of too many failures.
    Blocked {
        /// Time until the next attempt is checked.
        retry_after: Duration,
    },
    /// The code was not checked, because this caller has used up the failures of a day.
    FailuresUsedUp {
        /// Time until the next attempt is checked.
        retry_after: Duration,
    },
    /// The code was not checked, because failures have disabled the user until an administrator
    /// resets them.
    Disabled,
}

impl Verdict {
    /// Returns the name in the history.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Used => "used",
            Self::NeverIssued => "never-issued",
            Self::Wrong => "wrong",
            Self::Expired => "expired",
            Self::Blocked { .. } => "blocked",
            Self::FailuresUsedUp { .. } => "failures-used-up",
            Self::Disabled => "disabled-by-failures",
        }
    }
}

/// A request to issue a code for delivery.
#[derive(Clone, Debug)]
pub struct Issuance {
    /// The revision of the record that the request was computed from.
    pub revision: Revision,
    /// The namespace of the calling service.
    pub caller: Caller,
    /// The time of the sidecar's clock.
    pub asked_at: UnixMillis,
    /// The step of the code.
    pub step: Step,
    /// The name of the code in the OTP log.
    pub tag: CodeTag,
    /// Duration of a step in seconds.
    pub period: u32,
    /// Duration for which the code is accepted.
    pub lifetime: Duration,
    /// Limits on how often codes are issued.
    pub limits: Limits,
    /// Maximum number of codes of this caller within an hour. It has no effect if it is 0 or that
    /// of `limits`.
    pub own_per_hour: u16,
    /// What the history records beside the outcome.
    pub audit: AuditContext,
}

/// The result of issuing a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issue {
    /// The code is in the OTP log. Another request within the same step gets the same entry with
    /// the same expiry.
    Issued {
        /// The moment until which the code is accepted; a whole second.
        expires_at: UnixMillis,
        /// The time of the request by the store's clock, which [`DeliveryReport`] needs to cancel
        /// the pause.
        asked_at: UnixMillis,
    },
    /// The code of this step was used, guessed, or issued to another caller. The next step has
    /// another one.
    Consumed {
        /// Time until the next step.
        retry_after: Duration,
    },
    /// A code was issued too recently, or too many within the hour. Codes in flight have not
    /// changed.
    TooSoon {
        /// Time until a code may be requested again.
        retry_after: Duration,
        /// The moment until which this caller's last code is accepted, if it still is.
        in_flight: Option<UnixMillis>,
    },
    /// This caller has used its share of the codes within the hour. Codes in flight have not
    /// changed.
    ShareUsedUp {
        /// Time until this caller may request a code again.
        retry_after: Duration,
    },
    /// Failures have disabled the user until an administrator resets them.
    Disabled,
}

impl Issue {
    /// Returns the name in the history.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Issued { .. } => "issued",
            Self::Consumed { .. } => "consumed",
            Self::TooSoon { .. } => "too-soon",
            Self::ShareUsedUp { .. } => "share-used-up",
            Self::Disabled => "disabled-by-failures",
        }
    }
}

/// Reports to the history what became of a delivery, or why there was none. If the provider refused
/// the code, the pause until the next code is cancelled.
#[derive(Clone, Debug)]
pub struct DeliveryReport {
    /// The namespace of the calling service.
    pub caller: Caller,
    /// What happened.
    pub event: Event,
    /// What the history records beside it.
    pub audit: AuditContext,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The code was sent.
    Sent,
    /// The provider refused the code. The user may request another one at once, but this one counts
    /// for the hour.
    Refused {
        /// The time of the request, from [`Issue::Issued`].
        asked_at: UnixMillis,
    },
    /// The code was not sent, because the realm has reached its limit. It counts as if it was sent,
    /// because otherwise nothing would bound the requests to such a realm.
    DeliveryLimitReached,
    /// The same, because the caller has used its share of the limit.
    DeliveryShareUsedUp,
    /// A code was requested for a user without a seed.
    NoSecret,
    /// A code was requested for a user who has no delivery method.
    NoDeliveryMethod,
}

impl Event {
    /// Returns the operation that the event belongs to.
    #[must_use]
    pub const fn operation(self) -> Operation {
        match self {
            Self::Sent
            | Self::Refused { .. }
            | Self::DeliveryLimitReached
            | Self::DeliveryShareUsedUp => Operation::Delivery,
            Self::NoSecret | Self::NoDeliveryMethod => Operation::Generate,
        }
    }

    /// Returns the name in the history.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Refused { .. } => "refused",
            Self::DeliveryLimitReached => "delivery-limit-reached",
            Self::DeliveryShareUsedUp => "share-used-up",
            Self::NoSecret => "no-secret",
            Self::NoDeliveryMethod => "no-delivery-method",
        }
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
