//! Asks the store for a decision about a code, with a record that is current.

use std::sync::Arc;
use std::time::Duration;

use twofactor_core::code::Code;
use twofactor_core::decision::{
    DeliveryReport, Event, Factor, Issuance, Issue, Undecided, Verdict, Verification,
};
use twofactor_core::user::DeliveryMethod;
use twofactor_store::StoreError;

use crate::audit::Origin;
use crate::otp::answer_time;
use crate::otp::records::{Answers, CurrentUser, Realm};
use crate::otp::requests::{CodeRequest, Issued, VerifyRequest};
use crate::otp::service::Service;
use crate::refusal::Refusal;

/// Timeout for a decision, including all reads and retries: a client gets its 503 within a second.
const DECISION_TIMEOUT: Duration = Duration::from_millis(900);
/// Maximum number of attempts at a decision, because a record may have changed or a clock be off.
const ATTEMPTS: usize = 4;
const NO_ATTEMPT_SUCCEEDED: &str = "the user's record or the clock was another at each attempt";

/// Bounds the time that a decision takes.
pub async fn within_timeout<T, E: From<Refusal>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(DECISION_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(Refusal::undecided("no answer in time").into()))
}

/// Asks the store whether the code is accepted. Returns the verdict, and how the user gets codes by
/// the record that it was made on.
pub async fn verify(
    service: &Service,
    mut user: CurrentUser,
    realm: &Realm,
    request: &VerifyRequest,
) -> Result<(Verdict, DeliveryMethod), Refusal> {
    for _ in 0..ATTEMPTS {
        let verification = verification(service, &user, realm, request);
        match service.store.verify(&user.pseudonym, &verification).await {
            Ok(verdict) => return Ok((verdict, user.record.definition.delivery_method)),
            Err(error) => user = refresh_after(service, user, error).await?,
        }
    }
    Err(Refusal::undecided(NO_ATTEMPT_SUCCEEDED))
}

/// Builds the question whether a code is accepted now.
pub fn verification(
    service: &Service,
    user: &CurrentUser,
    realm: &Realm,
    request: &VerifyRequest,
) -> Verification {
    let (code, context) = (&request.code, request.context.as_ref());
    let definition = &user.record.definition;
    let now = service.store.now();
    // One step more than the skew, because the clock of the store, which decides, may be a step
    // ahead.
    let margin = u64::from(definition.totp.skew()) + 1;
    let around = definition.totp.step_at(now);
    let (factor, totp) = match definition.delivery_method {
        // An authenticator knows nothing of contexts.
        DeliveryMethod::App => (Factor::Authenticator, user.record.totp()),
        DeliveryMethod::Email | DeliveryMethod::Sms | DeliveryMethod::Webhook => {
            (Factor::Delivered, user.record.totp_in(context))
        }
    };
    Verification {
        revision: user.revision,
        caller: service.caller.clone(),
        asked_at: now,
        factor,
        tag: service.records.keys().code_tag(&user.pseudonym, &service.caller, code, context),
        matches: totp.map_or_else(Vec::new, |totp| totp.matching_steps(code, around, margin)),
        period: definition.totp.period(),
        skew: definition.totp.skew(),
        failures_per_day: realm.record.limits.failures_per_day,
        audit: request.origin.audit_context(&realm.record, definition.delivery_method),
    }
}

