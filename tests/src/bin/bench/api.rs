//! Starts an API server for a benchmark, and calls it as a bare client: without a cache, a library
//! for Kubernetes or retries.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use twofactor_tests::apiserver::ApiServer;

/// Number of calls at the same time.
pub(crate) const CONCURRENCY: usize = 16;

/// Path of the API group.
pub(crate) const USERS: &str = "/apis/twofactor.fountainai.io/v1alpha1";

pub(crate) fn name(number: usize) -> String {
    format!("user-{number:06}")
}

/// A call: method, path, content type and body.
pub(crate) type Call = (Method, String, &'static str, Value);

/// Starts an API server with the custom resources, a namespace `home` for the operator, and a
/// client that may do everything.
pub(crate) async fn start() -> (ApiServer, Arc<BareClient>) {
    let server = ApiServer::start().await;
    let crds = format!("{}/../crds", env!("CARGO_MANIFEST_DIR"));
    let _ = server.kubectl(&["apply", "-f", &crds]);
    let _ = server.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", &crds]);
    let _ = server.kubectl(&["create", "namespace", "home"]);
    let _ = server.kubectl(&["--namespace", "home", "create", "serviceaccount", "bench"]);
    let binding = [
        "create",
        "clusterrolebinding",
        "bench",
        "--clusterrole=cluster-admin",
        "--serviceaccount=home:bench",
    ];
    let _ = server.kubectl(&binding);
    let api = Arc::new(BareClient::new(&server));
    (server, api)
}

/// The operator logs in with a token, like the bare client and like a pod. The API server checks a
/// client certificate again for every request, which takes a tenth of its time for a user.
pub(crate) fn kubeconfig(server: &ApiServer) -> PathBuf {
    server.kubeconfig_for_service_account("home", "bench")
}

/// The requests that the API server has answered so far, by verb and resource.
pub(crate) fn requests(server: &ApiServer) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for line in server.kubectl(&["get", "--raw", "/metrics"]).lines() {
        let Some(line) = line.strip_prefix("apiserver_request_total{") else { continue };
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        let name = ["verb", "resource", "subresource"].map(|name| label(name).unwrap_or_default());
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
        *counts.entry(name.join(" ")).or_default() += count.unwrap_or_default();
    }
    counts
}

/// The creation of a user.
pub(crate) fn create_user(namespace: &str, number: usize) -> Call {
    let body = json!({
        "apiVersion": "twofactor.fountainai.io/v1alpha1", "kind": "TwoFactorUser",
        "metadata": { "name": name(number) }, "spec": { "email": format!("{}@example.org", name(number)) },
    });
    (
        Method::POST,
        format!("{USERS}/namespaces/{namespace}/twofactorusers"),
        "application/json",
        body,
    )
}

pub(crate) struct BareClient {
    client: Client,
    url: String,
    token: String,
}

impl BareClient {
    pub(crate) fn new(server: &ApiServer) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let authority = std::fs::read(server.ca_path()).expect("the API server's CA");
        let client = Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .tls_certs_only([Certificate::from_pem(&authority).expect("a certificate")])
            .build()
            .expect("an HTTP client");
        let token =
            server.kubectl(&["--namespace", "home", "create", "token", "bench"]).trim().to_owned();
        Self { client, url: server.url(), token }
    }

    /// Makes one call for each number, [`CONCURRENCY`] at a time.
    pub(crate) async fn each(self: &Arc<Self>, count: usize, call: impl Fn(usize) -> Call) {
        self.in_turn(count, |number| vec![call(number)]).await;
    }

    /// Makes the calls for each number one after the other, for [`CONCURRENCY`] numbers at a time.
    pub(crate) async fn in_turn(
        self: &Arc<Self>,
        count: usize,
        calls: impl Fn(usize) -> Vec<Call>,
    ) {
        let calls: VecDeque<Vec<Call>> = (0..count).map(calls).collect();
        let calls = Arc::new(Mutex::new(calls));
        let mut workers = JoinSet::new();
        for _ in 0..CONCURRENCY {
            let (api, calls) = (self.clone(), calls.clone());
            workers.spawn(async move {
                loop {
                    let next = calls.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(calls) = next else { return };
                    for call in calls {
                        api.call(call).await;
                    }
                }
            });
        }
        workers.join_all().await;
    }

    async fn call(&self, (method, path, content_type, body): Call) {
        let request =
            self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        let reply = request
            .header("content-type", content_type)
            .body(body.to_string())
            .send()
            .await
            .expect("an answer");
        assert!(reply.status().is_success(), "{path}: {}", reply.status());
    }
}
