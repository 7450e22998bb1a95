//! Requests to the API server. Enters: a request. Leaves: its answer within ten seconds, or what
//! went wrong, sorted by what there is to do about it.

use std::time::Duration;

use thiserror::Error;

/// How long one request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request had no useful answer. Answers can repeat what was sent, and that may be a secret:
/// only the code and the reason of one are kept.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ApiError {
    /// There is no such object.
    #[error("the API server answers 404 {0}")]
    NotFound(String),
    /// There is one already.
    #[error("the API server answers 409 {0}")]
    AlreadyExists(String),
    /// Somebody else changed the object meanwhile.
    #[error("the API server answers 409 {0}")]
    Conflict(String),
    /// The API server does not want this, and will not want it next time unless something is
    /// changed.
    #[error("the API server answers {code} {reason}")]
    Refused {
        /// The HTTP status code.
        code: u16,
        /// The reason, in one word of Kubernetes.
        reason: String,
    },
    /// The API server has too much to do, or something is wrong with it.
    #[error("the API server answers {code} {reason}")]
    Unwell {
        /// The HTTP status code.
        code: u16,
        /// The reason, in one word of Kubernetes.
        reason: String,
    },
    /// No answer in time.
    #[error("the API server does not answer within 10 s")]
    Timeout,
    /// It cannot be reached, or its answer cannot be read.
    #[error("the API server cannot be reached, or its answer cannot be read")]
    Unreachable,
}

impl ApiError {
    /// Whether the API server is away or overloaded, rather than refusing this very request.
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Unwell { .. } | Self::Timeout | Self::Unreachable | Self::Conflict(_))
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let reason = if status.reason.is_empty() {
                    "Unknown".to_owned()
                } else {
                    status.reason.clone()
                };
                match status.code {
                    404 => Self::NotFound(reason),
                    409 if reason == "AlreadyExists" => Self::AlreadyExists(reason),
                    409 => Self::Conflict(reason),
                    code @ (429 | 500..) => Self::Unwell { code, reason },
                    code => Self::Refused { code, reason },
                }
            }
            error => {
                tracing::debug!(%error, "a request to the API server failed");
                Self::Unreachable
            }
        }
    }
}

/// Bounds the time that a request takes.
pub async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ApiError::Timeout),
    }
}

/// An answer that may be "there is no such object".
pub fn optional<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ApiError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
