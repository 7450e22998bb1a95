//! Routes HTTP requests to the operations of the API. Every request gets an answer of the contract.

mod body;
mod docs;
mod forwarded;
mod generate;
mod health;
mod jwks;
mod openapi;
mod origin;
mod reply;
mod trace;
mod verify;

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use http::{HeaderMap, Method, Version};
use tracing::Instrument;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::filters::path::FullPath;
use warp::reply::Response;

pub use self::origin::HostName;
use self::reply::Request;
use crate::otp::service::CurrentService;
use crate::refusal::Refusal;

/// Whose requests are answered, and what is believed about them.
#[derive(Clone, Debug, Default)]
pub struct RequestRules {
    /// Whether no other machine can reach the API.
    pub loopback_only: bool,
    /// The names under which clients may reach the API, beside `localhost`.
    pub allowed_hosts: Vec<HostName>,
    /// Number of addresses at the right end of `X-Forwarded-For` that are those of proxies.
    pub trusted_proxies: u8,
}

/// Returns all routes of the API.
pub fn routes(current: &CurrentService, rules: RequestRules) -> BoxedFilter<(Response,)> {
    let (current, rules) = (current.clone(), Arc::new(rules));
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::any()
        .map(move || current.clone())
        .and(warp::any().map(move || rules.clone()))
        .and(warp::method())
        .and(warp::ext::optional::<Version>())
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(route)
        .boxed()
}

/// Answers by the path. A filter for each route would cost each request as many failed attempts.
#[expect(clippy::too_many_arguments, reason = "they are the parts of a request")]
async fn route(
    current: CurrentService,
    rules: Arc<RequestRules>,
    method: Method,
    version: Option<Version>,
    path: FullPath,
    query: String,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    let RequestRules { loopback_only, allowed_hosts, trusted_proxies } = &*rules;
    if let Err(refusal) = origin::check(&headers, version, *loopback_only, allowed_hosts) {
        return refusal.into_response();
    }
    let service = current.load();
    let span = trace::span(&headers);
    let path = path.as_str().strip_prefix('/').unwrap_or_default();
    match path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path) {
        "auth/verify" => {
            let request = Request::read(method, query, headers, body, *trusted_proxies).await;
            verify::verify_route(service, request).instrument(span).await
        }
        "auth/generate" => {
            let request = Request::read(method, query, headers, body, *trusted_proxies).await;
            generate::generate_route(service, request).instrument(span).await
        }
        "" => health::health_route(service, method).await,
        ".well-known/jwks.json" => jwks::jwks_route(service, method).await,
        "openapi.json" => openapi::openapi_route(&method),
        "docs" => docs::docs_route("", &method),
        _ => match path.strip_prefix("docs/") {
            Some(file) => docs::docs_route(file, &method),
            None => Refusal::NoSuchPath.into_response(),
        },
    }
}
