//! Routes HTTP requests to the operations of the API. Every request gets an answer of the contract.

mod body;
mod docs;
mod generate;
mod health;
mod jwks;
mod openapi;
mod origin;
mod reply;
mod verify;

use bytes::Buf;
use futures_util::Stream;
use http::{HeaderMap, Method};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::filters::path::FullPath;
use warp::reply::Response;

use self::reply::Request;
use crate::otp::service::CurrentService;
use crate::refusal::Refusal;

/// Returns all routes of the API. With `loopback_only`, requests must name this machine as their
/// host.
pub fn routes(current: &CurrentService, loopback_only: bool) -> BoxedFilter<(Response,)> {
    let current = current.clone();
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::any()
        .map(move || current.clone())
        .and(warp::any().map(move || loopback_only))
        .and(warp::method())
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(route)
        .boxed()
}

/// Answers by the path. A filter for each route would cost each request as many failed attempts.
async fn route(
    current: CurrentService,
    loopback_only: bool,
    method: Method,
    path: FullPath,
    query: String,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    if origin::is_foreign(&headers, loopback_only) {
        return Refusal::ForeignOrigin.into_response();
    }
    let service = current.load();
    let path = path.as_str().strip_prefix('/').unwrap_or_default();
    match path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path) {
        "auth/verify" => {
            let body = body::read(body).await;
            verify::verify_route(service, Request { method, query, headers, body }).await
        }
        "auth/generate" => {
            let body = body::read(body).await;
            generate::generate_route(service, Request { method, query, headers, body }).await
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
