//! Answers `GET /`.

use std::sync::Arc;

use http::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warp::reply::Response;

use super::reply::{answer, json, require};
use crate::otp::service::Service;
use crate::refusal::Problem;

/// The answer to `GET /`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Status {
    /// Always the same sentence.
    #[schema(example = "2FA Service is up and running!")]
    status: &'static str,
}

/// Whether the service runs. It says nothing about Redis. For that, see `/readyz?verbose` on the
/// admin port.
#[utoipa::path(
    get, path = "/", tag = "Health Check", operation_id = "getHealthStatus", summary = "Is the service running?",
    responses(
        (status = 200, description = "It runs.", body = Status),
        (status = 400, description = "The header `Host` is missing, invalid, or there are several.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The request comes from a browser page of another origin, or names another host.", body = Problem, content_type = "application/problem+json"),
        (status = 405, description = "The method is not GET.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn health_route(service: Arc<Service>, method: Method) -> Response {
    answer(&service, "/", async {
        require(&method, &Method::GET)?;
        Ok(json(&Status { status: "2FA Service is up and running!" }))
    })
    .await
}