/// Puts a code for this user into the OTP log.
pub async fn issue(
    service: &Service,
    mut user: CurrentUser,
    realm: Arc<Realm>,
    request: &CodeRequest,
) -> Result<Issued, Refusal> {
    for _ in 0..ATTEMPTS {
        // A code that cannot be sent is not issued.
        let Some((issuance, code)) = issuance(service, &user, &realm, request) else {
            report_event(service, &user, &realm, &request.origin, Event::NoSecret).await;
            return Err(Refusal::NoSeed);
        };
        if !service.can_send(&user.record, &realm.record) {
            report_event(service, &user, &realm, &request.origin, Event::NoDeliveryMethod).await;
            return Err(Refusal::NoDelivery);
        }
        match service.store.issue(&user.pseudonym, &issuance).await {
            Ok(Issue::Issued { expires_at, asked_at }) => {
                return Ok(Issued { user, realm, code, expires_at, asked_at });
            }
            Ok(Issue::Consumed { retry_after }) => {
                return Err(Refusal::CodeConsumed { retry_after });
            }
            Ok(Issue::TooSoon { retry_after, in_flight }) => {
                return Err(Refusal::TooSoon { retry_after, in_flight });
            }
            Ok(Issue::ShareUsedUp { retry_after }) => {
                return Err(Refusal::ShareUsedUp { retry_after });
            }
            Ok(Issue::Disabled) => return Err(Refusal::Disabled),
            Err(error) => user = refresh_after(service, user, error).await?,
        }
    }
    Err(Refusal::undecided(NO_ATTEMPT_SUCCEEDED))
}

/// Computes the code of this time step and builds the request to put it into the OTP log. Returns
/// `None` for a user without a seed.
pub fn issuance(
    service: &Service,
    user: &CurrentUser,
    realm: &Realm,
    request: &CodeRequest,
) -> Option<(Issuance, Code)> {
    let definition = &user.record.definition;
    let context = request.context.as_ref();
    let now = service.store.now();
    let step = definition.totp.step_at(now);
    let code = user.record.totp_in(context)?.code_of(step);
    let lifetime = realm.record.otp_lifetime;
    let issuance = Issuance {
        revision: user.revision,
        caller: service.caller.clone(),
        asked_at: now,
        step,
        tag: service.records.keys().code_tag(&user.pseudonym, &service.caller, &code, context),
        period: definition.totp.period(),
        lifetime: match realm.answers {
            Answers::Precise => lifetime.duration(),
            Answers::Uniform => answer_time::lifetime(lifetime, definition.totp.period()),
        },
        limits: realm.record.limits,
        own_per_hour: realm.record.limits.share_of_generates(realm.record.number_of_callers()),
        audit: request.origin.audit_context(&realm.record, definition.delivery_method),
    };
    Some((issuance, code))
}

/// Returns the user for the next attempt, after the store did not decide because of `error`.
async fn refresh_after(
    service: &Service,
    user: CurrentUser,
    error: StoreError,
) -> Result<CurrentUser, Refusal> {
    match error {
        StoreError::Undecided(Undecided::Stale { current }) => {
            service.metrics.store().stale_record();
            let user = service.records.reload_enabled(user.pseudonym).await?;
            if user.revision < current {
                Err(Refusal::undecided("the user's record in Redis is older than its state"))
            } else {
                Ok(user)
            }
        }
        // Either the user was removed, or the store has lost the record: reading it says which.
        StoreError::Undecided(Undecided::NoState) => {
            service.records.reload(user.pseudonym).await?;
            Err(Refusal::undecided("Redis has a record of the user, and no state"))
        }
        // The store now knows the difference between the clocks, so the next attempt is computed
        // with it.
        StoreError::Undecided(Undecided::ClockOff { .. }) => Ok(user),
        error => Err(error.into()),
    }
}

/// Reports to the store what happened after a decision, or instead of one.
///
/// A failure is only logged: without the report, the user's history lacks an entry or the user
/// waits a minute for another code.
pub async fn report_event(
    service: &Service,
    user: &CurrentUser,
    realm: &Realm,
    origin: &Origin,
    event: Event,
) {
    let audit = origin.audit_context(&realm.record, user.record.definition.delivery_method);
    let report = DeliveryReport { caller: service.caller.clone(), event, audit };
    let store = service.store_of_users(realm);
    if let Err(error) = store.record_delivery(&user.pseudonym, &report).await {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(event = event.name(), %error, cause, "failed to report an event to the store");
    }
}
