//! Runs the benchmarks (`make bench`): verify and generate in comparison with Redis alone on the
//! same scripts, and the operator with many users in comparison with a bare client that makes the
//! same writes.
//!
//! Uses release binaries, a real Redis and a real API server on one machine in one run, and prints
//! tables. `verify`, `generate`, `uniform`, `footprint` or `operator` as an argument chooses one
//! part. Absolute figures depend on the machine; the ratios should not.

mod floor;
mod footprint;
mod load;
mod operator;
mod realm;
mod uniform;

use std::path::Path;
use std::time::Duration;

use twofactor_tests::mail::MailServer;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::sidecar::SidecarProcess;

use crate::realm::Realm;

const CONNECTIONS: [usize; 3] = [1, 16, 64];
const DURATION: Duration = Duration::from_secs(5);

/// Figures of a measurement.
struct Figures {
    count: usize,
    per_second: f64,
    median: Duration,
    p99: Duration,
}

const USERS: [usize; 2] = [1_000, 10_000];

#[tokio::main]
async fn main() {
    let part = std::env::args().nth(1);
    let is_wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if is_wanted("verify") {
        verify().await;
    }
    if is_wanted("generate") {
        generate().await;
    }
    if is_wanted("uniform") {
        let redis = RedisServer::start().await;
        let realm = Realm::publish(&redis).await;
        uniform::run(&realm, &redis, realm.credentials(&redis).path()).await;
    }
    if is_wanted("footprint") {
        let redis = RedisServer::start().await;
        let realm = Realm::publish(&redis).await;
        footprint::run(&realm, realm.credentials(&redis).path()).await;
    }
    if is_wanted("operator") {
        operator::print_head();
        for users in USERS {
            operator::run(users).await;
        }
    }
}

async fn verify() {
    let redis = RedisServer::start().await;
    let realm = Realm::publish(&redis).await;
    let credentials = realm.credentials(&redis);
    let sidecar = serve(credentials.path()).await;
    println!(
        "A verify that is decided (the code is used up, so nothing is counted), {DURATION:?} each.\n"
    );
    print_head();
    for connections in CONNECTIONS {
        let code = realm.use_up_the_current_code(&sidecar.api()).await;
        let ours =
            load::run(sidecar.api().base_url(), &realm::used_up(&code), connections, DURATION)
                .await;
        let code = realm.use_up_the_current_code(&sidecar.api()).await;
        let floor =
            floor::run(&redis, || realm.verify_arguments(&code), "used", connections, DURATION)
                .await;
        let http = load::run(sidecar.api().base_url(), &load::HEALTH, connections, DURATION).await;
        print(connections, &ours, &floor, &http);
    }
}

async fn generate() {
    let (redis, mail) = (RedisServer::start().await, MailServer::start().await);
    let policy = realm::with_mail(mail.port());
    let realm = Realm::publish_with(&redis, &policy).await;
    let credentials = realm.credentials(&redis);
    let sidecar = serve(credentials.path()).await;
    let first = sidecar.api().generate("alice").await;
    assert_eq!(first.status, 200, "{}", first.body);
    println!(
        "\nA generate that is decided (too soon after the last one, so nothing is sent), {DURATION:?} each.\n"
    );
    print_head();
    for connections in CONNECTIONS {
        let ours =
            load::run(sidecar.api().base_url(), &realm::too_soon(), connections, DURATION).await;
        let floor = floor::run(
            &redis,
            || realm.issue_arguments(&policy),
            "too-soon",
            connections,
            DURATION,
        )
        .await;
        let http = load::run(sidecar.api().base_url(), &load::HEALTH, connections, DURATION).await;
        print(connections, &ours, &floor, &http);
    }
}

async fn serve(credentials: &Path) -> SidecarProcess {
    let path = credentials.to_str().expect("a path in UTF-8");
    SidecarProcess::builder().args(["serve", "--log", "warn", "--credentials", path]).start().await
}

fn print_head() {
    println!(
        "connections |      sidecar: rate   p50       p99 |   the script: rate   p50       p99 | ratio: rate   p99 |   HTTP alone: rate   p50"
    );
}

fn print(connections: usize, ours: &Figures, floor: &Figures, http: &Figures) {
    println!(
        "{connections:>11} | {} | {} | {:>11.2}  {:>4.1} | {:>14.0}/s  {:>8}",
        shown(ours),
        shown(floor),
        ours.per_second / floor.per_second,
        ours.p99.as_secs_f64() / floor.p99.as_secs_f64(),
        http.per_second,
        show(http.median),
    );
}

fn shown(figures: &Figures) -> String {
    format!("{:>12.0}/s  {:>8}  {:>8}", figures.per_second, show(figures.median), show(figures.p99))
}

fn show(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1000.0)
}
