//! Generate: make a code, put it into the OTP log, deliver it. Enters: a username. Leaves: until when the code is
//! accepted, or a refusal.

use std::sync::Arc;

use twofactor_core::code::Code;
use twofactor_core::decision::{Issuance, Issue};
use twofactor_core::realm::RealmRecord;
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::{DeliveryMethod, Username};

use crate::delivery::Message;
use crate::records::CurrentUser;
use crate::refusal::Refusal;
use crate::service::{ATTEMPTS, Service, within_bound};

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

/// Makes and delivers a code. Asked again within the same time step, it delivers the same one again.
///
/// # Errors
/// Every reason that the contract names.
pub async fn generate(service: &Service, username: &Username) -> Result<Generated, Refusal> {
    let issued = within_bound(issue(service, username)).await?;
    let (definition, realm) = (&issued.user.record.definition, &issued.realm.1);
    let message = Message { code: &issued.code, expires_at: issued.expires_at, issuer: &realm.issuer };
    let result = service.delivery.deliver(definition, realm, &message).await;
    let outcome = if result.is_ok() { "sent" } else { "refused" };
    service.metrics.delivery(definition.delivery_method.name(), outcome);
    result.map_err(|error| Refusal::NotDelivered(error.reason()))?;
    Ok(Generated { code: issued.code, expires_at: issued.expires_at, channel: definition.delivery_method })
}

/// A code in the OTP log, and what is needed to send it.
struct Issued {
    user: CurrentUser,
    realm: Arc<(Revision, RealmRecord)>,
    code: Code,
    expires_at: UnixMillis,
}

async fn issue(service: &Service, username: &Username) -> Result<Issued, Refusal> {
    let realm = service.realm().await?;
    let mut user = service.records.enabled_user(username).await?;
    if !service.can_send(&user.record, &realm.1) {
        // No decision would tell that this record is outdated, so it is read again before it is believed.
        user = service.records.reload_enabled(user.pseudonym).await?;
    }
    for _ in 0..ATTEMPTS {
        // What cannot be sent is not issued.
        let definition = &user.record.definition;
        let totp = user.record.totp().ok_or(Refusal::NoSeed)?;
        if !service.can_send(&user.record, &realm.1) {
            return Err(Refusal::NoDelivery);
        }
        let now = service.store.now();
        let step = definition.totp.step_at(now);
        let code = totp.code_of(step);
        let request = Issuance {
            revision: user.revision,
            caller: service.caller.clone(),
            asked_at: now,
            step,
            tag: service.records.keys().code_tag(&user.pseudonym, &service.caller, &code),
            period: definition.totp.period(),
            lifetime: realm.1.otp_lifetime.duration(),
        };
        match service.store.issue(&user.pseudonym, &request).await {
            Ok(Issue::Issued { expires_at }) => return Ok(Issued { user, realm, code, expires_at }),
            Ok(Issue::Consumed { retry_after }) => return Err(Refusal::CodeConsumed { retry_after }),
            Err(why) => user = service.new_ground(user, why).await?,
        }
    }
    Err(Refusal::Unavailable)
}
