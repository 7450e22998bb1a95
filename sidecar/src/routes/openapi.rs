//! The description of the API, made from the routes themselves. Enters: nothing. Leaves: OpenAPI
//! 3.1.0.

use std::sync::LazyLock;

use http::{HeaderValue, header};
use utoipa::OpenApi;
use warp::reply::{Reply, Response};

use super::{GenerateReply, GenerateRequest, Status, VerifyReply, VerifyRequest};
use crate::refusal::Problem;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "FountainAI 2FA Service",
        version = "1.0.0",
        description = "Two-factor authentication for services: one-time codes are delivered to users, and each is \
                       accepted once. Only processes in the same pod can reach this API.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "The sidecar next to you")),
    paths(super::health_route, super::generate_route, super::verify_route, super::jwks::jwks_route),
    components(schemas(Status, GenerateRequest, GenerateReply, VerifyRequest, VerifyReply, super::jwks::KeySet, Problem)),
    tags(
        (name = "2FA Authentication", description = "Deliver a code, check a code."),
        (name = "Health Check", description = "Is the service running?"),
    )
)]
struct Description;

static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| Description::openapi().to_pretty_json().unwrap_or_default());

/// `GET /openapi.json`.
pub(super) fn document() -> Response {
    let mut response = DOCUMENT.as_str().into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
