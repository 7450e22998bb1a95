//! Runs an HTTPS provider of text messages or webhooks that records requests and can misbehave.
//!
//! Tests have no Twilio account, so [`Provider::twilio`] checks requests against Twilio's
//! documentation and answers in the documented form.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use twofactor_server::http::{Limits, serve_tls};
use twofactor_server::tls::configuration;
use warp::Filter;
use warp::reply::{Reply, Response};

use crate::certificates::Authority;
use crate::scratch;
use crate::wait::eventually;

/// A fault in place of a valid answer.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// This status, with this body.
    Status(u16, String),
    /// A redirect to this address.
    Redirect(String),
    /// No answer at all.
    Hang,
    /// A status of success with an endless body.
    Oversized,
    /// A status of success, after which the connection breaks within the body.
    BreakOff,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method.
    pub method: Method,
    /// The path, with the query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub body: String,
}

impl Received {
    /// A header as text, or an empty text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("a header of visible ASCII"))
    }

    /// A field of a form, or an empty text.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        let url = Url::parse(&format!("http://form/?{}", self.body)).expect("a form");
        let found = url.query_pairs().find(|(given, _)| given == name);
        found.map(|(_, value)| value.into_owned()).unwrap_or_default()
    }
}

/// The protocol that it speaks.
#[derive(Clone, Debug)]
enum Manners {
    Twilio { account_sid: String, auth_token: String },
    Webhook,
}

#[derive(Debug, Default)]
struct State {
    received: Vec<Received>,
    trouble: Option<Trouble>,
}

/// A provider on a loopback port, with TLS; it ends when it is dropped.
#[derive(Debug)]
pub struct Provider {
    url: String,
    folder: TempDir,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl Provider {
    /// A provider that answers as Twilio does for this account.
    pub async fn twilio(account_sid: &str, auth_token: &str) -> Self {
        Self::start(Manners::Twilio {
            account_sid: account_sid.to_owned(),
            auth_token: auth_token.to_owned(),
        })
        .await
    }

    /// A receiver of webhooks, which accepts every request.
    pub async fn webhook() -> Self {
        Self::start(Manners::Webhook).await
    }

    async fn start(manners: Manners) -> Self {
        let folder = scratch::folder("provider");
        let authority = Authority::new("provider's CA");
        fs::write(folder.path().join(CA), authority.pem()).expect("to write a certificate");
        let certificate = authority.server(&["localhost"]).served();

        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let query = warp::query::raw().or(warp::any().map(String::new)).unify();
        let routes = warp::any()
            .map(move || (shared.clone(), manners.clone()))
            .and(warp::method())
            .and(warp::path::full())
            .and(query)
            .and(warp::header::headers_cloned())
            .and(warp::body::bytes())
            .then(
                |(state, manners): (Arc<Mutex<State>>, Manners),
                 method,
                 path: warp::path::FullPath,
                 query: String,
                 headers,
                 body: Bytes| async move {
                    let separator = if query.is_empty() { "" } else { "?" };
                    let received = Received {
                        method,
                        path: format!("{}{separator}{query}", path.as_str()),
                        headers,
                        body: String::from_utf8(body.to_vec()).expect("a body of text"),
                    };
                    let trouble = {
                        let mut state = lock(&state);
                        state.received.push(received.clone());
                        state.trouble.clone()
                    };
                    match trouble {
                        None => manners.answer(&received),
                        Some(trouble) => trouble.answer().await,
                    }
                },
            )
            .boxed();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url =
            format!("https://localhost:{}", listener.local_addr().expect("an address").port());
        let stop = CancellationToken::new();
        let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
        let tls = configuration(certificate).expect("TLS");
        tokio::spawn(serve_tls(listener, tls, routes, limits, stop.clone()));
        Self { url, folder, state, _stop: stop.drop_guard() }
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificate authority to trust, as a PEM file.
    #[must_use]
    pub fn ca_path(&self) -> PathBuf {
        self.folder.path().join(CA)
    }

    /// Sets the fault for all requests from now on; `None` removes it.
    pub fn set(&self, trouble: Option<Trouble>) {
        lock(&self.state).trouble = trouble;
    }

    /// Everything that arrived, oldest first.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state).received.clone()
    }

    /// Waits for the request after the first `before`.
    pub async fn wait_for_request(&self, before: usize, bound: Duration) -> Received {
        eventually(bound, "a request to the provider", async || {
            self.received().get(before).cloned()
        })
        .await
    }
}

const CA: &str = "ca.pem";

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trouble {
    async fn answer(self) -> Response {
        match self {
            Self::Status(status, body) => with_status(status, body),
            Self::Redirect(target) => {
                let mut response = with_status(307, String::new());
                response.headers_mut().insert("location", target.parse().expect("an address"));
                response
            }
            Self::Hang => std::future::pending().await,
            Self::Oversized => {
                let chunks =
                    (0..1000).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b' '; 10_000])));
                warp::reply::stream(futures_util::stream::iter(chunks)).into_response()
            }
            Self::BreakOff => {
                let chunks =
                    [Ok(Bytes::from_static(b"{\"sid\":")), Err(io::Error::other("a fault"))];
                warp::reply::stream(futures_util::stream::iter(chunks)).into_response()
            }
        }
    }
}

impl Manners {
    fn answer(&self, request: &Received) -> Response {
        let Self::Twilio { account_sid, auth_token } = self else {
            return with_status(204, String::new());
        };
        let login =
            format!("Basic {}", BASE64.encode(format!("{account_sid}:{auth_token}").as_bytes()));
        if request.header("authorization") != login {
            return twilio_error(401, 20003, "Authenticate");
        }
        if request.method != Method::POST
            || request.path != format!("/2010-04-01/Accounts/{account_sid}/Messages.json")
        {
            return twilio_error(404, 20404, "The requested resource was not found");
        }
        let (to, from, body) = (request.field("To"), request.field("From"), request.field("Body"));
        let service = request.field("MessagingServiceSid");
        if request.header("content-type") != "application/x-www-form-urlencoded"
            || !to.starts_with('+')
        {
            return twilio_error(400, 21211, &format!("Invalid 'To' Phone Number: {to}"));
        }
        if from.is_empty() == service.is_empty() {
            return twilio_error(400, 21603, "A 'From' phone number is required");
        }
        if body.is_empty() || body.chars().count() > 1600 {
            return twilio_error(
                400,
                21617,
                "The message body is empty or exceeds the 1600 character limit",
            );
        }
        let message = json!({
            "sid": "SM0123456789abcdef0123456789abcdef", "account_sid": account_sid, "to": to, "from": from,
            "body": body, "status": "queued", "error_code": null, "error_message": null, "num_segments": "1",
        });
        with_status(201, message.to_string())
    }
}

fn twilio_error(status: u16, code: u32, message: &str) -> Response {
    let error = json!({
        "code": code, "message": message, "more_info": format!("https://www.twilio.com/docs/errors/{code}"),
        "status": status,
    });
    with_status(status, error.to_string())
}

fn with_status(status: u16, body: String) -> Response {
    let mut response = body.into_response();
    *response.status_mut() = warp::http::StatusCode::from_u16(status).expect("a status");
    response
}
