//! Helpers that the routes share: methods, JSON replies and counting.

use std::time::Instant;

use bytes::{Buf, BytesMut};
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, Method, header};
use serde::Serialize;
use utoipa::IntoResponses;
use warp::reply::{Reply, Response};

use super::{body, forwarded};
use crate::audit::Origin;
use crate::otp::service::Service;
use crate::refusal::{Problem, Refusal};

/// The parts of a request whose path is known.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) origin: Origin,
    pub(super) body: Result<BytesMut, Refusal>,
}

impl Request {
    /// Reads the body.
    pub(super) async fn read(
        method: Method,
        query: String,
        headers: HeaderMap,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
        trusted_proxies: u8,
    ) -> Self {
        let origin = forwarded::origin(&headers, trusted_proxies);
        Self { method, query, headers, origin, body: body::read(body).await }
    }
}

/// The problems that generate and verify have in common, for the description of the API.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only describes answers, which are made of refusals")]
pub(super) enum CommonProblems {
    #[response(
        status = 403,
        description = "The request comes from a browser page of another origin, or names another host.",
        content_type = "application/problem+json"
    )]
    ForeignOrigin(Problem),
    #[response(
        status = 404,
        description = "There is no such user, or 2FA is not enabled for them.",
        content_type = "application/problem+json"
    )]
    UnknownUser(Problem),
    #[response(
        status = 405,
        description = "Only POST is answered.",
        content_type = "application/problem+json"
    )]
    WrongMethod(Problem),
    #[response(
        status = 408,
        description = "The body did not arrive in time.",
        content_type = "application/problem+json"
    )]
    TooSlow(Problem),
    #[response(
        status = 413,
        description = "The body is too large.",
        content_type = "application/problem+json"
    )]
    TooLarge(Problem),
    #[response(
        status = 422,
        description = "The request is malformed; `detail` names the field.",
        content_type = "application/problem+json"
    )]
    Malformed(Problem),
    #[response(
        status = 503,
        description = "Redis is unreachable or has lost data that is being restored, or the realm does not allow this namespace.",
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait."))
    )]
    Unavailable(Problem),
}

/// Refuses any method other than `expected`; HEAD counts as GET.
pub(super) fn require(method: &Method, expected: &Method) -> Result<(), Refusal> {
    let allowed = if expected == Method::GET { "GET" } else { "POST" };
    let fits = method == expected || (expected == Method::GET && method == Method::HEAD);
    if fits { Ok(()) } else { Err(Refusal::WrongMethod(allowed)) }
}

pub(super) fn json(reply: &impl Serialize) -> Response {
    let mut response = warp::reply::json(reply).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Runs a route, turns a refusal into a response, and counts the request.
pub(super) async fn answer(
    service: &Service,
    route: &'static str,
    work: impl Future<Output = Result<Response, Refusal>>,
) -> Response {
    let began = Instant::now();
    let response = work.await.unwrap_or_else(Refusal::into_response);
    service.metrics.request(route, response.status(), began.elapsed());
    response
}
