//! Answers `POST /auth/generate`.

use std::sync::Arc;

use http::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warp::reply::Response;

use super::body;
use super::reply::{CommonProblems, Request, answer, json, require};
use crate::delivery::rfc3339;
use crate::otp::generate::generate;
use crate::otp::service::Service;
use crate::refusal::Problem;

/// The user to generate a code for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GenerateRequest)]
pub(super) struct GenerateBody {
    /// The exact username, 1 to 253 characters.
    #[schema(example = "alice", min_length = 1, max_length = 253)]
    username: String,
    /// What the code is for, as the user reads it in the message: 1 to 140 printable characters.
    /// Verify then needs the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "transfer 100 to X", min_length = 1, max_length = 140, nullable = false)]
    context: Option<String>,
}

/// A code was delivered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct GenerateReply {
    /// The code; absent unless exposing it is switched on, for development.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "123456", pattern = "^[0-9]{6,8}$", nullable = false)]
    otp_code: Option<String>,
    /// Until when the code is accepted: RFC 3339, in UTC.
    #[schema(example = "2026-01-01T12:05:00Z", format = DateTime)]
    expires_at: String,
}

/// Makes a one-time code, remembers it and delivers it to the user.
///
/// Limited: by default one a minute and ten an hour for a user. The username may stand in the query
/// or in a JSON body; prefer the body, since query strings end up in access logs.
///
/// With a `context`, such as `transfer 100 to X`, the user reads in the message what the code is
/// for, and the code is valid for nothing else: verify needs the same context.
///
/// Where the realm has uniform answers, this answers 200 for every name, and delivers after the
/// answer.
#[utoipa::path(
    post, path = "/auth/generate", tag = "Two-Factor Authentication", operation_id = "generateOtp", summary = "Deliver a code",
    params(("username" = Option<String>, Query, description = "The exact username, unless it is in the body.", min_length = 1, max_length = 253)),
    request_body(content = GenerateBody, description = "The username, unless it is in the query, and what the code is for."),
    responses(
        (status = 200, description = "The code is on its way.", body = GenerateReply),
        (status = 400, description = "The user has no OTP secret, or no way to get a code; or the header `Host` is missing or invalid.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Asked too soon; a code that is in flight stays valid.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
        (status = 502, description = "The mail or SMS provider did not take the message.", body = Problem, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub(super) async fn generate_route(service: Arc<Service>, request: Request) -> Response {
    answer(&service, "/auth/generate", async {
        require(&request.method, &Method::POST)?;
        let request = body::generate_request(
            &request.query,
            &request.headers,
            &request.body?,
            request.origin,
        )?;
        let reply = generate(&service, request).await?;
        let otp_code = reply.code.map(|code| code.expose_secret().to_owned());
        Ok(json(&GenerateReply { otp_code, expires_at: rfc3339(reply.expires_at) }))
    })
    .await
}
