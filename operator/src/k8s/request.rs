//! Limits a request to the API server to ten seconds, and classifies errors by how to handle them.

use std::time::Duration;

use futures_util::AsyncReadExt;
use kube::Client;
use kube::api::ListParams;
use kube::core::ObjectList;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Timeout for one request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request failed. Only the code and the reason of an answer are kept, because an answer can
/// repeat what was sent, which may be a secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ApiError {
    /// The object does not exist.
    #[error("the API server answers 404 {0}")]
    NotFound(String),
    /// The object exists already.
    #[error("the API server answers 409 {0}")]
    AlreadyExists(String),
    /// Another client changed the object in between.
    #[error("the API server answers 409 {0}")]
    Conflict(String),
    /// The API server rejects the request, and will do so again unless something changes.
    #[error("the API server answers {code} {reason}")]
    Refused {
        /// The HTTP status code.
        code: u16,
        /// The reason, in one word of Kubernetes.
        reason: String,
    },
    /// The API server is overloaded or faulty.
    #[error("the API server answers {code} {reason}")]
    Unwell {
        /// The HTTP status code.
        code: u16,
        /// The reason, in one word of Kubernetes.
        reason: String,
    },
    /// The API server did not answer in time.
    #[error("the API server does not answer within 10 s")]
    Timeout,
    /// It cannot be reached, or its answer cannot be read.
    #[error("the API server cannot be reached, or its answer cannot be read")]
    Unreachable,
}

impl ApiError {
    /// Whether the request can succeed later without a change.
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Unwell { .. } | Self::Timeout | Self::Unreachable | Self::Conflict(_))
    }

    /// Whether the object must not be changed like this, for example because it is immutable.
    pub const fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused { code: 422, .. })
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
                tracing::debug!(%error, "failed to send a request to the API server");
                Self::Unreachable
            }
        }
    }
}

/// Runs a request with the timeout.
pub async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ApiError::Timeout),
    }
}

/// Lists objects below `url`. Returns nothing if the answer is larger than `bytes`; the rest of it
/// is not read.
pub async fn bounded_list<K: Clone + DeserializeOwned>(
    client: &Client,
    url: &str,
    parameters: &ListParams,
    bytes: u64,
) -> Result<Option<ObjectList<K>>, ApiError> {
    within(async {
        let request = kube::core::Request::new(url).list(parameters);
        let answer = client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
        let mut text = Vec::new();
        let length = answer.take(bytes + 1).read_to_end(&mut text).await;
        let length = length.map_err(kube::Error::ReadEvents)?;
        if u64::try_from(length).is_ok_and(|length| length <= bytes) {
            serde_json::from_slice(&text).map(Some).map_err(kube::Error::SerdeError)
        } else {
            Ok(None)
        }
    })
    .await
}

/// Turns "the object does not exist" into `None`.
pub fn optional<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ApiError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
