//! Measures the operator with many users in comparison with a bare client that makes the same
//! writes.
//!
//! Prints the time until all users are ready and its ratio to the bare client's, the operator's
//! memory, and the time for a refill of a flushed Redis.

use std::time::{Duration, Instant};

use redis::AsyncCommands;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::api::{self, CONCURRENCY, create_user};
use crate::processors::Apart;
use crate::sample::Sample;
use crate::usage::{peak_mebibytes, processor_time, resident_mebibytes};

const BOUND: Duration = Duration::from_mins(10);

/// Runs the benchmark with this many users, with processors of its own for the API server or not.
pub(crate) async fn run(users: usize, apart: bool) {
    let (server, api) = api::start().await;
    let _apart = apart.then(|| Apart::start(&server));
    let redis = RedisServer::start().await;
    let namespaces = ["bare-by-kind", "bare", "people"];
    for namespace in namespaces {
        let _ = server.kubectl(&["create", "namespace", namespace]);
    }

    let sample = Sample::take(&server, &api).await;
    for namespace in namespaces {
        api.each(users, move |number| create_user(namespace, number)).await;
    }
    let spent = || {
        [server.apiserver().id(), i32::try_from(std::process::id()).unwrap_or_default()]
            .map(processor_time)
    };
    let began = Instant::now();
    api.each(users, |number| sample.create_secret("bare-by-kind", number)).await;
    api.each(users, |number| sample.patch_status("bare-by-kind", number)).await;
    let by_kind = began.elapsed();
    let start = spent();
    let began = Instant::now();
    let both =
        |number| vec![sample.create_secret("bare", number), sample.patch_status("bare", number)];
    api.in_turn(users, both).await;
    let bare = began.elapsed();

    let (after_bare, before) = (spent(), api::requests(&server));
    let began = Instant::now();
    let operator = OperatorProcess::builder(&api::kubeconfig(&server))
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
    eventually(BOUND, "the first user to be looked at", async || count(looked).await > 0).await;
    let listed = began.elapsed();
    eventually(BOUND, "all users to be looked at", async || count(looked).await >= users).await;
    let took = began.elapsed();
    let ready = async || count("twofactor_users{ready=\"true\"}").await == users;
    eventually(Duration::from_secs(5), "all users to be ready", ready).await;
    let pid = operator.process().id();
    let (time, after) = (processor_time(pid), spent());
    let requests = api::requests(&server);

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
    #[expect(clippy::cast_precision_loss, reason = "numbers of users and requests")]
    let per_user = |number: f64| number / users as f64;
    let micros =
        |to: Duration, from: Duration| per_user(to.as_secs_f64() - from.as_secs_f64()) * 1e6;
    println!(
        "        a bare client that first makes all Secrets and then all statuses: {:.1} s",
        by_kind.as_secs_f64()
    );
    println!(
        "        processor time a user: bare client {:.0} us, the API server for it {:.0} us",
        micros(after_bare[1], start[1]),
        micros(after_bare[0], start[0]),
    );
    println!(
        "        processor time a user: operator {:.0} us, the API server for it {:.0} us",
        micros(time, Duration::ZERO),
        micros(after[0], after_bare[0]),
    );
    println!("        the first of them is reconciled after {:.1} s", listed.as_secs_f64());
    for (name, count) in requests {
        let count = count - before.get(&name).copied().unwrap_or_default();
        if per_user(count) >= 0.005 {
            println!("        {name}: {:.2} a user", per_user(count));
        }
    }
}

/// Prints the table's header.
pub(crate) fn print_head() {
    println!(
        "\nTime until all existing users are ready after the operator starts. For comparison, a bare client makes"
    );
    println!(
        "the same two writes, one user after the other, {CONCURRENCY} at a time. Then Redis is flushed: time until the realm is complete again.\n"
    );
    println!("  users | all ready   | bare client   | ratio | memory now    | peak      | refill");
}
