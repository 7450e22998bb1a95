//! Measures what thousands of realms cost: restarts of Redis with and without a loss, deletions
//! while the operator is busy, and what it asks Redis for.
//!
//! A realm is usable when its node is a checked one and its services have their login.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, Pipeline};
use reqwest::Method;
use serde_json::json;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::{AppendFsync, RedisServer};
use twofactor_tests::wait::{eventually, eventually_every};

use crate::api::{self, CONCURRENCY, Call, USERS, create_user, name};
use crate::usage::resident_mebibytes;

const REALMS: usize = 2_000;
const USERS_OF_A_REALM: usize = 10;
const BOUND: Duration = Duration::from_mins(10);
/// Duration for which the operator is observed at rest.
const REST: Duration = Duration::from_secs(20);
const PROBE: Duration = Duration::from_millis(20);

/// Runs the benchmark.
pub(crate) async fn run() {
    let (server, api) = api::start().await;
    let redis = RedisServer::builder().append_only(AppendFsync::EverySec).start().await;
    api.each(REALMS, create_namespace).await;
    api.each(REALMS * USERS_OF_A_REALM, |number| {
        create_user(&realm(number / USERS_OF_A_REALM), number % USERS_OF_A_REALM)
    })
    .await;
    api.each(REALMS, create_pod).await;
    println!("\n{REALMS} realms with {USERS_OF_A_REALM} users each.\n");

    let began = Instant::now();
    let operator = OperatorProcess::builder(&api::kubeconfig(&server))
        .args(["--operator-namespace", "home", "--log", "warn"])
        .args(["--concurrency", &CONCURRENCY.to_string()])
        .env("REDIS_URL", &redis.url())
        .start()
        .await;
    let metric = async |name: &str| {
        operator.process().assert_running();
        let metrics = operator.admin().get("/metrics").await.body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(0_usize)
    };
    let users = REALMS * USERS_OF_A_REALM;
    eventually(BOUND, "all users to be ready", async || {
        let ready = metric("twofactor_users{ready=\"true\"}").await;
        if ready == users { Ok(()) } else { Err(format!("{ready} are ready")) }
    })
    .await;
    line("all users ready, from nothing", began.elapsed());
    let pid = operator.process().id();
    println!("{:<58} {:>6} MiB", "memory of the operator", resident_mebibytes(pid));
    let realms = Realms::find(&redis).await;
    realms.wait_usable(&redis).await;

    at_rest(&redis).await;
    let api = &api;
    let delete = async |realm: usize, user: usize| {
        let path =
            format!("{USERS}/namespaces/{}/twofactorusers/{}", self::realm(realm), name(user));
        api.each(1, |_| (Method::DELETE, path.clone(), "application/json", json!({}))).await;
    };
    let deletion = async |user: usize| {
        let mut longest = Duration::ZERO;
        for number in 0..10 {
            let realm = number * (REALMS / 10) + user;
            let uid = server.read(&namespace_path(realm)).expect("a namespace");
            let uid = uid["metadata"]["uid"].as_str().expect("a UID").to_owned();
            let before = realms.users_of(&redis, &uid).await;
            let began = Instant::now();
            delete(realm, user).await;
            eventually_every(PROBE, BOUND, "a deletion", async || {
                realms.users_of(&redis, &uid).await < before
            })
            .await;
            longest = longest.max(began.elapsed());
        }
        longest
    };
    line("a deletion at rest (longest of 10)", deletion(1).await);

    let before = redis.commands().await;
    println!("{:<58} {:>10}", "SCANs so far: one search after the start", of(&before, "scan"));
    redis.kill();
    let killed = Instant::now();
    redis.restart().await;
    let answered = Instant::now();
    realms.wait_usable(&redis).await;
    line("restart without a loss: usable after Redis answers", answered.elapsed());
    line("    after it was killed", killed.elapsed());
    println!(
        "{:<58} {:>10}",
        "    realms that were not published again",
        metric("twofactor_realms_kept_total").await
    );
    let (scans, all) = (redis.commands().await, metric("twofactor_realms_kept_total").await);
    println!("{:<58} {:>10}", "    SCANs", of(&scans, "scan"));
    assert_eq!((of(&scans, "scan"), all), (0, REALMS), "each realm proves that it lost nothing");

    // The last writes of every realm are lost: the file is what it was before them.
    let reconciled = metric(RECONCILED).await;
    redis.keep_append_only_files();
    api.each(REALMS, change_user).await;
    eventually(BOUND, "a change in every realm", async || {
        metric(RECONCILED).await >= reconciled + REALMS
    })
    .await;
    redis.kill();
    redis.put_append_only_files_back();
    redis.restart().await;
    let answered = Instant::now();
    let busy = async { (realms.wait_usable(&redis).await, answered.elapsed()).1 };
    let deleting = async { deletion(2).await };
    let (usable, longest) = tokio::join!(busy, deleting);
    line("restart with a loss in every realm: all put right", usable);
    line("    a deletion meanwhile (longest of 10)", longest);
    println!("{:<58} {:>10}", "    SCANs", of(&redis.commands().await, "scan"));

    redis.flush_all().await;
    let flushed = Instant::now();
    realms.wait_usable(&redis).await;
    line("everything lost: all realms complete", flushed.elapsed());
    println!("{:<58} {:>6} MiB", "memory of the operator", resident_mebibytes(pid));
}

