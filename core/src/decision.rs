//! The decision: what a submitted code is worth, and whether a code may be issued.
//!
//! Enters: what the sidecar computed (which steps a code would match, its tag) and the user's
//! state. Leaves: one outcome, and the state changed by it, in one step that nothing comes between.
//!
//! [`UserState`] is the decision for a store in memory. The same rules stand a second time in the
//! scripts of the Redis store; one conformance suite holds both to this page:
//!
//! 1. A node that the publisher has not checked, a missing state, a clock that is off and a record
//!    that is not the current one decide nothing ([`Undecided`]).
//! 2. A block is looked at before anything that could show whether the code was right.
//! 3. A delivered code must have been issued to this caller, be unused and not be past its promised
//!    expiry.
//! 4. An authenticator's code must be of a step within the skew, later than every accepted one, and
//!    later than anything that could have been accepted before the store was lost.
//! 5. A success burns the step for everybody and all outstanding codes of its caller.
//! 6. A wrong, expired or never issued code counts; a used one and a request while blocked do not.
//! 7. A hundred failures in a row, those of all callers together, disable the user until somebody
//!    resets it. A success ends the run of its caller only.
//! 8. How often a code may be asked for is looked at before one is made or sent again; what is in
//!    flight stays as it is.
//! 9. What came of it is in the user's history (`crate::audit`) when the decision is made, and with
//!    it.

mod state;

use std::time::Duration;

use thiserror::Error;

pub use self::state::UserState;
use crate::audit::{AuditContext, Operation};
use crate::limits::Limits;
use crate::names::{Caller, CodeTag};
use crate::seal::Revision;
use crate::time::{Step, UnixMillis};

/// How far the clock of the one who asks may be off before a decision is refused and asked for
/// again.
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
    /// Failures in a row, those of all callers together, from which on the user is disabled.
    pub disable_after: u32,
}

/// The throttle of every realm: five failures, then 30 seconds, doubling to an hour; disabled after
/// the hundred in a row that NIST SP 800-63B allows at most.
pub const THROTTLE: Throttle = Throttle {
    threshold: 5,
    first_block: Duration::from_secs(30),
    longest_block: Duration::from_hours(1),
    disable_after: 100,
};

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
    UncheckedNode,
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
    /// What the history says beside the verdict.
    pub audit: AuditContext,
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
    /// Not looked at: so many failures that somebody has to look into it first.
    Disabled,
}

impl Verdict {
    /// The name in the history.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Used => "used",
            Self::NeverIssued => "never-issued",
            Self::Wrong => "wrong",
            Self::Expired => "expired",
            Self::Blocked { .. } => "blocked",
            Self::Disabled => "disabled-by-failures",
        }
    }
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
    /// How often one may be asked for.
    pub limits: Limits,
    /// What the history says beside the outcome.
    pub audit: AuditContext,
}

/// Whether a code may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issue {
    /// It is in the OTP log. Asked again within the same step, it is the same entry with the same
    /// expiry.
    Issued {
        /// Until when it is accepted; a whole second.
        expires_at: UnixMillis,
        /// When it was asked for, by the store's clock: what [`DeliveryReport`] needs to give it back.
        asked_at: UnixMillis,
    },
    /// The code of this step is used up; the next step has another one.
    Consumed {
        /// Until the next step.
        retry_after: Duration,
    },
    /// One was asked for a moment ago, or too many within the hour. Nothing that is in flight has
    /// changed.
    TooSoon {
        /// Until one may be asked for again.
        retry_after: Duration,
        /// Until when this caller's last code is accepted, while it is.
        in_flight: Option<UnixMillis>,
    },
    /// So many failures that somebody has to look into it first.
    Disabled,
}

impl Issue {
    /// The name in the history.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Issued { .. } => "issued",
            Self::Consumed { .. } => "consumed",
            Self::TooSoon { .. } => "too-soon",
            Self::Disabled => "disabled-by-failures",
        }
    }
}

/// What happened after a decision, or kept it from being asked for: for the history, and to give
/// back what came to nothing.
#[derive(Clone, Debug)]
pub struct DeliveryReport {
    /// Who asked.
    pub caller: Caller,
    /// What happened.
    pub event: Event,
    /// What the history says beside it.
    pub audit: AuditContext,
}

/// Something that happened beside decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The code was sent.
    Sent,
    /// The provider refused it. The user may ask again at once; for the hour it counts.
    Refused {
        /// When it was asked for, as [`Issue::Issued`] has it.
        asked_at: UnixMillis,
    },
    /// It was not sent, because the realm has sent as many as it may. It counts as if it had been:
    /// otherwise, nothing would bound how often such a realm is asked.
    DeliveryLimitReached,
    /// A code was asked for by a user without a seed.
    NoSecret,
    /// A code was asked for by a user whom nothing can be sent to.
    NoDeliveryMethod,
}

impl Event {
    /// What was asked for.
    #[must_use]
    pub const fn operation(self) -> Operation {
        match self {
            Self::Sent | Self::Refused { .. } | Self::DeliveryLimitReached => Operation::Delivery,
            Self::NoSecret | Self::NoDeliveryMethod => Operation::Generate,
        }
    }

    /// The name in the history.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Refused { .. } => "refused",
            Self::DeliveryLimitReached => "delivery-limit-reached",
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
