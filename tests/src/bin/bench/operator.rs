//! Measures the operator with many users in comparison with a bare client that makes the same
//! writes.
//!
//! Prints the time until all users are ready and its ratio to the bare client's, the operator's
//! memory, and the time for a refill of a flushed Redis.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::usage::{peak_mebibytes, resident_mebibytes};

const CONCURRENCY: usize = 16;
const BOUND: Duration = Duration::from_mins(10);

/// Runs the benchmark with this many users.
pub(crate) async fn run(users: usize) {
    let server = ApiServer::start().await;
    let redis = RedisServer::start().await;
    let crds = format!("{}/../crds", env!("CARGO_MANIFEST_DIR"));
    let _ = server.kubectl(&["apply", "-f", &crds]);
    let _ = server.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", &crds]);
    for namespace in ["home", "bare", "people"] {
        let _ = server.kubectl(&["create", "namespace", namespace]);
    }
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

    for namespace in ["bare", "people"] {
        api.each(users, move |number| create_user(namespace, number)).await;
    }
    let began = Instant::now();
    api.each(users, |number| create_secret("bare", number)).await;
    api.each(users, |number| patch_status("bare", number)).await;
    let bare = began.elapsed();

    let began = Instant::now();
    let operator = OperatorProcess::builder(&server.kubeconfig_path())
        .args(["--namespace", "people", "--operator-namespace", "home", "--log", "warn"])
        .args(["--concurrency", &CONCURRENCY.to_string()])
        .env("REDIS_URL", &redis.url())
        .start()
        .await;
    // A reconcile ends with the user's status. The number of ready users is counted only once a
    // second, so it is read afterwards.
    let count = async |name: &str| {
        operator.process().assert_running();
        let metrics = operator.admin().get("/metrics").await.body;
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<usize>().ok())
            .unwrap_or(0)
    };
    let looked =
        "controller_runtime_reconcile_total{controller=\"twofactoruser\",result=\"success\"}";
    eventually(BOUND, "all users to be looked at", async || count(looked).await >= users).await;
    let took = began.elapsed();
    let ready = async || count("twofactor_users{ready=\"true\"}").await == users;
    eventually(Duration::from_secs(5), "all users to be ready", ready).await;
    let pid = operator.process().id();

    let mut connection = redis.connect().await;
    let meta: Vec<String> = connection.keys("*:meta").await.expect("the realm's key");
    redis.flush_all().await;
    let began = Instant::now();
    eventually(BOUND, "the refill", async || {
        connection.hexists::<_, _, bool>(&meta[0], "complete").await.unwrap_or(false)
    })
    .await;
    let refill = began.elapsed();
    let records: Vec<String> = connection.keys("*:state").await.expect("the users' keys");
    assert_eq!(records.len(), users);

    println!(
        "{users:>7} | {:>9.1} s | {:>11.1} s | {:>5.2} | {:>9} MiB | {:>5} MiB | {:>7.2} s",
        took.as_secs_f64(),
        bare.as_secs_f64(),
        took.as_secs_f64() / bare.as_secs_f64(),
        resident_mebibytes(pid),
        peak_mebibytes(pid),
        refill.as_secs_f64(),
    );
}

/// Prints the table's header.
pub(crate) fn print_head() {
    println!(
        "\nTime until all existing users are ready after the operator starts. For comparison, a bare client makes"
    );
    println!(
        "the same two writes per user, {CONCURRENCY} at a time. Then Redis is flushed: time until the realm is complete again.\n"
    );
    println!("  users | all ready   | bare client   | ratio | memory now    | peak      | refill");
}

type Call = (Method, String, &'static str, Value);

fn create_user(namespace: &str, number: usize) -> Call {
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

/// A Secret as large as the one that the operator writes, including the QR picture.
fn create_secret(namespace: &str, number: usize) -> Call {
    let body = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "name": format!("{}-totp", name(number)) },
        "stringData": {
            "secret": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "username": name(number),
            "otpauth-uri": "x".repeat(130), "qr.png": "x".repeat(900),
        },
    });
    (Method::POST, format!("/api/v1/namespaces/{namespace}/secrets"), "application/json", body)
}

fn patch_status(namespace: &str, number: usize) -> Call {
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": "Ready", "message": "Sidecars can verify this user's codes",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
        })
    };
    let body = json!({ "status": {
        "observedGeneration": 1, "username": name(number), "secretName": format!("{}-totp", name(number)),
        "conditions": [condition("Ready"), condition("SecretReady"), condition("Published")],
    } });
    let path = format!("{USERS}/namespaces/{namespace}/twofactorusers/{}/status", name(number));
    (Method::PATCH, path, "application/merge-patch+json", body)
}

const USERS: &str = "/apis/twofactor.fountainai.io/v1alpha1";

fn name(number: usize) -> String {
    format!("user-{number:06}")
}

struct BareClient {
    client: Client,
    url: String,
    token: String,
}

impl BareClient {
    fn new(server: &ApiServer) -> Self {
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
    async fn each(self: &Arc<Self>, count: usize, call: impl Fn(usize) -> Call) {
        let calls: VecDeque<Call> = (0..count).map(call).collect();
        let calls = Arc::new(Mutex::new(calls));
        let mut workers = JoinSet::new();
        for _ in 0..CONCURRENCY {
            let (api, calls) = (self.clone(), calls.clone());
            workers.spawn(async move {
                loop {
                    let next = calls.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((method, path, content_type, body)) = next else { return };
                    let request = api
                        .client
                        .request(method, format!("{}{path}", api.url))
                        .bearer_auth(&api.token);
                    let reply = request
                        .header("content-type", content_type)
                        .body(body.to_string())
                        .send()
                        .await
                        .expect("an answer");
                    assert!(reply.status().is_success(), "{path}: {}", reply.status());
                }
            });
        }
        workers.join_all().await;
    }
}
