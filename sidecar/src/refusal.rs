//! Every refusal of a request: its name, status, title and sentence.
//!
//! The sentences are those that clients of the original service read. Internal causes are logged
//! and never sent.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use thiserror::Error;
use twofactor_core::time::UnixMillis;
use twofactor_store::{StoreError, StoreFailure};
use utoipa::ToSchema;
use warp::reply::{Reply, Response};

use crate::delivery::rfc3339;

/// Why a request was refused. The table below gives each variant its name, status and title.
#[derive(Debug, Error)]
pub enum Refusal {
    /// There is no such user, or the user is disabled; the answer does not say which.
    #[error("User not found or 2FA not enabled.")]
    UnknownUser,
    /// The user is disabled after too many failures, until an administrator enables them again. It
    /// is answered like an unknown user.
    #[error("User not found or 2FA not enabled.")]
    Disabled,
    /// The user has no usable seed.
    #[error("OTP secret not configured.")]
    NoSeed,
    /// The user's delivery method is not available.
    #[error("No valid delivery method configured.")]
    NoDelivery,
    /// The request is invalid; the text names the field.
    #[error("{0}")]
    Malformed(String),
    /// The code is wrong, or has expired.
    #[error("Invalid OTP or expired.")]
    WrongCode,
    /// The code was used before, or was never issued to this caller.
    #[error("OTP already used or no matching record.")]
    UsedCode,
    /// The code of this time step was used already, or was issued to another service.
    #[error("The OTP of this moment has been used, or belongs to another service. Ask again in {} seconds.", whole_seconds(*retry_after))]
    CodeConsumed {
        /// Time until the next time step.
        retry_after: Duration,
    },
    /// A code was requested a moment ago, or too many were within the hour.
    #[error("{}", too_soon(*retry_after, *in_flight))]
    TooSoon {
        /// Time until the next code may be requested.
        retry_after: Duration,
        /// When the last code expires, if it is still valid.
        in_flight: Option<UnixMillis>,
    },
    /// The realm has sent its maximum number of codes within the hour.
    #[error("Too many codes have been sent within an hour. Ask again in {} seconds.", whole_seconds(*retry_after))]
    DeliveryLimitReached {
        /// Time until the next code may be sent.
        retry_after: Duration,
    },
    /// Too many failures.
    #[error("Too many failed attempts. Try again in {} seconds.", whole_seconds(*retry_after))]
    Blocked {
        /// Time until the next attempt is checked.
        retry_after: Duration,
    },
    /// This service has used up the failures of a day for this user.
    #[error("Too many failed attempts within a day. Try again in {} seconds.", whole_seconds(*retry_after))]
    FailuresUsedUp {
        /// Time until the next attempt is checked.
        retry_after: Duration,
    },
    /// This service has used its share of the codes for this user, or of the realm's.
    #[error("This service has used its share of the codes of an hour. Ask again in {} seconds.", whole_seconds(*retry_after))]
    ShareUsedUp {
        /// Time until this service may request the next code.
        retry_after: Duration,
    },
    /// The provider did not accept the message; the text says why.
    #[error("The OTP could not be delivered: {0}")]
    NotDelivered(&'static str),
    /// No decision is possible at the moment, so no code is accepted.
    #[error(
        "The 2FA store is unavailable. Try again; if a code is refused then, ask for a new one."
    )]
    Unavailable,
    /// The realm does not allow the namespace of this sidecar.
    #[error("This namespace is not allowed by the realm of these users.")]
    NamespaceNotAllowed,
    /// No such path.
    #[error("There is nothing at this path. The API is described at /docs.")]
    NoSuchPath,
    /// The path exists with another method.
    #[error("This path answers {0} only.")]
    WrongMethod(&'static str),
    /// The request comes from a web page of another origin, or names another host.
    #[error("This API answers programs on this machine, not web pages from elsewhere.")]
    ForeignOrigin,
    /// The header `Host` is missing or invalid, or there are several.
    #[error("The request must have one valid Host header, such as 127.0.0.1 or localhost.")]
    InvalidHost,
    /// The body is larger than any valid one.
    #[error("The request body is larger than {0} bytes.")]
    TooLarge(usize),
    /// The body did not arrive in time.
    #[error("The request body did not arrive in time.")]
    TooSlow,
    /// A defect of this program.
    #[error("Internal error.")]
    Internal,
}

/// Whether a refusal depends on the name in the request.
#[derive(PartialEq, Eq)]
enum DependsOn {
    /// It is the same for every name, so callers see it with uniform answers as well.
    Request,
    /// It shows something about the user. With uniform answers, verify answers like for a wrong
    /// code, and generate like for a code that is on its way.
    User,
}

