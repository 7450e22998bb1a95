//! Describes the API in OpenAPI 3.1.0, generated from the routes.

use std::sync::LazyLock;

use http::{HeaderValue, Method, header};
use utoipa::openapi::{RefOr, Required};
use utoipa::{Modify, OpenApi};
use warp::reply::{Reply, Response};

use super::generate::{GenerateBody, GenerateReply};
use super::health::Status;
use super::jwks::KeySet;
use super::reply::require;
use super::verify::{VerifyBody, VerifyReply};
use super::{generate, health, jwks, verify};
use crate::refusal::{Problem, Refusal};

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
    paths(health::health_route, generate::generate_route, verify::verify_route, jwks::jwks_route),
    components(schemas(Status, GenerateBody, GenerateReply, VerifyBody, VerifyReply, KeySet, Problem)),
    tags(
        (name = "Two-Factor Authentication", description = "Deliver a code, check a code."),
        (name = "Health Check", description = "Is the service running?"),
    ),
    modifiers(&OptionalBody)
)]
struct Description;

/// Says that a request to generate a code may have no body. The macro would say it with a body that
/// is null, for which generators make clients that do not compile.
struct OptionalBody;

impl Modify for OptionalBody {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let generate = document.paths.paths.get_mut("/auth/generate");
        let operation = generate.and_then(|path| path.post.as_mut());
        let body = operation.and_then(|operation| operation.request_body.as_mut());
        if let Some(RefOr::T(body)) = body {
            body.required = Some(Required::False);
        }
    }
}

static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| Description::openapi().to_pretty_json().unwrap_or_default());

pub(super) fn openapi_route(method: &Method) -> Response {
    require(method, &Method::GET).map_or_else(Refusal::into_response, |()| document())
}

fn document() -> Response {
    let mut response = DOCUMENT.as_str().into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
