//! Sends HTTP requests to one server, and returns replies of any status unchanged.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, ClientBuilder, Method, Url};
use serde_json::{Value, json};

use crate::process::Process;
use crate::wait::eventually;

/// Timeout for a request, longer than any that the programs have.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub body: String,
}

impl Reply {
    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| {
            panic!("not JSON ({error}), status {}: {:?}", self.status, self.body)
        })
    }

    /// A header as text, if it came.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header of visible ASCII"))
    }
}

/// A client of one server on loopback. It uses no proxy, follows no redirects and trusts no
/// certificate.
#[derive(Clone, Debug)]
pub struct ApiClient {
    base_url: String,
    client: Client,
}

impl ApiClient {
    /// A client of the server at `base_url`, such as `http://127.0.0.1:8004`.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        let client = client().tls_certs_only([]).build().expect("an HTTP client");
        Self { base_url: base_url.into().trim_end_matches('/').to_owned(), client }
    }

    /// The base URL.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Requests a code: `POST /auth/generate?username=…`.
    pub async fn generate(&self, username: &str) -> Reply {
        let url = Url::parse_with_params(&self.url("/auth/generate"), [("username", username)])
            .expect("a URL");
        reply(self.client.post(url)).await.unwrap_or_else(|error| panic!("no reply: {error:?}"))
    }

    /// Submits a code: `POST /auth/verify`.
    pub async fn verify(&self, username: &str, code: &str) -> Reply {
        self.post_json("/auth/verify", &json!({ "username": username, "otp_code": code })).await
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Reply {
        self.raw("GET", path, &[], "").await
    }

    /// Waits until `GET path` answers 200, and panics if the process exits before.
    pub async fn wait_until_ok(&self, path: &str, process: &Process, bound: Duration) {
        eventually(bound, format_args!("{path} to answer 200"), async || {
            process.assert_running();
            match self.try_raw("GET", path, &[], "").await {
                Ok(reply) if reply.status == 200 => Ok(()),
                Ok(reply) => Err(format!("it answers {}: {}", reply.status, reply.body)),
                Err(error) => Err(format!("{error:?}")),
            }
        })
        .await;
    }

    /// `POST path` with a JSON body.
    pub async fn post_json(&self, path: &str, body: &Value) -> Reply {
        self.raw("POST", path, &[(CONTENT_TYPE.as_str(), "application/json")], body.to_string())
            .await
    }

    /// Any request; the path may hold a query.
    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Reply {
        self.try_raw(method, path, headers, body)
            .await
            .unwrap_or_else(|error| panic!("no reply to {method} {path}: {error:?}"))
    }

    /// [`ApiClient::raw`] for a server that may not be there.
    ///
    /// # Errors
    /// If no complete reply came.
    pub async fn try_raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Result<Reply, reqwest::Error> {
        let method = Method::from_bytes(method.as_bytes()).expect("an HTTP method");
        let request = self.client.request(method, self.url(path)).body(body.into());
        reply(headers.iter().fold(request, |request, &(name, value)| request.header(name, value)))
            .await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }
}

async fn reply(request: reqwest::RequestBuilder) -> Result<Reply, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Reply { status, headers, body: response.text().await? })
}

/// Settings of every HTTP client of the harness.
pub(crate) fn client() -> ClientBuilder {
    // An error means that a provider is installed already, which can only be the same one.
    rustls::crypto::ring::default_provider().install_default().ok();
    Client::builder().no_proxy().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none())
}
