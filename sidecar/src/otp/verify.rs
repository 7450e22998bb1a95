//! Verify: is this the code? Enters: a username, a code, and perhaps a context and an audience.
//! Leaves: yes, with a token where one was asked for, or a refusal. One Redis round trip when the
//! record is known.

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use twofactor_core::code::Code;
use twofactor_core::context::Context;
use twofactor_core::decision::{Factor, Verdict, Verification};
use twofactor_core::realm::RealmRecord;
use twofactor_core::token::{Audience, TokenLifetime};
use twofactor_core::user::{DeliveryMethod, Username};

use crate::audit::Origin;
use crate::otp::records::CurrentUser;
use crate::otp::service::{ATTEMPTS, Service, within_bound};
use crate::otp::tokens::{Signer, Subject};
use crate::otp::uniform;
use crate::refusal::Refusal;

/// What is to be verified.
#[derive(Debug)]
pub struct Claim {
    /// Who is said to have the code.
    pub username: Username,
    /// The code.
    pub code: Code,
    /// What it was asked for.
    pub context: Option<Context>,
    /// Whom a token is wanted for.
    pub audience: Option<Audience>,
    /// Whom the request came from.
    pub origin: Origin,
}

/// Accepts a code, at most once. Gives a token where one was asked for.
///
/// # Errors
/// Every reason that the contract names. After [`Refusal::Unavailable`], the code may be used up
/// all the same.
pub async fn verify(service: &Service, claim: &Claim) -> Result<Option<String>, Refusal> {
    let (verdict, signing) = within_bound(async {
        let realm = service.realm().await?;
        // Before the code is used up for nothing.
        let signing = signing(&realm.1, claim.audience.as_ref())?;
        let verdict = if realm.1.uniform_answers {
            uniform::decide(service, &realm.1, claim).await?
        } else {
            let user = service.records.enabled_user(&claim.username).await?;
            decide_on(service, user, &realm.1, claim).await?
        };
        Ok::<_, Refusal>((verdict, signing))
    })
    .await?;
    match verdict {
        Verdict::Accepted => Ok(signing.map(|signing| signing.token(service, claim))),
        Verdict::Wrong | Verdict::Expired => Err(Refusal::WrongCode),
        Verdict::Used | Verdict::NeverIssued => Err(Refusal::UsedCode),
        Verdict::Blocked { retry_after } => Err(Refusal::Blocked { retry_after }),
        Verdict::Disabled => Err(Refusal::Disabled),
    }
}

/// What a token is made with.
struct Signing<'a> {
    signer: Signer,
    audience: &'a Audience,
    lifetime: TokenLifetime,
}

impl Signing<'_> {
    fn token(&self, service: &Service, claim: &Claim) -> String {
        let subject = Subject {
            username: &claim.username,
            realm: service.records.keys().realm(),
            audience: self.audience,
            context: claim.context.as_ref(),
            now: service.store.now(),
        };
        self.signer.token(&subject, self.lifetime, &mut UnwrapErr(SysRng))
    }
}

fn signing<'a>(
    realm: &RealmRecord,
    audience: Option<&'a Audience>,
) -> Result<Option<Signing<'a>>, Refusal> {
    let malformed = |what: &str| Err(Refusal::Malformed(format!("audience: {what}")));
    match (audience, &realm.tokens) {
        (None, _) => Ok(None),
        (Some(_), None) => malformed("this realm gives no tokens"),
        (Some(audience), Some(tokens)) if !tokens.audiences.contains(audience) => {
            malformed("is not one of the audiences of this realm")
        }
        (Some(audience), Some(tokens)) => Ok(Some(Signing {
            signer: Signer::new(&tokens.key)?,
            audience,
            lifetime: tokens.lifetime,
        })),
    }
}

/// Asks the store about a code of this user.
///
/// # Errors
/// When there is nothing to be had that a decision could be made on.
pub async fn decide_on(
    service: &Service,
    mut user: CurrentUser,
    realm: &RealmRecord,
    claim: &Claim,
) -> Result<Verdict, Refusal> {
    for _ in 0..ATTEMPTS {
        let request = verification(service, &user, realm, claim);
        match service.store.verify(&user.pseudonym, &request).await {
            Ok(verdict) => return Ok(verdict),
            Err(why) => user = service.new_ground(user, why).await?,
        }
    }
    Err(Refusal::Unavailable)
}

/// What the code would match, as of now.
#[must_use]
pub fn verification(
    service: &Service,
    user: &CurrentUser,
    realm: &RealmRecord,
    claim: &Claim,
) -> Verification {
    let (code, context) = (&claim.code, claim.context.as_ref());
    let definition = &user.record.definition;
    let now = service.store.now();
    // One step more than the skew: the store's clock, which decides, may be a step further.
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
        audit: claim.origin.audit_context(realm, definition.delivery_method),
    }
}
