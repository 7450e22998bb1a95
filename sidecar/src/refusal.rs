//! Everything that is answered instead of a success. Enters: a reason. Leaves: status, sentence and
//! metric label.
//!
//! The sentences are those that clients of the original service read; internal causes are logged,
//! never sent.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use thiserror::Error;
use twofactor_core::time::UnixMillis;
use twofactor_store::StoreError;
use utoipa::ToSchema;
use warp::reply::{Reply, Response};

use crate::delivery::rfc3339;

/// Why a request was refused.
#[derive(Debug, Error)]
pub enum Refusal {
    /// There is no such user, or they are disabled: nobody learns which.
    #[error("User not found or 2FA not enabled.")]
    UnknownUser,
    /// So many failures that an administrator has to look into it first. Answered like an unknown
    /// user.
    #[error("User not found or 2FA not enabled.")]
    Disabled,
    /// The user has no usable seed.
    #[error("OTP secret not configured.")]
    NoSeed,
    /// The user gets codes in a way that cannot be used.
    #[error("No valid delivery method configured.")]
    NoDelivery,
    /// The request cannot be understood; the text says which part.
    #[error("{0}")]
    Malformed(String),
    /// The code is wrong, or has expired.
    #[error("Invalid OTP or expired.")]
    WrongCode,
    /// The code is used up, or was never issued to this caller.
    #[error("OTP already used or no matching record.")]
    UsedCode,
    /// The code of this time step is used up already.
    #[error("The OTP of this moment has been used. Ask again in {} seconds.", whole_seconds(*retry_after))]
    CodeConsumed {
        /// Until the next time step.
        retry_after: Duration,
    },
    /// A code was asked for a moment ago, or too many were within the hour.
    #[error("{}", too_soon(*retry_after, *in_flight))]
    TooSoon {
        /// Until one may be asked for again.
        retry_after: Duration,
        /// Until when the last one is accepted, while it is.
        in_flight: Option<UnixMillis>,
    },
    /// The realm has sent as many codes within the hour as it may.
    #[error("Too many codes have been sent within an hour. Ask again in {} seconds.", whole_seconds(*retry_after))]
    DeliveryLimitReached {
        /// Until the next one may be sent.
        retry_after: Duration,
    },
    /// Too many failures.
    #[error("Too many failed attempts. Try again in {} seconds.", whole_seconds(*retry_after))]
    Blocked {
        /// Until the next attempt is looked at.
        retry_after: Duration,
    },
    /// The mail server would not take the message.
    #[error("The OTP could not be delivered: {0}")]
    NotDelivered(&'static str),
    /// Nothing can be decided at the moment, so nothing is accepted.
    #[error(
        "The 2FA store is unavailable. Try again; if a code is refused then, ask for a new one."
    )]
    Unavailable,
    /// The realm does not let the namespace of this sidecar in, or no longer does.
    #[error("This namespace is not allowed by the realm of these users.")]
    NamespaceNotAllowed,
    /// No such path.
    #[error("There is nothing at this path. The API is described at /docs.")]
    NoSuchPath,
    /// The path exists, with another method.
    #[error("This path answers {0} only.")]
    WrongMethod(&'static str),
    /// A web page asks, or somebody under a name that is not this machine's.
    #[error("This API answers programs on this machine, not web pages from elsewhere.")]
    ForeignOrigin,
    /// The body is larger than any that makes sense.
    #[error("The request body is larger than {0} bytes.")]
    TooLarge(usize),
    /// The body did not arrive in time.
    #[error("The request body did not arrive in time.")]
    TooSlow,
    /// A defect of this program.
    #[error("Internal error.")]
    Internal,
}

/// An error as RFC 9457 has it. `detail` is the member that a client of the original service reads.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// A URI reference that identifies the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words, the same for every occurrence.
    pub title: String,
    /// The HTTP status, again.
    pub status: u16,
    /// What happened this time, in a sentence.
    pub detail: String,
    /// Asked too soon: until when the code that was sent last is accepted, while it is. RFC 3339,
    /// in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-01T12:05:00Z", format = DateTime, nullable = false)]
    pub code_in_flight_until: Option<String>,
}

fn too_soon(retry_after: Duration, in_flight: Option<UnixMillis>) -> String {
    let seconds = whole_seconds(retry_after);
    match in_flight {
        Some(until) => format!(
            "A code was asked for already, and is accepted until {}. Ask for another one in {seconds} seconds.",
            rfc3339(until)
        ),
        None => format!("Codes were asked for too often. Ask again in {seconds} seconds."),
    }
}

/// Whole seconds, rounded up: a client that waits this long comes late enough.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
}

impl Refusal {
    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::UnknownUser | Self::Disabled | Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::NoSeed | Self::NoDelivery | Self::UsedCode => StatusCode::BAD_REQUEST,
            Self::Malformed(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::WrongCode => StatusCode::UNAUTHORIZED,
            Self::CodeConsumed { .. }
            | Self::TooSoon { .. }
            | Self::DeliveryLimitReached { .. }
            | Self::Blocked { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotDelivered(_) => StatusCode::BAD_GATEWAY,
            Self::Unavailable | Self::NamespaceNotAllowed => StatusCode::SERVICE_UNAVAILABLE,
            Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The name in the problem's `type`: what a caller may know.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Disabled => Self::UnknownUser.name(),
            other => other.name(),
        }
    }

