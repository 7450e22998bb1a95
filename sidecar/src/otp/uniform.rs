//! Answers that keep to themselves who is a user: for services that pass them on to the public.
//! Enters: a username, known or not. Leaves: what really happened, for the log; and the same work
//! done for every name.
//!
//! Of every name the record is read, and it is asked whether there is such a user; nothing is taken
//! from memory. Then a decision is asked for: of a user it is the real one, of anybody else one on
//! a record that nobody has, which the store cannot accept, count or keep. What the caller is told
//! follows from [`Refusal::is_told_uniformly`] and [`expires_at`], and when from
//! [`until_the_beat`].

use std::time::{Duration, Instant};

use twofactor_core::decision::{Event, Verdict};
use twofactor_core::realm::{OtpLifetime, RealmRecord};
use twofactor_core::time::UnixMillis;
use twofactor_store::StoreError;

use crate::otp::generate::{self, Issued, Wish};
use crate::otp::records::CurrentUser;
use crate::otp::service::Service;
use crate::otp::verify::{self, Claim};
use crate::refusal::Refusal;

/// What `expires_at` is counted from. A user who asks twice within it is told the same twice, as
/// everybody is.
const QUANTUM: u64 = 30;
/// The longest that a code may be accepted (NIST SP 800-63B).
const LONGEST: Duration = Duration::from_mins(10);

/// When answers are given: at a multiple of this after the request came. What is done for a user
/// and not for others, such as writing their history, takes a tenth of a millisecond, and ends long
/// before the first.
const BEAT: Duration = Duration::from_millis(10);

/// Waits until the moment at which a request that came at `began` may be answered.
pub async fn until_the_beat(began: Instant) {
    let beats =
        u32::try_from(began.elapsed().as_nanos() / BEAT.as_nanos()).unwrap_or(u32::MAX - 1) + 1;
    tokio::time::sleep_until((began + BEAT * beats).into()).await;
}

/// A name that was looked up.
#[derive(Debug)]
pub enum Found {
    /// An enabled user.
    User(CurrentUser),
    /// Somebody else, with a record to do the same work on.
    Nobody(CurrentUser),
}

/// Until when a code is good that is asked for now, for a name of which nothing is known.
#[must_use]
pub fn expires_at(now: UnixMillis, lifetime: OtpLifetime) -> UnixMillis {
    let begin = now.seconds() / QUANTUM * QUANTUM;
    UnixMillis::from_seconds(begin + lifetime.duration().as_secs())
}

/// For how long a code of steps of `period` seconds is issued, so that it is good for as long as
/// [`expires_at`] says, also when it is one that was asked for before. Ten minutes stay ten
/// minutes: there, a step that is not one of 30 seconds may cut it short.
#[must_use]
pub fn lifetime(lifetime: OtpLifetime, period: u32) -> Duration {
    let period = u64::from(period);
    let longer = match period {
        _ if QUANTUM.is_multiple_of(period) => 0,
        _ if period.is_multiple_of(QUANTUM) => period - QUANTUM,
        _ => period,
    };
    (lifetime.duration() + Duration::from_secs(longer)).min(LONGEST)
}

/// Decides about a code.
///
/// # Errors
/// What really happened.
pub async fn decide(
    service: &Service,
    realm: &RealmRecord,
    claim: &Claim,
) -> Result<Verdict, Refusal> {
    match service.records.find(&claim.username).await? {
        Found::User(user) => verify::decide_on(service, user, realm, claim).await,
        Found::Nobody(stand_in) => {
            let request = verify::verification(service, &stand_in, realm, claim);
            nothing_came_of(service.store.verify(&stand_in.pseudonym, &request).await)?;
            Err(Refusal::UnknownUser)
        }
    }
}

/// Why no code is sent, and what is to be remembered of it once the caller has the answer.
#[derive(Debug)]
pub struct Refused {
    /// What really happened.
    pub refusal: Refusal,
    /// For the user's history.
    pub aftermath: Option<(CurrentUser, Event)>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, aftermath: None }
    }
}

/// Puts a code into the OTP log, if there is somebody to send it to.
///
/// # Errors
/// What really happened.
pub async fn issue(service: &Service, wish: &Wish) -> Result<Issued, Refused> {
    let realm = service.realm().await?;
    let (pseudonym, refused) = match service.records.find(&wish.username).await? {
        Found::User(user) if service.can_send(&user.record, &realm.1) => {
            return Ok(generate::issue_to(service, user, realm, wish).await?);
        }
        Found::User(user) => {
            let (refusal, event) = match user.record.seed {
                None => (Refusal::NoSeed, Event::NoSecret),
                Some(_) => (Refusal::NoDelivery, Event::NoDeliveryMethod),
            };
            (user.pseudonym, Refused { refusal, aftermath: Some((user, event)) })
        }
        Found::Nobody(stand_in) => (stand_in.pseudonym, Refusal::UnknownUser.into()),
    };
    let stand_in = service.records.stand_in(pseudonym);
    if let Some((request, _)) = generate::issuance(service, &stand_in, &realm.1, wish) {
        nothing_came_of(service.store.issue(&stand_in.pseudonym, &request).await)?;
    }
    Err(refused)
}

/// The answer about a record that nobody has: that it is not the current one, or that there is
/// none. Everything else, such as a Redis that does not answer, is what a user would be told as
/// well.
fn nothing_came_of<T>(answer: Result<T, StoreError>) -> Result<(), Refusal> {
    use twofactor_core::decision::Undecided::{ClockOff, NoState, Stale};
    match answer {
        Ok(_) | Err(StoreError::Undecided(NoState | Stale { .. } | ClockOff { .. })) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_is_never_later_than_what_is_kept() {
        for minutes in [1, 5, 8] {
            let lifetime_of = OtpLifetime::try_from(minutes).unwrap();
            for period in [15_u32, 20, 30, 45, 60, 100, 120] {
                for asked in (1_798_000_000..1_798_000_240).step_by(7) {
                    // The first time in its step; every later time in it gives the same entry.
                    let kept =
                        UnixMillis::from_seconds(asked + lifetime(lifetime_of, period).as_secs());
                    let end = (asked / u64::from(period) + 1) * u64::from(period);
                    for again in (asked..end).step_by(5) {
                        let promised = expires_at(UnixMillis::from_seconds(again), lifetime_of);
                        assert!(promised <= kept, "{minutes} {period} {asked} {again}");
                    }
                }
            }
        }
    }
}
