//! Runs a proxy in front of the API server that can inject faults and counts requests. It forwards
//! requests, watches included, unless a fault is set.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::header::HeaderMap;
use reqwest::{Certificate, Client, Method};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use twofactor_server::http::{Limits, serve};
use warp::Filter;
use warp::reply::{Reply, Response};

use crate::apiserver::ApiServer;

/// A fault in place of the API server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, to requests that write.
    Writes(u16),
    /// This status, to every request.
    Everything(u16),
    /// This status, to requests whose path contains this text.
    Path(&'static str, u16),
    /// No answer as long as the fault lasts, to requests whose path contains this text.
    Held(&'static str),
    /// The API server's answer, after a delay.
    Slow(Duration),
}

/// A proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    url: String,
    fault: watch::Sender<Option<Fault>>,
    hits: Arc<Mutex<u64>>,
    requests: Arc<Mutex<Vec<String>>>,
    silenced: watch::Sender<u64>,
    _stop: DropGuard,
}

#[derive(Clone)]
struct Forward {
    client: Client,
    target: String,
    fault: watch::Receiver<Option<Fault>>,
    hits: Arc<Mutex<u64>>,
    requests: Arc<Mutex<Vec<String>>>,
    silenced: watch::Receiver<u64>,
}

impl FaultProxy {
    /// A proxy in front of `server`, without a fault.
    pub async fn start(server: &ApiServer) -> Self {
        let authority = std::fs::read(server.ca_path()).expect("the API server's CA");
        let client = crate::http::client()
            // A watch lasts longer than any other request.
            .timeout(Duration::from_mins(10))
            .tls_certs_only([Certificate::from_pem(&authority).expect("a certificate")])
            .build()
            .expect("an HTTP client");
        let (fault, hits) = (watch::Sender::new(None), Arc::<Mutex<u64>>::default());
        let (requests, silenced) = (Arc::<Mutex<Vec<String>>>::default(), watch::Sender::new(0));
        let forward = Forward {
            client,
            target: server.url(),
            fault: fault.subscribe(),
            hits: hits.clone(),
            requests: requests.clone(),
            silenced: silenced.subscribe(),
        };
        let query = warp::query::raw().or(warp::any().map(String::new)).unify();
        let routes = warp::any()
            .map(move || forward.clone())
            .and(warp::method())
            .and(warp::path::full())
            .and(query)
            .and(warp::header::headers_cloned())
            .and(warp::body::bytes())
            .then(
                |forward: Forward,
                 method,
                 path: warp::path::FullPath,
                 query: String,
                 headers,
                 body| async move {
                    let target = format!("{}{}?{query}", forward.target, path.as_str());
                    forward.answer(method, target, headers, body).await
                },
            )
            .boxed();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
        tokio::spawn(serve(listener, routes, limits, stop.clone()));
        Self { url, fault, hits, requests, silenced, _stop: stop.drop_guard() }
    }

    /// The same kubeconfig, through the proxy.
    #[must_use]
    pub fn kubeconfig(&self, server: &ApiServer, kubeconfig: &Path) -> PathBuf {
        let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
        let path = kubeconfig.with_extension("proxied");
        std::fs::write(&path, text.replace(&server.url(), &self.url))
            .expect("to write a kubeconfig");
        path
    }

    /// Sets the fault for all requests from now on; `None` removes it.
    pub fn set(&self, fault: Option<Fault>) {
        self.fault.send_replace(fault);
    }

    /// From now on, nothing more of the answers that have begun is forwarded, and they do not end.
    /// Later requests are forwarded.
    pub fn silence(&self) {
        self.silenced.send_modify(|generation| *generation += 1);
    }

    /// The number of requests so far whose `METHOD path?query` fits.
    #[must_use]
    pub fn count(&self, fits: impl Fn(&str) -> bool) -> usize {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().filter(|request| fits(request)).count()
    }

    /// How many requests met a fault.
    #[must_use]
    pub fn hits(&self) -> u64 {
        *self.hits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forward {
    async fn answer(
        self,
        method: Method,
        target: String,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Response {
        let request = format!("{method} {}", target.trim_start_matches(&self.target));
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        let fault = *self.fault.borrow();
        let writes = method != Method::GET;
        let status = match fault {
            Some(Fault::Writes(status)) if writes => Some(status),
            Some(Fault::Everything(status)) => Some(status),
            Some(Fault::Path(text, status)) if target.contains(text) => Some(status),
            _ => None,
        };
        let held = matches!(fault, Some(Fault::Held(text)) if target.contains(text));
        if held || status.is_some() || matches!(fault, Some(Fault::Slow(_))) {
            *self.hits.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        }
        if held {
            // An error means that the proxy, and with it the fault, has ended.
            let _ = self.fault.clone().wait_for(|now| *now != fault).await;
        }
        if let Some(status) = status {
            return refusal(status);
        }
        if let Some(Fault::Slow(delay)) = fault {
            // This sleep waits for no condition: the delay is the fault.
            tokio::time::sleep(delay).await;
        }
        headers.remove("host");
        headers.remove("content-length");
        let request = self.client.request(method, target).headers(headers).body(body);
        match request.send().await {
            Ok(answer) => {
                let (status, headers) = (answer.status(), answer.headers().clone());
                let body = until_silenced(answer.bytes_stream(), self.silenced);
                let mut response = warp::reply::stream(body).into_response();
                *response.status_mut() = status;
                for name in ["content-type", "content-encoding", "retry-after"] {
                    if let Some(value) = headers.get(name) {
                        response.headers_mut().insert(name, value.clone());
                    }
                }
                response
            }
            Err(error) => refusal_with(502, &error.to_string()),
        }
    }
}

/// The stream, which says nothing more once the proxy is silenced.
fn until_silenced<T: Send + 'static>(
    stream: impl Stream<Item = T> + Send + 'static,
    silenced: watch::Receiver<u64>,
) -> impl Stream<Item = T> + Send + 'static {
    let begun = *silenced.borrow();
    let is_silenced = move || *silenced.borrow() != begun;
    stream.then(move |item| {
        let silent = is_silenced();
        async move {
            if silent {
                std::future::pending::<()>().await;
            }
            item
        }
    })
}

fn refusal(status: u16) -> Response {
    refusal_with(status, "a fault that the test set")
}

/// What the API server answers when it refuses: a `Status`.
fn refusal_with(status: u16, message: &str) -> Response {
    let reason = match status {
        409 => "Conflict",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status,
    });
    let mut response = warp::reply::json(&body).into_response();
    *response.status_mut() = warp::http::StatusCode::from_u16(status).expect("a status");
    if status == 429 {
        response.headers_mut().insert("retry-after", 1.into());
    }
    response
}
