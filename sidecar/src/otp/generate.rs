//! Generate: make a code, put it into the OTP log, deliver it. Enters: a username. Leaves: until
//! when the code is accepted, or a refusal.

use std::sync::Arc;

use twofactor_core::code::Code;
use twofactor_core::context::Context;
use twofactor_core::decision::{DeliveryReport, Event, Issuance, Issue};
use twofactor_core::limits::Allowance;
use twofactor_core::realm::RealmRecord;
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::{DeliveryMethod, Username};

use crate::audit::Origin;
use crate::delivery::Message;
use crate::otp::records::CurrentUser;
use crate::otp::service::{ATTEMPTS, Service, within_bound};
use crate::otp::uniform;
use crate::refusal::Refusal;

/// Whom a code is asked for, and what for.
#[derive(Debug)]
pub struct Wish {
    /// The user.
    pub username: Username,
    /// What the code is for.
    pub context: Option<Context>,
    /// Whom the request came from.
    pub origin: Origin,
}

/// A code that was delivered.
#[derive(Debug)]
pub struct Generated {
    /// The code; shown to nobody unless exposing it is switched on.
    pub code: Code,
    /// Until when it is accepted.
    pub expires_at: UnixMillis,
    /// How it was sent.
    pub channel: DeliveryMethod,
}

/// Makes and delivers a code. Asked again within the same time step and in the same context, it
/// delivers the same one again, where the limits allow that.
///
/// # Errors
/// Every reason that the contract names.
pub async fn generate(service: &Service, wish: &Wish) -> Result<Generated, Refusal> {
    let issued = within_bound(issue(service, wish)).await?;
    // Not within the same bound: what is in the OTP log and not sent has to be given back.
    let issued = count(service, issued, wish).await?;
    deliver(service, issued, wish).await
}

/// Sends a code that is in the OTP log.
///
/// # Errors
/// [`Refusal::NotDelivered`] when the provider does not take it.
pub async fn deliver(service: &Service, issued: Issued, wish: &Wish) -> Result<Generated, Refusal> {
    let (definition, realm) = (&issued.user.record.definition, &issued.realm.1);
    let message = Message {
        code: &issued.code,
        expires_at: issued.expires_at,
        issuer: definition.issuer.as_ref().unwrap_or(&realm.issuer),
        service: &service.caller,
        context: wish.context.as_ref().map(Context::as_str),
        now: service.store.now(),
    };
    let result = service.deliver(definition, realm, &message).await;
    let event = match result {
        Ok(()) => Event::Sent,
        Err(_) => Event::Refused { asked_at: issued.asked_at },
    };
    conclude(service, &issued.user, realm, &wish.origin, event).await;
    result.map_err(|error| Refusal::NotDelivered(error.reason()))?;
    Ok(Generated {
        code: issued.code,
        expires_at: issued.expires_at,
        channel: definition.delivery_method,
    })
}

/// A code in the OTP log, and what is needed to send it.
#[derive(Debug)]
pub struct Issued {
    user: CurrentUser,
    realm: Arc<(Revision, RealmRecord)>,
    code: Code,
    expires_at: UnixMillis,
    asked_at: UnixMillis,
}

async fn issue(service: &Service, wish: &Wish) -> Result<Issued, Refusal> {
    let realm = service.realm().await?;
    let mut user = service.records.enabled_user(&wish.username).await?;
    if !service.can_send(&user.record, &realm.1) {
        // No decision would tell that this record is outdated, so it is read again before it is
        // believed.
        user = service.records.reload_enabled(user.pseudonym).await?;
    }
    issue_to(service, user, realm, wish).await
}

