//! Measures the operator with very many users: time until all are ready in comparison with a bare
//! client, memory, what a new leader reads, with Redis and without, and the time for a refill of a
//! flushed Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::process::Signal;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::api::{self, BareClient, CONCURRENCY, Call, create_user};
use crate::sample::Sample;
use crate::usage::{peak_mebibytes, resident_mebibytes};

/// Number of users without an argument, all in one namespace.
pub(crate) const USERS: usize = 50_000;
/// Number of users of a namespace if there are more than [`USERS`].
const OF_NAMESPACE: usize = 100;
/// Maximum number of users for which the bare client writes. The time for all is reckoned from it.
const BARE_USERS: usize = 10_000;
/// Number of users of a leader that starts without Redis, and how long that lasts.
const PARKED_USERS: usize = 3_000;
const AWAY: Duration = Duration::from_mins(5);
const BOUND: Duration = Duration::from_hours(1);

/// Measures and prints.
pub(crate) async fn run(users: usize) {
    let namespaces = if users > USERS { users / OF_NAMESPACE } else { 1 };
    let (server, client) = api::start().await;
    let redis = RedisServer::start().await;
    println!("\n{users} users in {namespaces} namespaces");
    client.each(namespaces, |number| create_namespace(&namespace(number))).await;
    client.each(users, |number| create_user(&namespace(number % namespaces), number)).await;
    let sample = Sample::take(&server, &client).await;
    let bare = bare_client(&client, &sample, users).await;

    let began = Instant::now();
    let first = Leader::start(&server, &redis).await;
    first.wait_reconciled(users).await;
    let took = began.elapsed();
    println!(
        "all ready after {:.1} s; the bare client, reckoned from {} users: {:.1} s; ratio (goal: 1.3) {:.2}",
        took.as_secs_f64(),
        users.min(BARE_USERS),
        bare.as_secs_f64(),
        took.as_secs_f64() / bare.as_secs_f64(),
    );
    first.print_memory("the controller");
    first.0.process().signal(Signal::Term);
    let _ = first.0.process().wait_exit(Duration::from_secs(30)).await;

    let (began, before) = (Instant::now(), secrets_read(&server));
    let second = Leader::start(&server, &redis).await;
    second.wait_reconciled(users).await;
    println!(
        "a new leader has reconciled all after {:.1} s, and has read {} Secrets by name (goal: only its own)",
        began.elapsed().as_secs_f64(),
        secrets_read(&server) - before,
    );
    second.print_memory("the new leader");

    let refills = "twofactor_refills_total{result=\"success\"}";
    let before = second.metric(refills).await;
    redis.flush_all().await;
    let began = Instant::now();
    eventually(BOUND, "the refill", async || second.metric(refills).await >= before + namespaces)
        .await;
    println!("refilled after a flush in {:.2} s", began.elapsed().as_secs_f64());
    second.print_memory("the leader after the refill");
}

fn namespace(number: usize) -> String {
    format!("people-{number}")
}

fn create_namespace(name: &str) -> Call {
    let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    (Method::POST, "/api/v1/namespaces".to_owned(), "application/json", body)
}

/// Makes the operator's two writes for each user with a bare client, and returns the time for all.
async fn bare_client(client: &Arc<BareClient>, sample: &Sample, users: usize) -> Duration {
    let count = users.min(BARE_USERS);
    client.each(1, |_| create_namespace("bare")).await;
    client.each(count, |number| create_user("bare", number)).await;
    let began = Instant::now();
    let both =
        |number| vec![sample.create_secret("bare", number), sample.patch_status("bare", number)];
    client.in_turn(count, both).await;
    #[expect(clippy::cast_precision_loss, reason = "numbers of users")]
    let factor = users as f64 / count as f64;
    let took = began.elapsed().mul_f64(factor);
    // The operator must not find these users.
    client.each(count, |number| delete_user("bare", number)).await;
    took
}

fn delete_user(namespace: &str, number: usize) -> Call {
    let (_, path, content_type, _) = create_user(namespace, number);
    (Method::DELETE, format!("{path}/{}", api::name(number)), content_type, json!({}))
}

/// Counts what a leader that starts without Redis reads of [`PARKED_USERS`] users, for [`AWAY`].
pub(crate) async fn run_without_redis() {
    let (server, client) = api::start().await;
    let redis = RedisServer::start().await;
    client.each(1, |number| create_namespace(&namespace(number))).await;
    client.each(PARKED_USERS, |number| create_user(&namespace(0), number)).await;
    let first = Leader::start(&server, &redis).await;
    first.wait_reconciled(PARKED_USERS).await;
    first.0.process().signal(Signal::Term);
    let _ = first.0.process().wait_exit(Duration::from_secs(30)).await;
    redis.kill();

    let (began, before) = (Instant::now(), secrets_read(&server));
    let second = Leader::start(&server, &redis).await;
    eventually(BOUND, "five minutes to pass", async || began.elapsed() > AWAY).await;
    println!(
        "\n{PARKED_USERS} users, and a leader that starts while Redis is away for {AWAY:?}: {} parked, {} Secrets read by name (goal: under 10 a second)",
        second.metric("twofactor_users_parked").await,
        secrets_read(&server) - before,
    );
    redis.restart().await;
    let answered = Instant::now();
    let parked = "twofactor_users_parked";
    eventually(BOUND, "all users to be reconciled", async || second.metric(parked).await == 0)
        .await;
    println!("none is parked {:.1} s after Redis answers", answered.elapsed().as_secs_f64());
}

/// The number of Secrets that the API server has been asked for by name.
fn secrets_read(server: &ApiServer) -> usize {
    let metrics = server.kubectl(&["get", "--raw", "/metrics"]);
    let lines = metrics.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"secrets\"")
            && line.contains("verb=\"GET\"")
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

struct Leader(OperatorProcess);

impl Leader {
    async fn start(server: &ApiServer, redis: &RedisServer) -> Self {
        let operator = OperatorProcess::builder(&api::kubeconfig(server))
            .args(["--operator-namespace", "home", "--log", "warn"])
            .args(["--concurrency", &CONCURRENCY.to_string()])
            .env("REDIS_URL", &redis.url())
            .start()
            .await;
        Self(operator)
    }

    async fn metric(&self, name: &str) -> usize {
        self.0.process().assert_running();
        let metrics = self.0.admin().get("/metrics").await.body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    }

    async fn wait_reconciled(&self, users: usize) {
        let reconciled =
            "controller_runtime_reconcile_total{controller=\"twofactoruser\",result=\"success\"}";
        eventually(BOUND, "all users to be reconciled", async || {
            let count = self.metric(reconciled).await;
            if count >= users { Ok(()) } else { Err(format!("{count} are reconciled")) }
        })
        .await;
        let ready = "twofactor_users{ready=\"true\"}";
        let bound = Duration::from_secs(30);
        eventually(bound, "all users to be ready", async || self.metric(ready).await == users)
            .await;
    }

    fn print_memory(&self, whose: &str) {
        let pid = self.0.process().id();
        let (now, peak) = (resident_mebibytes(pid), peak_mebibytes(pid));
        println!("memory of {whose} (goal: 300 MiB): {now} MiB now, {peak} MiB at most");
    }
}
