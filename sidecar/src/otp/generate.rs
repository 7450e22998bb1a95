//! Generates a code: puts it into the OTP log and sends it to the user.

use std::sync::Arc;

use twofactor_core::code::Code;
use twofactor_core::time::UnixMillis;

use crate::otp::ask_store;
use crate::otp::outcome_log::record_generate;
use crate::otp::records::Answers;
use crate::otp::requests::{CodeRequest, Generated, Issued};
use crate::otp::send::send;
use crate::otp::service::Service;
use crate::otp::uniform;
use crate::refusal::Refusal;

/// What the caller gets for a code that is on its way.
#[derive(Debug)]
pub struct CodeReply {
    /// The code, if codes are exposed.
    pub code: Option<Code>,
    pub expires_at: UnixMillis,
}

/// Generates a code and answers as the realm wants it.
pub async fn generate(service: &Arc<Service>, request: CodeRequest) -> Result<CodeReply, Refusal> {
    let realm = match ask_store::within_timeout(service.realm()).await {
        Ok(realm) => realm,
        Err(refusal) => {
            record_generate(service, &request, Err(&refusal));
            return Err(refusal);
        }
    };
    if realm.answers == Answers::Uniform {
        let expires_at = uniform::generate(service, realm, request).await?;
        return Ok(CodeReply { code: None, expires_at });
    }
    let task = service.clone();
    let work = async move {
        let result = issue_and_send(&task, &request).await;
        record_generate(&task, &request, result.as_ref());
        result
    };
    let generated = service.background.run_to_end(work).await?;
    let code = service.expose_codes.then_some(generated.code);
    Ok(CodeReply { code, expires_at: generated.expires_at })
}

/// Within the same time step and context, this sends the same code again if the limits allow it.
async fn issue_and_send(service: &Service, request: &CodeRequest) -> Result<Generated, Refusal> {
    let issued = ask_store::within_timeout(issue(service, request)).await?;
    // Not within the timeout, because a code in the OTP log that is not sent has to be reported.
    send(service, issued, request).await
}

async fn issue(service: &Service, request: &CodeRequest) -> Result<Issued, Refusal> {
    let realm = service.realm().await?;
    let mut user = service.records.enabled_user(&request.username).await?;
    if !service.can_send(&user.record, &realm.record) {
        // No decision would show that this record is outdated, so it is read again.
        user = service.records.reload_enabled(user.pseudonym).await?;
    }
    ask_store::issue(service, user, realm, request).await
}
