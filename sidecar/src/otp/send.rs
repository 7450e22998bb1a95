//! Sends a code that is in the OTP log, within the realm's hourly limit.

use twofactor_core::context::Context;
use twofactor_core::decision::Event;
use twofactor_core::limits::Allowance;

use crate::delivery::Message;
use crate::otp::ask_store::report_event;
use crate::otp::requests::{CodeRequest, Generated, Issued};
use crate::otp::service::Service;
use crate::refusal::Refusal;

/// Counts the delivery, if the realm's limit allows another one, and sends the code.
pub async fn send(
    service: &Service,
    issued: Issued,
    request: &CodeRequest,
) -> Result<Generated, Refusal> {
    count(service, &issued, request).await?;
    deliver(service, issued, request).await
}

async fn count(service: &Service, issued: &Issued, request: &CodeRequest) -> Result<(), Refusal> {
    let (user, realm) = (&issued.user, &issued.realm);
    let most = realm.record.limits.deliveries_per_hour;
    if most == 0 {
        return Ok(());
    }
    let most_own = realm.record.limits.share_of_deliveries(realm.record.number_of_callers());
    let store = service.store_of_users(realm);
    match store.count_delivery(&service.caller, most, most_own).await {
        Ok(Allowance::Granted) => Ok(()),
        Ok(Allowance::LimitReached { retry_after }) => {
            tracing::warn!(most, "code not sent: the realm's hourly limit is reached");
            report_event(service, user, realm, &request.origin, Event::DeliveryLimitReached).await;
            Err(Refusal::DeliveryLimitReached { retry_after })
        }
        Ok(Allowance::ShareUsedUp { retry_after }) => {
            tracing::warn!(
                share = most_own,
                "code not sent: this service has used its share of the realm's hourly limit"
            );
            report_event(service, user, realm, &request.origin, Event::DeliveryShareUsedUp).await;
            Err(Refusal::ShareUsedUp { retry_after })
        }
        // The store has just decided, so the login lacks the permission for this key only: the
        // operator that created the login is of the version before.
        Err(error) if error.is_access_refused() => {
            tracing::warn!("deliveries not limited: this sidecar's Redis login may not count them");
            Ok(())
        }
        Err(error) => {
            // The code is not sent, so the user need not wait to ask again.
            let event = Event::Refused { asked_at: issued.asked_at };
            report_event(service, user, realm, &request.origin, event).await;
            Err(error.into())
        }
    }
}

async fn deliver(
    service: &Service,
    issued: Issued,
    request: &CodeRequest,
) -> Result<Generated, Refusal> {
    let (definition, realm) = (&issued.user.record.definition, &issued.realm);
    let message = Message {
        code: &issued.code,
        expires_at: issued.expires_at,
        issuer: definition.issuer.as_ref().unwrap_or(&realm.record.issuer),
        service: &service.caller,
        context: request.context.as_ref().map(Context::as_str),
        now: service.store.now(),
    };
    let result = service.deliver(definition, realm, &message).await;
    let event = match result {
        Ok(()) => Event::Sent,
        Err(_) => Event::Refused { asked_at: issued.asked_at },
    };
    report_event(service, &issued.user, realm, &request.origin, event).await;
    result.map_err(|error| Refusal::NotDelivered(error.reason()))?;
    Ok(Generated {
        code: issued.code,
        expires_at: issued.expires_at,
        channel: definition.delivery_method,
    })
}