    /// The name in logs and in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::UnknownUser => "unknown-user",
            Self::Disabled => "disabled-by-failures",
            Self::NoSeed => "no-secret",
            Self::NoDelivery => "no-delivery-method",
            Self::Malformed(_) => "malformed-request",
            Self::WrongCode => "invalid-code",
            Self::UsedCode => "used-code",
            Self::CodeConsumed { .. } => "code-consumed",
            Self::TooSoon { .. } => "asked-too-soon",
            Self::DeliveryLimitReached { .. } => "delivery-limit-reached",
            Self::Blocked { .. } => "throttled",
            Self::NotDelivered(_) => "not-delivered",
            Self::Unavailable => "store-unavailable",
            Self::NamespaceNotAllowed => "namespace-not-allowed",
            Self::NoSuchPath => "no-such-path",
            Self::WrongMethod(_) => "wrong-method",
            Self::ForeignOrigin => "foreign-origin",
            Self::TooLarge(_) => "body-too-large",
            Self::TooSlow => "body-too-slow",
            Self::Internal => "internal-error",
        }
    }

    const fn title(&self) -> &'static str {
        match self {
            Self::UnknownUser | Self::Disabled => "Unknown user",
            Self::NoSeed => "No OTP secret",
            Self::NoDelivery => "No delivery method",
            Self::Malformed(_) => "Malformed request",
            Self::WrongCode => "Invalid code",
            Self::UsedCode => "Used code",
            Self::CodeConsumed { .. } => "Code already used in this time step",
            Self::TooSoon { .. } => "Code asked for too soon",
            Self::DeliveryLimitReached { .. } => "Too many codes sent",
            Self::Blocked { .. } => "Too many failed attempts",
            Self::NotDelivered(_) => "Delivery failed",
            Self::Unavailable => "Store unavailable",
            Self::NamespaceNotAllowed => "Namespace not allowed",
            Self::NoSuchPath => "No such path",
            Self::WrongMethod(_) => "Wrong method",
            Self::ForeignOrigin => "Foreign origin",
            Self::TooLarge(_) => "Body too large",
            Self::TooSlow => "Body too slow",
            Self::Internal => "Internal error",
        }
    }

    /// Whether every name is refused like this, whoever it is of: what is told also where answers
    /// keep to themselves who is a user. Everything else is told there like a wrong code, or, of
    /// generate, like a code that is on its way.
    #[must_use]
    pub const fn is_told_uniformly(&self) -> bool {
        match self {
            Self::UnknownUser
            | Self::Disabled
            | Self::NoSeed
            | Self::NoDelivery
            | Self::WrongCode
            | Self::UsedCode
            | Self::CodeConsumed { .. }
            | Self::TooSoon { .. }
            | Self::DeliveryLimitReached { .. }
            | Self::Blocked { .. }
            | Self::NotDelivered(_) => false,
            Self::Malformed(_)
            | Self::Unavailable
            | Self::NamespaceNotAllowed
            | Self::NoSuchPath
            | Self::WrongMethod(_)
            | Self::ForeignOrigin
            | Self::TooLarge(_)
            | Self::TooSlow
            | Self::Internal => true,
        }
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response {
        let problem = Problem {
            kind: format!("urn:fountainai:2fa:{}", self.kind()),
            title: self.title().to_owned(),
            status: self.status().as_u16(),
            detail: self.to_string(),
            code_in_flight_until: match self {
                Self::TooSoon { in_flight, .. } => in_flight.map(rfc3339),
                _ => None,
            },
        };
        let mut response =
            warp::reply::with_status(warp::reply::json(&problem), self.status()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self {
            Self::CodeConsumed { retry_after }
            | Self::TooSoon { retry_after, .. }
            | Self::DeliveryLimitReached { retry_after }
            | Self::Blocked { retry_after } => {
                headers.insert(header::RETRY_AFTER, whole_seconds(retry_after).into());
            }
            Self::Unavailable => {
                headers.insert(header::RETRY_AFTER, 1.into());
            }
            // Somebody has to change something first.
            Self::NamespaceNotAllowed => {
                headers.insert(header::RETRY_AFTER, 10.into());
            }
            Self::WrongMethod(allowed) => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        response
    }
}

/// Whatever keeps the store from deciding: nothing is accepted.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        if error.is_access_refused() {
            tracing::warn!(cause, "Redis refuses access to this sidecar: there is no decision");
        } else {
            tracing::warn!(%error, cause, "the store gave no decision");
        }
        Self::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_waits_as_told_is_never_early() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(29_001)), 30);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }

    #[test]
    fn a_refusal_is_problem_json_with_the_sentence_as_detail() {
        let response = Refusal::Blocked { retry_after: Duration::from_secs(30) }.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::RETRY_AFTER], "30");
    }
}
