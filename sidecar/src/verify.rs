//! Verify: is this the code? Enters: a username and a code. Leaves: yes, or a refusal. One Redis round trip when
//! the record is known.

use twofactor_core::audit::Trace;
use twofactor_core::code::Code;
use twofactor_core::decision::{Factor, Verdict, Verification};
use twofactor_core::user::{DeliveryMethod, Username};

use crate::audit::Origin;
use crate::records::CurrentUser;
use crate::refusal::Refusal;
use crate::service::{ATTEMPTS, Service, within_bound};

/// Accepts a code, at most once.
///
/// # Errors
/// Every reason that the contract names. After [`Refusal::Unavailable`], the code may be used up all the same.
pub async fn verify(
    service: &Service,
    username: &Username,
    code: &Code,
    origin: &Origin,
) -> Result<(), Refusal> {
    match within_bound(decide(service, username, code, origin)).await? {
        Verdict::Accepted => Ok(()),
        Verdict::Wrong | Verdict::Expired => Err(Refusal::WrongCode),
        Verdict::Used | Verdict::NeverIssued => Err(Refusal::UsedCode),
        Verdict::Blocked { retry_after } => Err(Refusal::Blocked { retry_after }),
        Verdict::Disabled => Err(Refusal::Disabled),
    }
}

async fn decide(
    service: &Service,
    username: &Username,
    code: &Code,
    origin: &Origin,
) -> Result<Verdict, Refusal> {
    let realm = service.realm().await?;
    let mut user = service.records.enabled_user(username).await?;
    for _ in 0..ATTEMPTS {
        let trace = origin.trace(&realm.1, user.record.definition.delivery_method);
        let request = verification(service, &user, code, trace);
        match service.store.verify(&user.pseudonym, &request).await {
            Ok(verdict) => return Ok(verdict),
            Err(why) => user = service.new_ground(user, why).await?,
        }
    }
    Err(Refusal::Unavailable)
}

/// What the code would match, as of now.
fn verification(service: &Service, user: &CurrentUser, code: &Code, trace: Trace) -> Verification {
    let definition = &user.record.definition;
    let now = service.store.now();
    // One step more than the skew: the store's clock, which decides, may be a step further.
    let margin = u64::from(definition.totp.skew()) + 1;
    let around = definition.totp.step_at(now);
    let factor = match definition.delivery_method {
        DeliveryMethod::App => Factor::Authenticator,
        DeliveryMethod::Email | DeliveryMethod::Sms | DeliveryMethod::Webhook => Factor::Delivered,
    };
    Verification {
        revision: user.revision,
        caller: service.caller.clone(),
        asked_at: now,
        factor,
        tag: service.records.keys().code_tag(&user.pseudonym, &service.caller, code),
        matches: user.record.totp().map_or_else(Vec::new, |totp| totp.matching_steps(code, around, margin)),
        period: definition.totp.period(),
        skew: definition.totp.skew(),
        trace,
    }
}
