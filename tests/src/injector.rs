//! Runs a mutating webhook as other projects have one: it adds to pods what a test chooses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use twofactor_server::http::{Limits, serve_tls};
use twofactor_server::tls::configuration;
use warp::Filter;
use warp::reply::Reply;

use crate::certificates::Authority;

/// Makes a JSON Patch for a pod; an empty one changes nothing.
pub type Change = fn(&Value) -> Vec<Value>;

/// An injector on a loopback port; it ends when it is dropped.
#[derive(Debug)]
pub struct Injector {
    port: u16,
    authority: String,
    change: Arc<Mutex<Change>>,
    calls: Arc<Mutex<usize>>,
    _stop: DropGuard,
}

impl Injector {
    /// An injector that changes pods like this.
    pub async fn start(change: Change) -> Self {
        let authority = Authority::new("injector's CA");
        let certificate = authority.server(&["localhost"]).served();
        let (change, calls) = (Arc::new(Mutex::new(change)), Arc::<Mutex<usize>>::default());
        let shared = (change.clone(), calls.clone());
        let routes = warp::body::bytes()
            .map(move |body: Bytes| {
                let review: Value = serde_json::from_slice(&body).expect("a review");
                *lock(&shared.1) += 1;
                let change = *lock(&shared.0);
                warp::reply::json(&answer(&review, change)).into_response()
            })
            .boxed();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (stop, limits) = (CancellationToken::new(), Limits::default());
        let tls = configuration(certificate).expect("TLS");
        tokio::spawn(serve_tls(listener, tls, routes, limits, stop.clone()));
        Self { port, authority: authority.pem(), change, calls, _stop: stop.drop_guard() }
    }

    /// Changes pods like this from now on.
    pub fn set(&self, change: Change) {
        *lock(&self.change) = change;
    }

    /// How many reviews it has answered.
    #[must_use]
    pub fn calls(&self) -> usize {
        *lock(&self.calls)
    }

    /// The configuration with which an API server calls it for each new pod of a namespace. API
    /// servers call webhooks in the order of their configurations' names.
    #[must_use]
    pub fn configuration(&self, name: &str, namespace: &str) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": name },
            "webhooks": [{
                "name": "inject.example.org", "admissionReviewVersions": ["v1"],
                "sideEffects": "None", "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
                "clientConfig": {
                    "url": format!("https://localhost:{}/", self.port),
                    "caBundle": BASE64.encode(self.authority.as_bytes()),
                },
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
                "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                    "resources": ["pods"] }],
            }],
        })
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(review: &Value, change: Change) -> Value {
    let request = &review["request"];
    let patch = Value::from(change(&request["object"])).to_string();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {
            "uid": request["uid"], "allowed": true, "patchType": "JSONPatch",
            "patch": BASE64.encode(patch.as_bytes()),
        },
    })
}