const RECONCILED: &str =
    "controller_runtime_reconcile_total{controller=\"twofactoruser\",result=\"success\"}";

fn line(what: &str, took: Duration) {
    println!("{what:<58} {:>8.2} s", took.as_secs_f64());
}

fn of(commands: &HashMap<String, u64>, name: &str) -> u64 {
    commands.get(name).copied().unwrap_or_default()
}

/// Prints what a pass of the monitor asks Redis for, and everything else in the same time.
async fn at_rest(redis: &RedisServer) {
    // The comparison of every realm after the start is over when nothing reads records any more.
    eventually_every(Duration::from_secs(2), BOUND, "rest", async || {
        let before = of(&redis.commands().await, "get");
        let began = Instant::now();
        eventually(BOUND, "a moment", async || began.elapsed() > Duration::from_secs(1)).await;
        of(&redis.commands().await, "get") == before
    })
    .await;
    let (before, began) = (redis.commands().await, Instant::now());
    eventually(BOUND, "a while", async || began.elapsed() > REST).await;
    let after = redis.commands().await;
    let calls = |name: &str| of(&after, name) - of(&before, name);
    let passes = calls("dbsize");
    println!("\nAt rest, in {passes} passes of a second:");
    let mut names: Vec<&String> = after.keys().filter(|name| calls(name) > 0).collect();
    names.sort_by_key(|name| std::cmp::Reverse(calls(name)));
    for name in names {
        println!("    {name:<20} {:>8} calls, {:>6} a pass", calls(name), calls(name) / passes);
    }
    println!();
}

/// The keys of the realms in Redis.
struct Realms {
    metas: Vec<String>,
}

impl Realms {
    async fn find(redis: &RedisServer) -> Self {
        let metas = redis.connect().await.keys("*:meta").await.expect("the realms' keys");
        Self { metas }
    }

    /// Waits until every realm is usable.
    async fn wait_usable(&self, redis: &RedisServer) {
        let identity = identity(redis).await;
        let mut connection = redis.connect().await;
        eventually_every(PROBE, BOUND, "all realms to be usable", async || {
            let mut pipeline = Pipeline::new();
            for meta in &self.metas {
                pipeline.hexists(meta, format!("guard:{identity}")).hexists(meta, "complete");
            }
            let answers: Vec<bool> =
                pipeline.query_async(&mut connection).await.map_err(|error| error.to_string())?;
            let usable = answers.chunks(2).filter(|pair| pair.iter().all(|field| *field)).count();
            let logins: Vec<String> = redis::cmd("ACL")
                .arg("USERS")
                .query_async(&mut connection)
                .await
                .map_err(|error| error.to_string())?;
            let logins = logins.iter().filter(|name| name.starts_with("2fa1:")).count();
            if usable == self.metas.len() && logins >= self.metas.len() {
                Ok(())
            } else {
                Err(format!("{usable} realms, {logins} logins"))
            }
        })
        .await;
    }

    /// The number of users that a realm has in Redis.
    async fn users_of(&self, redis: &RedisServer, uid: &str) -> usize {
        let meta = self.metas.iter().find(|meta| meta.contains(uid)).expect("the realm's key");
        let set = meta.replace(":meta", ":users");
        let mut connection: MultiplexedConnection = redis.connect().await;
        connection.scard(set).await.expect("the realm's set")
    }
}

async fn identity(redis: &RedisServer) -> String {
    let information: String = redis.ask(&["INFO"]).await;
    let field = |name: &str| {
        let value = information.lines().find_map(|line| line.strip_prefix(name));
        value.expect("a field").trim().to_owned()
    };
    format!("{}.{}", field("run_id:"), field("master_replid:"))
}

fn realm(number: usize) -> String {
    format!("realm-{number:04}")
}

fn namespace_path(number: usize) -> String {
    format!("/api/v1/namespaces/{}", realm(number))
}

fn create_namespace(number: usize) -> Call {
    let body = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": realm(number) },
    });
    (Method::POST, "/api/v1/namespaces".to_owned(), "application/json", body)
}

/// A pod that asks for the credentials of its own realm.
fn create_pod(number: usize) -> Call {
    let body = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "asks",
            "labels": { "twofactor.fountainai.io/inject": "true" },
            "annotations": { "twofactor.fountainai.io/injected": env!("CARGO_PKG_VERSION") },
        },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    let path = format!("/api/v1/namespaces/{}/pods", realm(number));
    (Method::POST, path, "application/json", body)
}

fn change_user(number: usize) -> Call {
    let path = format!("{USERS}/namespaces/{}/twofactorusers/{}", realm(number), name(0));
    let body = json!({ "spec": { "email": format!("changed-{number}@example.org") } });
    (Method::PATCH, path, "application/merge-patch+json", body)
}
