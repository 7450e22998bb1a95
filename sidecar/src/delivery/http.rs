//! Sends HTTP requests for channels.
//!
//! Redirects are never followed and no proxy of the environment is used, because a code may only go
//! to the address that the realm names, and over the proxy that it names.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Proxy, RequestBuilder, Response, StatusCode};
use tokio::sync::Mutex;
use twofactor_core::provider::Endpoint;

use super::CONNECT_TIMEOUT;
use super::error::{DeliveryError, cause, is_about_trust};

/// Maximum idle time of a connection. Some servers close connections after five seconds, and a
/// request that is sent at that moment may or may not be carried out.
const IDLE: Duration = Duration::from_secs(4);
/// Maximum number of idle connections: as many as deliveries at the same time in a rush of logins,
/// because each further one pays for a new connection and its handshake.
const MOST_IDLE: usize = 64;
/// Timeout for a body that is not needed.
const LATE: Duration = Duration::from_millis(250);
/// Maximum size of an answer in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;
/// How hyper names the answer 407 of a proxy, in an error without a public type.
const PROXY_LOGIN: &str = "tunnel error: proxy authorization required";

/// The client of one endpoint, built when it is first used because reading the system's
/// certificates takes time.
#[derive(Debug, Default)]
pub(super) struct HttpClient {
    current: ArcSwapOption<(Endpoint, Client)>,
    /// Held while a client is built, so that the first deliveries, which come together, do not
    /// build one each.
    building: Mutex<()>,
}

/// The answer to a request.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `None` if the body is too long or incomplete.
    pub(super) body: Option<Vec<u8>>,
}

impl HttpClient {
    /// Returns a client for requests to `endpoint`.
    pub(super) async fn of(&self, endpoint: &Endpoint) -> Result<Client, DeliveryError> {
        if let Some(client) = self.known(endpoint) {
            return Ok(client);
        }
        let _building = self.building.lock().await;
        if let Some(client) = self.known(endpoint) {
            return Ok(client);
        }
        let wanted = endpoint.clone();
        let built = tokio::task::spawn_blocking(move || build(&wanted)).await;
        let client = built
            .unwrap_or(Err(DeliveryError::Misconfigured("no HTTP client could be made".into())))?;
        self.current.store(Some(Arc::new((endpoint.clone(), client.clone()))));
        Ok(client)
    }

    fn known(&self, endpoint: &Endpoint) -> Option<Client> {
        let current = self.current.load();
        current.as_ref().filter(|current| current.0 == *endpoint).map(|current| current.1.clone())
    }
}

fn build(endpoint: &Endpoint) -> Result<Client, DeliveryError> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .https_only(!endpoint.is_in_clear())
        .no_proxy()
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MOST_IDLE)
        .redirect(Policy::none())
        .referer(false)
        .user_agent(concat!("fountainai-2fa/", env!("CARGO_PKG_VERSION")));
    if let Some(bundle) = &endpoint.ca_certificates {
        let wrong = |_| DeliveryError::Misconfigured("the CA certificates are not PEM".into());
        builder =
            builder.tls_certs_only(Certificate::from_pem_bundle(bundle.as_bytes()).map_err(wrong)?);
    }
    if let Some(proxy) = &endpoint.proxy {
        let wrong = |_| DeliveryError::Misconfigured("the proxy is not a URL".into());
        builder = builder.proxy(Proxy::https(proxy.expose_secret()).map_err(wrong)?);
    }
    builder.build().map_err(|_| DeliveryError::Misconfigured("TLS towards the provider".into()))
}

/// Sends a request and reads the answer.
pub(super) async fn send(request: RequestBuilder) -> Result<Answer, DeliveryError> {
    let response = request.send().await.map_err(|error| classify(&error))?;
    let status = response.status();
    let body = if status.is_success() {
        read(response).await
    } else {
        // The status says enough; a body that comes late would turn a refusal into a timeout.
        tokio::time::timeout(LATE, read(response)).await.unwrap_or_default()
    };
    Ok(Answer { status, body })
}

/// Sends a request to a server that answers by its status alone.
pub(super) async fn send_for_status(request: RequestBuilder) -> Result<StatusCode, DeliveryError> {
    let response = request.send().await.map_err(|error| classify(&error))?;
    let status = response.status();
    // A connection can be used again only if the body has ended.
    let _ = tokio::time::timeout(LATE, read(response)).await;
    Ok(status)
}

/// Returns the body, or `None` if it is too long or incomplete.
async fn read(mut response: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > LONGEST_ANSWER {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// Returns the error for an answer other than a success. `detail` must be safe to log.
pub(super) fn refusal(status: StatusCode, detail: &str) -> DeliveryError {
    let said = format!("HTTP {}{detail}", status.as_u16());
    match status.as_u16() {
        401 | 403 => DeliveryError::Misconfigured(
            format!("it does not accept the credentials: {said}").into(),
        ),
        300..=399 => DeliveryError::Refused(format!("{said}; redirects are not followed")),
        429 | 500..=599 => DeliveryError::Deferred(said),
        _ => DeliveryError::Refused(said),
    }
}

/// The error does not contain the address, which may contain a secret.
fn classify(error: &reqwest::Error) -> DeliveryError {
    if is_about_trust(error) {
        DeliveryError::Untrusted(cause(error))
    } else if error.is_builder() {
        DeliveryError::Misconfigured("no request to the provider could be made".into())
    } else if error.is_connect() {
        match cause(error) {
            cause if cause == PROXY_LOGIN => DeliveryError::Misconfigured(cause.into()),
            cause => DeliveryError::Unreachable(cause),
        }
    } else {
        DeliveryError::Broken(cause(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_an_outcome() {
        for (status, outcome) in [
            (301, "refused"),
            (400, "refused"),
            (401, "misconfigured"),
            (403, "misconfigured"),
            (410, "refused"),
            (429, "deferred"),
            (500, "deferred"),
            (503, "deferred"),
        ] {
            assert_eq!(
                refusal(StatusCode::from_u16(status).unwrap(), "").outcome(),
                outcome,
                "{status}"
            );
        }
    }
}
