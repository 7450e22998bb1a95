//! Answers so that no client can see which names are users, for services that pass answers on to
//! the public.
//!
//! For every name, the record is read and the store is asked whether there is such a user; nothing
//! is taken from memory. Then a decision is asked for: for an enabled user the real one, for any
//! other name one on a dummy record, which the store can neither accept, count nor store. The
//! caller sees what [`Refusal::is_same_for_every_name`] allows, at a moment given by
//! [`wait_for_answer_slot`].

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use twofactor_core::decision::{Event, Verdict};
use twofactor_core::time::UnixMillis;
use twofactor_core::user::DeliveryMethod;
use twofactor_store::StoreError;

use crate::otp::answer_time::{self, wait_for_answer_slot};
use crate::otp::ask_store;
use crate::otp::outcome_log::record_generate;
use crate::otp::records::{CurrentUser, Lookup, Realm};
use crate::otp::requests::{CodeRequest, Issued, VerifyRequest};
use crate::otp::send::send;
use crate::otp::service::Service;
use crate::refusal::Refusal;

/// Replaces a refusal of verify that depends on the name.
pub fn hide(refusal: Refusal) -> Refusal {
    if refusal.is_same_for_every_name() { refusal } else { Refusal::WrongCode }
}

/// Decides about a code with the same work for every name. The result is what really happened.
pub async fn verify(
    service: &Service,
    realm: &Realm,
    request: &VerifyRequest,
) -> Result<(Verdict, DeliveryMethod), Refusal> {
    match service.records.look_up(&request.username).await? {
        Lookup::Enabled(user) => ask_store::verify(service, user, realm, request).await,
        Lookup::Unknown(dummy) => {
            let verification = ask_store::verification(service, &dummy, realm, request);
            expect_no_decision(service.store.verify(&dummy.pseudonym, &verification).await)?;
            Err(Refusal::UnknownUser)
        }
    }
}

/// Generates a code, and answers every name alike: when the decision is made, and before the code
/// is delivered. Returns the `expires_at` of the answer.
pub async fn generate(
    service: &Arc<Service>,
    realm: Arc<Realm>,
    request: CodeRequest,
) -> Result<UnixMillis, Refusal> {
    let began = Instant::now();
    let result = generate_in_background(service, realm, request).await;
    wait_for_answer_slot(began).await;
    result
}

async fn generate_in_background(
    service: &Arc<Service>,
    realm: Arc<Realm>,
    request: CodeRequest,
) -> Result<UnixMillis, Refusal> {
    // For every name, because a refusal of users alone would show who is one.
    let Some(permit) = service.background.permit() else {
        record_generate(service, &request, Err(&Refusal::Unavailable));
        return Err(Refusal::Unavailable);
    };
    let (answer, answered) = oneshot::channel();
    let task = service.clone();
    service.background.spawn(async move {
        let expires_at = answer_time::expires_at(task.store.now(), realm.record.otp_lifetime);
        let decided = ask_store::within_timeout(issue(&task, &request)).await;
        // A client that hung up changes nothing.
        let result = match decided {
            Err(Refused { refusal, .. }) if refusal.is_same_for_every_name() => {
                record_generate(&task, &request, Err(&refusal));
                let _ = answer.send(Err(refusal));
                return;
            }
            Ok(issued) => {
                let _ = answer.send(Ok(expires_at));
                send(&task, issued, &request).await
            }
            Err(Refused { refusal, event }) => {
                let _ = answer.send(Ok(expires_at));
                if let Some((user, event)) = event {
                    ask_store::report_event(&task, &user, &realm, &request.origin, event).await;
                }
                Err(refusal)
            }
        };
        record_generate(&task, &request, result.as_ref());
        drop(permit);
    });
    answered.await.unwrap_or(Err(Refusal::Internal))
}

/// Why no code is sent.
struct Refused {
    /// What really happened.
    refusal: Refusal,
    /// The event to report once the caller has the answer.
    event: Option<(CurrentUser, Event)>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, event: None }
    }
}

/// Puts a code into the OTP log if the name is that of a user who can get it, with the same work
/// for every name.
async fn issue(service: &Service, request: &CodeRequest) -> Result<Issued, Refused> {
    let realm = service.realm().await?;
    let (pseudonym, refused) = match service.records.look_up(&request.username).await? {
        Lookup::Enabled(user) if service.can_send(&user.record, &realm.record) => {
            return Ok(ask_store::issue(service, user, realm, request).await?);
        }
        Lookup::Enabled(user) => {
            let (refusal, event) = match user.record.seed {
                None => (Refusal::NoSeed, Event::NoSecret),
                Some(_) => (Refusal::NoDelivery, Event::NoDeliveryMethod),
            };
            (user.pseudonym, Refused { refusal, event: Some((user, event)) })
        }
        Lookup::Unknown(dummy) => (dummy.pseudonym, Refusal::UnknownUser.into()),
    };
    let dummy = service.records.dummy(pseudonym);
    if let Some((issuance, _)) = ask_store::issuance(service, &dummy, &realm, request) {
        expect_no_decision(service.store.issue(&dummy.pseudonym, &issuance).await)?;
    }
    Err(refused)
}

/// Checks the store's reply to a question about a dummy record: there is no such record, or it is
/// not the current one. Any other failure, such as a Redis that does not answer, is the caller's to
/// see, because it is the same for a user.
fn expect_no_decision<T>(reply: Result<T, StoreError>) -> Result<(), Refusal> {
    use twofactor_core::decision::Undecided::{ClockOff, NoState, Stale};
    match reply {
        Ok(_) | Err(StoreError::Undecided(NoState | Stale { .. } | ClockOff { .. })) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
