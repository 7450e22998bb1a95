//! The public keys of the realm's tokens. Enters: nothing. Leaves: a JSON Web Key Set (RFC 7517),
//! empty where tokens are off or signed with a shared key.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, header};
use serde::Serialize;
use utoipa::ToSchema;
use warp::reply::Response;

use super::{answer, json, require};
use crate::otp::service::Service;
use crate::otp::tokens::PublicKey;
use crate::refusal::Problem;

/// Shorter than what a token is good for, so that a new key is known before it is missed for long.
const KEPT: &str = "max-age=60";

/// Keys that tokens can be checked with.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeySet {
    /// The present key first, then those whose tokens may still be about.
    #[schema(value_type = Vec<Object>)]
    keys: Vec<PublicKey>,
}

/// The public keys that tokens can be checked with: Ed25519 keys as RFC 8037 has them.
///
/// Empty where the realm gives no tokens, or signs them with the shared key (HS256).
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "2FA Authentication", operation_id = "getTokenKeys",
    summary = "Public keys of tokens",
    responses(
        (status = 200, description = "The keys.", body = KeySet, content_type = "application/jwk-set+json"),
        (status = 403, description = "A web page from elsewhere asks.", body = Problem, content_type = "application/problem+json"),
        (status = 405, description = "Only GET is answered.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Redis is unreachable or has lost data that is being restored, or the realm does not allow this namespace.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
    )
)]
pub(super) async fn jwks_route(service: Arc<Service>, method: Method) -> Response {
    answer(&service, "/.well-known/jwks.json", async {
        require(&method, &Method::GET)?;
        let realm = service.realm().await?;
        let keys = service.public_keys.current(realm.1.tokens.as_ref(), Instant::now())?;
        let mut response = json(&KeySet { keys });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(KEPT));
        Ok(response)
    })
    .await
}
