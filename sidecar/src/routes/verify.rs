//! Answers `POST /auth/verify`.

use std::sync::Arc;

use http::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warp::reply::Response;

use super::body;
use super::reply::{CommonProblems, Request, answer, json, require};
use crate::otp::service::Service;
use crate::otp::verify::verify;
use crate::refusal::Problem;

/// A code to check.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VerifyRequest)]
pub(super) struct VerifyBody {
    /// The exact username, 1 to 253 characters.
    #[schema(example = "alice", min_length = 1, max_length = 253)]
    username: String,
    /// The code as the user typed it: 6 to 8 ASCII digits, nothing else.
    #[schema(example = "123456", pattern = "^[0-9]{6,8}$")]
    otp_code: String,
    /// What the code was asked for, exactly as generate was given it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "transfer 100 to X", min_length = 1, max_length = 140, nullable = false)]
    context: Option<String>,
    /// The audience of the token, one of the realm's. Without it there is no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "key-management", min_length = 1, max_length = 200, nullable = false)]
    audience: Option<String>,
}

/// The code was right, and cannot be used again.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct VerifyReply {
    /// Always true; everything else is an error.
    #[schema(example = true)]
    success: bool,
    /// A signed JWT for the audience that was named, valid for five minutes at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token: Option<String>,
}

/// Accepts a code, once.
///
/// A code that was asked for with a `context` is accepted with exactly that context. With an
/// `audience`, where the realm gives tokens, the answer holds a signed token for it, to be checked
/// with the shared key or with `/.well-known/jwks.json`.
///
/// Where the realm has uniform answers, 400, 404 and 429 are answered like a wrong code, with 401.
#[utoipa::path(
    post, path = "/auth/verify", tag = "Two-Factor Authentication", operation_id = "verifyOtp", summary = "Check a code",
    request_body = VerifyBody,
    responses(
        (status = 200, description = "The code is right. It cannot be used again.", body = VerifyReply),
        (status = 400, description = "The code was used before, or was never issued to this caller; or the header `Host` is missing or invalid.", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The code is wrong, or has expired.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many failures; nothing was checked.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
        CommonProblems,
    )
)]
pub(super) async fn verify_route(service: Arc<Service>, request: Request) -> Response {
    answer(&service, "/auth/verify", async {
        require(&request.method, &Method::POST)?;
        let request = body::verify_request(&request.headers, &request.body?, request.origin)?;
        let token = verify(&service, request).await?;
        Ok(json(&VerifyReply { success: true, token }))
    })
    .await
}
