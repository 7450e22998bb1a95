//! Answers `GET /.well-known/jwks.json`: a JSON Web Key Set (RFC 7517) of the realm's tokens.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, header};
use serde::Serialize;
use utoipa::ToSchema;
use warp::reply::Response;

use super::reply::{answer, json, require};
use crate::otp::service::Service;
use crate::otp::tokens::PublicKey;
use crate::refusal::Problem;

/// Clients may cache the keys for less than the lifetime of a token, so that they soon learn a new
/// key.
const CACHE_CONTROL: &str = "max-age=60";

/// Keys that tokens can be checked with.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeySet {
    /// The current key first, then earlier ones whose tokens may still be valid.
    #[schema(value_type = Vec<Object>)]
    keys: Vec<PublicKey>,
}

/// The public keys that tokens can be checked with: Ed25519 keys in the format of RFC 8037.
///
/// Empty where the realm gives no tokens, or signs them with the shared key (HS256).
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "Two-Factor Authentication", operation_id = "getTokenKeys",
    summary = "Public keys of tokens",
    responses(
        (status = 200, description = "The keys.", body = KeySet, content_type = "application/jwk-set+json"),
        (status = 400, description = "The header `Host` is missing, invalid, or there are several.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The request comes from a browser page of another origin, or names another host.", body = Problem, content_type = "application/problem+json"),
        (status = 405, description = "The method is not GET.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Redis is unreachable or has lost data that is being restored, or the realm does not allow this namespace.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
    )
)]
pub(super) async fn jwks_route(service: Arc<Service>, method: Method) -> Response {
    answer(&service, "/.well-known/jwks.json", async {
        require(&method, &Method::GET)?;
        let realm = service.realm().await?;
        let keys =
            service.public_keys.current(&realm.record, Instant::now(), service.store.now())?;
        let mut response = json(&KeySet { keys });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE_CONTROL));
        Ok(response)
    })
    .await
}