/// Puts a code for this user into the OTP log.
///
/// # Errors
/// As [`generate`].
pub async fn issue_to(
    service: &Service,
    mut user: CurrentUser,
    realm: Arc<(Revision, RealmRecord)>,
    wish: &Wish,
) -> Result<Issued, Refusal> {
    for _ in 0..ATTEMPTS {
        // What cannot be sent is not issued.
        let Some((request, code)) = issuance(service, &user, &realm.1, wish) else {
            conclude(service, &user, &realm.1, &wish.origin, Event::NoSecret).await;
            return Err(Refusal::NoSeed);
        };
        if !service.can_send(&user.record, &realm.1) {
            conclude(service, &user, &realm.1, &wish.origin, Event::NoDeliveryMethod).await;
            return Err(Refusal::NoDelivery);
        }
        match service.store.issue(&user.pseudonym, &request).await {
            Ok(Issue::Issued { expires_at, asked_at }) => {
                return Ok(Issued { user, realm, code, expires_at, asked_at });
            }
            Ok(Issue::Consumed { retry_after }) => {
                return Err(Refusal::CodeConsumed { retry_after });
            }
            Ok(Issue::TooSoon { retry_after, in_flight }) => {
                return Err(Refusal::TooSoon { retry_after, in_flight });
            }
            Ok(Issue::Disabled) => return Err(Refusal::Disabled),
            Err(why) => user = service.new_ground(user, why).await?,
        }
    }
    Err(Refusal::Unavailable)
}

/// What is asked of the store for the code of this moment, and the code; nothing for a user without
/// a seed.
#[must_use]
pub fn issuance(
    service: &Service,
    user: &CurrentUser,
    realm: &RealmRecord,
    wish: &Wish,
) -> Option<(Issuance, Code)> {
    let definition = &user.record.definition;
    let context = wish.context.as_ref();
    let now = service.store.now();
    let step = definition.totp.step_at(now);
    let code = user.record.totp_in(context)?.code_of(step);
    let lifetime = if realm.uniform_answers {
        uniform::lifetime(realm.otp_lifetime, definition.totp.period())
    } else {
        realm.otp_lifetime.duration()
    };
    let request = Issuance {
        revision: user.revision,
        caller: service.caller.clone(),
        asked_at: now,
        step,
        tag: service.records.keys().code_tag(&user.pseudonym, &service.caller, &code, context),
        period: definition.totp.period(),
        lifetime,
        limits: realm.limits,
        audit: wish.origin.audit_context(realm, definition.delivery_method),
    };
    Some((request, code))
}

/// Counts the delivery that is about to be made, if the realm may still make one.
///
/// # Errors
/// [`Refusal::DeliveryLimitReached`] when it may not.
pub async fn count(service: &Service, issued: Issued, wish: &Wish) -> Result<Issued, Refusal> {
    let realm = &issued.realm.1;
    let most = realm.limits.deliveries_per_hour;
    if most == 0 {
        return Ok(issued);
    }
    match service.store.count_delivery(most).await {
        Ok(Allowance::Granted) => Ok(issued),
        Ok(Allowance::LimitReached { retry_after }) => {
            tracing::warn!(
                most,
                "the realm has sent as many codes within an hour as it may: this one is not sent"
            );
            conclude(service, &issued.user, realm, &wish.origin, Event::DeliveryLimitReached).await;
            Err(Refusal::DeliveryLimitReached { retry_after })
        }
        // The decision was made a moment ago: it is this key only that an operator of the version
        // before has not opened.
        Err(error) if error.is_access_refused() => {
            tracing::warn!(
                "this sidecar's login to Redis may not count deliveries: they are not limited"
            );
            Ok(issued)
        }
        Err(error) => {
            // It is not sent, so the user need not wait to ask again.
            let event = Event::Refused { asked_at: issued.asked_at };
            conclude(service, &issued.user, realm, &wish.origin, event).await;
            Err(error.into())
        }
    }
}

/// Tells the store what happened. Nothing depends on its answer: without it, a history has less, or
/// a user waits a minute.
pub async fn conclude(
    service: &Service,
    user: &CurrentUser,
    realm: &RealmRecord,
    origin: &Origin,
    event: Event,
) {
    let audit = origin.audit_context(realm, user.record.definition.delivery_method);
    let report = DeliveryReport { caller: service.caller.clone(), event, audit };
    if let Err(error) = service.store.record_delivery(&user.pseudonym, &report).await {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(event = event.name(), %error, cause, "the store did not take note");
    }
}
