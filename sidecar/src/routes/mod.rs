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

use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use self::reply::Request;
use crate::otp::service::CurrentService;
use crate::refusal::Refusal;

/// Returns all routes of the API. With `loopback_only`, requests must name this machine as their
/// host.
pub fn routes(current: &CurrentService, loopback_only: bool) -> BoxedFilter<(Response,)> {
    let current = current.clone();
    let service = warp::any().map(move || current.load());
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let request = warp::method()
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream().then(body::read))
        .map(|method, query, headers, body| Request { method, query, headers, body });
    let input = service.clone().and(request);
    let health = warp::path::end().and(service.clone()).and(warp::method());
    let health = health.then(health::health_route).boxed();
    let generate = warp::path!("auth" / "generate").and(input.clone());
    let generate = generate.then(generate::generate_route).boxed();
    let verify = warp::path!("auth" / "verify").and(input).then(verify::verify_route).boxed();
    let jwks = warp::path!(".well-known" / "jwks.json").and(service).and(warp::method());
    let jwks = jwks.then(jwks::jwks_route).boxed();
    let openapi = warp::path!("openapi.json").and(warp::method()).map(openapi::openapi_route);
    let docs = warp::path("docs").and(warp::path::tail()).and(warp::method()).map(docs::docs_route);
    let no_such_path = warp::any().map(|| Refusal::NoSuchPath.into_response()).boxed();
    let api = verify
        .or(generate)
        .unify()
        .or(health)
        .unify()
        .or(openapi.boxed())
        .unify()
        .or(docs.boxed())
        .unify()
        .or(jwks)
        .unify();
    origin::foreign(loopback_only).or(api).unify().or(no_such_path).unify().boxed()
}
