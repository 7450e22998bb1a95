//! Verifies a code, and signs a token where one is asked for. This is one round trip to Redis if
//! the user's record is known.

use std::sync::Arc;
use std::time::Instant;

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use twofactor_core::decision::Verdict;
use twofactor_core::realm::RealmRecord;
use twofactor_core::token::{Audience, TokenLifetime};
use twofactor_core::user::DeliveryMethod;

use crate::otp::answer_time::wait_for_answer_slot;
use crate::otp::ask_store;
use crate::otp::outcome_log::record_verify;
use crate::otp::records::Answers;
use crate::otp::requests::VerifyRequest;
use crate::otp::service::Service;
use crate::otp::tokens::{Signer, Subject};
use crate::otp::uniform;
use crate::refusal::Refusal;

/// Accepts a code at most once, and answers as the realm wants it. Returns the token, if one was
/// asked for.
///
/// After [`Refusal::Unavailable`], the code may have been accepted all the same.
pub async fn verify(
    service: &Arc<Service>,
    request: VerifyRequest,
) -> Result<Option<String>, Refusal> {
    let began = Instant::now();
    let task = service.clone();
    let work = async move {
        let (answers, result) = decide_and_sign(&task, &request).await;
        record_verify(&task, &request, &result);
        (answers, result)
    };
    let (answers, result) = service.background.run_to_end(work).await;
    match answers {
        Answers::Precise => result,
        Answers::Uniform => {
            wait_for_answer_slot(began).await;
            result.map_err(uniform::hide)
        }
    }
}

/// Returns how to answer, and what really happened. What happens before the realm is loaded is the
/// same for every name, so it is answered as it is.
async fn decide_and_sign(
    service: &Service,
    request: &VerifyRequest,
) -> (Answers, Result<Option<String>, Refusal>) {
    let mut answers = Answers::Precise;
    let decided = ask_store::within_timeout(async {
        let realm = service.realm().await?;
        answers = realm.answers;
        // Before the code is accepted, because no other token could be asked for with it.
        let signing = signing(&realm.record, request.audience.as_ref())?;
        let (verdict, channel) = match answers {
            Answers::Precise => {
                let user = service.records.enabled_user(&request.username).await?;
                ask_store::verify(service, user, &realm, request).await?
            }
            Answers::Uniform => uniform::verify(service, &realm, request).await?,
        };
        match verdict {
            Verdict::Accepted => {
                Ok(signing.map(|signing| signing.token(service, request, channel)))
            }
            Verdict::Wrong | Verdict::Expired => Err(Refusal::WrongCode),
            Verdict::Used | Verdict::NeverIssued => Err(Refusal::UsedCode),
            Verdict::Blocked { retry_after } => Err(Refusal::Blocked { retry_after }),
            Verdict::FailuresUsedUp { retry_after } => Err(Refusal::FailuresUsedUp { retry_after }),
            Verdict::Disabled => Err(Refusal::Disabled),
        }
    })
    .await;
    (answers, decided)
}

/// What a token is made with.
struct Signing<'a> {
    signer: Signer,
    audience: &'a Audience,
    lifetime: TokenLifetime,
}

impl Signing<'_> {
    fn token(&self, service: &Service, request: &VerifyRequest, channel: DeliveryMethod) -> String {
        let subject = Subject {
            username: &request.username,
            realm: service.records.keys().realm(),
            audience: self.audience,
            channel,
            context: request.context.as_ref(),
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