macro_rules! refusals {
    ($($variant:ident = $name:literal, $status:ident, $title:literal, $depends_on:ident;)*) => {
        impl Refusal {
            /// The names of all refusals.
            pub const ALL: &[&str] = &[$($name),*];

            /// The name in logs and metrics.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $name,)* }
            }

            const fn status(&self) -> StatusCode {
                match self { $(Self::$variant { .. } => StatusCode::$status,)* }
            }

            const fn title(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $title,)* }
            }

            const fn depends_on(&self) -> DependsOn {
                match self { $(Self::$variant { .. } => DependsOn::$depends_on,)* }
            }
        }
    };
}

refusals! {
    UnknownUser = "unknown-user", NOT_FOUND, "Unknown user", User;
    Disabled = "disabled-by-failures", NOT_FOUND, "Unknown user", User;
    NoSeed = "no-secret", BAD_REQUEST, "No OTP secret", User;
    NoDelivery = "no-delivery-method", BAD_REQUEST, "No delivery method", User;
    Malformed = "malformed-request", UNPROCESSABLE_ENTITY, "Malformed request", Request;
    WrongCode = "invalid-code", UNAUTHORIZED, "Invalid code", User;
    UsedCode = "used-code", BAD_REQUEST, "Used code", User;
    CodeConsumed = "code-consumed", TOO_MANY_REQUESTS, "Code already used in this time step", User;
    TooSoon = "asked-too-soon", TOO_MANY_REQUESTS, "Code asked for too soon", User;
    DeliveryLimitReached = "delivery-limit-reached", TOO_MANY_REQUESTS, "Too many codes sent", User;
    Blocked = "throttled", TOO_MANY_REQUESTS, "Too many failed attempts", User;
    FailuresUsedUp = "failures-used-up", TOO_MANY_REQUESTS, "Failures of a day used up", User;
    ShareUsedUp = "share-used-up", TOO_MANY_REQUESTS, "Share of the codes used up", User;
    NotDelivered = "not-delivered", BAD_GATEWAY, "Delivery failed", User;
    Unavailable = "store-unavailable", SERVICE_UNAVAILABLE, "Store unavailable", Request;
    NamespaceNotAllowed = "namespace-not-allowed", SERVICE_UNAVAILABLE, "Namespace not allowed", Request;
    NoSuchPath = "no-such-path", NOT_FOUND, "No such path", Request;
    WrongMethod = "wrong-method", METHOD_NOT_ALLOWED, "Wrong method", Request;
    ForeignOrigin = "foreign-origin", FORBIDDEN, "Foreign origin", Request;
    InvalidHost = "invalid-host", BAD_REQUEST, "Invalid host", Request;
    TooLarge = "body-too-large", PAYLOAD_TOO_LARGE, "Body too large", Request;
    TooSlow = "body-too-slow", REQUEST_TIMEOUT, "Body too slow", Request;
    Internal = "internal-error", INTERNAL_SERVER_ERROR, "Internal error", Request;
}

/// A problem (RFC 9457). `detail` is the member that clients of the original service read.
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

/// Rounds up, so that a client that waits this long is not too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
}

impl Refusal {
    /// Refuses a request about which the store has decided nothing, and logs why.
    pub fn undecided(cause: &'static str) -> Self {
        tracing::warn!(cause, "failed to get a decision from the store");
        Self::Unavailable
    }

    /// Whether callers see this refusal even where answers do not show which names are users.
    pub const fn is_same_for_every_name(&self) -> bool {
        matches!(self.depends_on(), DependsOn::Request)
    }

    /// Returns the name in the problem's `type`, which does not show callers how many failures a
    /// user has.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Disabled => Self::UnknownUser.name(),
            other => other.name(),
        }
    }

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
            | Self::FailuresUsedUp { retry_after }
            | Self::ShareUsedUp { retry_after }
            | Self::Blocked { retry_after } => {
                headers.insert(header::RETRY_AFTER, whole_seconds(retry_after).into());
            }
            Self::Unavailable => {
                headers.insert(header::RETRY_AFTER, 1.into());
            }
            // An administrator has to change the realm first.
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

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        match error.failure() {
            StoreFailure::AccessRefused => {
                tracing::warn!(cause, "Redis refuses access to this sidecar");
            }
            StoreFailure::ScriptsMissing => {
                tracing::warn!("Redis lacks the scripts, which the operator loads");
            }
            StoreFailure::NoAnswer | StoreFailure::TooManyClients => {
                tracing::warn!(%error, cause, "failed to get a decision from the store");
            }
        }
        Self::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_waits_for_retry_after_is_never_early() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(29_001)), 30);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }

    #[test]
    fn each_refusal_has_its_own_name() {
        let mut names = Refusal::ALL.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Refusal::ALL.len());
    }

    #[test]
    fn a_refusal_is_problem_json_with_the_sentence_as_detail() {
        let response = Refusal::Blocked { retry_after: Duration::from_secs(30) }.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::RETRY_AFTER], "30");
    }
}
