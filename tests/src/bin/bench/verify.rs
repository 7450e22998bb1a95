//! Measures accepted verifies and delivered codes, each of another user, with the audit log on, in
//! comparison with the same script in the same Redis.

use std::fs;
use std::path::Path;
use std::time::Duration;

use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::sidecar::SidecarProcess;

use crate::load::Asked;
use crate::realm::{self, Realm};
use crate::receiver::Receiver;
use crate::usage::processor_time;
use crate::{Figures, floor, load, show};

const CONNECTIONS: [usize; 3] = [1, 16, 64];
/// Number of users; each asks once at each number of connections.
const USERS: usize = 50_000;

/// Verifies codes of authenticators.
pub(crate) async fn verify() {
    println!("\nAn accepted verify, each of another of {USERS} users, with the audit log:\n");
    verify_with(false).await;
}

/// The same, with TLS between sidecar and Redis. The script alone is called without.
pub(crate) async fn verify_with_tls() {
    println!("\nAn accepted verify, each of another of {USERS} users, over TLS to Redis:\n");
    verify_with(true).await;
}

async fn verify_with(tls: bool) {
    print_head();
    for connections in CONNECTIONS {
        let redis = RedisServer::start().await;
        let policy = RealmRecord::default();
        let realm = Realm::publish(&redis, &policy, USERS, DeliveryMethod::App).await;
        let credentials = realm.credentials(&redis);
        if tls {
            let (port, authority) = redis.open_tls_port().await;
            let url = format!("rediss://127.0.0.1:{port}");
            for (name, text) in [("redis-url", url), ("redis-ca", authority)] {
                fs::write(credentials.path().join(name), text).expect("to write credentials");
            }
        }
        let sidecar = serve(credentials.path()).await;
        measure(
            &sidecar,
            &redis,
            connections,
            || realm.verifies(0..USERS),
            async || {
                realm.prepare(&redis, floor::USERS + 2).await;
                floor::run(&redis, &realm.verify_arguments(), "accepted", connections).await
            },
        )
        .await;
    }
}

/// Generates codes and sends them to a webhook.
pub(crate) async fn generate() {
    println!("\nA generated code that a webhook takes, each for another of {USERS} users:\n");
    print_head();
    for connections in CONNECTIONS {
        let (redis, receiver) = (RedisServer::start().await, Receiver::start().await);
        let policy = realm::with_webhook(&receiver.url());
        let realm = Realm::publish(&redis, &policy, USERS, DeliveryMethod::Webhook).await;
        let sidecar = serve(realm.credentials(&redis).path()).await;
        measure(
            &sidecar,
            &redis,
            connections,
            || realm.generates(),
            async || {
                realm.prepare(&redis, floor::USERS + 2).await;
                realm.wait_for_step().await;
                floor::run(&redis, &realm.issue_arguments(&policy), "issued", connections).await
            },
        )
        .await;
    }
}

/// Starts a sidecar that logs by default.
pub(crate) async fn serve(credentials: &Path) -> SidecarProcess {
    let path = credentials.to_str().expect("a path in UTF-8");
    SidecarProcess::builder().args(["serve", "--credentials", path]).start().await
}

async fn measure(
    sidecar: &SidecarProcess,
    redis: &RedisServer,
    connections: usize,
    requests: impl FnOnce() -> Vec<Asked>,
    floor: impl AsyncFnOnce() -> Figures,
) {
    let http =
        load::repeat(sidecar.api().base_url(), &load::HEALTH, connections, Duration::from_secs(1))
            .await;
    let requests = requests();
    let before = spent(sidecar, redis).await;
    let ours = load::each(sidecar.api().base_url(), &requests, connections).await;
    let after = spent(sidecar, redis).await;
    let each = |what: usize| (after[what] - before[what]) / count(ours.count);
    let floor = floor().await;
    println!(
        "{connections:>11} | {} | {} | {:>11.2}  {:>4.1} | {:>6.1} us {:>6.1} us {:>6.1} us | {:>8.0}/s",
        shown(&ours),
        shown(&floor),
        ours.per_second / floor.per_second,
        ours.p99.as_secs_f64() / floor.p99.as_secs_f64(),
        each(0),
        each(1),
        each(2),
        http.per_second,
    );
}

fn print_head() {
    println!(
        "connections |      sidecar: rate   p50       p99 |   the script: rate   p50       p99 | ratio: rate   p99 | time: sidecar     Redis  scripts | HTTP alone"
    );
}

fn shown(figures: &Figures) -> String {
    format!("{:>12.0}/s  {:>8}  {:>8}", figures.per_second, show(figures.median), show(figures.p99))
}

/// Processor time of the sidecar and of Redis, and the part of the latter in scripts, so far, in
/// microseconds.
async fn spent(sidecar: &SidecarProcess, redis: &RedisServer) -> [f64; 3] {
    let [sidecar, server] = [sidecar.process().id(), redis.process().id()].map(processor_time);
    [sidecar, server, floor::script_time(redis).await].map(|time| time.as_secs_f64() * 1e6)
}

#[expect(clippy::cast_precision_loss, reason = "a number of requests")]
fn count(requests: usize) -> f64 {
    requests as f64
}
