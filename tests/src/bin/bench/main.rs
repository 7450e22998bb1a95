//! Runs the benchmarks (`make bench`): verify and generate in comparison with Redis alone on the
//! same scripts, and the operator with many users in comparison with a bare client that makes the
//! same writes.
//!
//! Uses release binaries, a real Redis and a real API server on one machine in one run, and prints
//! tables. `verify`, `tls`, `generate`, `uniform`, `fleet`, `footprint`, `operator`, `realms`,
//! `large` or `away` as an argument chooses one part; `large 100000` has that many users. Absolute
//! figures depend on the machine; the ratios should not.

mod api;
mod fleet;
mod floor;
mod footprint;
mod large;
mod load;
mod operator;
mod processors;
mod realm;
mod realms;
mod receiver;
mod sample;
mod uniform;
mod usage;
mod verify;

use std::time::Duration;

/// Figures of a measurement.
struct Figures {
    count: usize,
    per_second: f64,
    median: Duration,
    p99: Duration,
}

impl Figures {
    fn new(mut latencies: Vec<Duration>, took: Duration) -> Self {
        latencies.sort_unstable();
        let at = |hundredth: usize| latencies[(latencies.len() - 1) * hundredth / 100];
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        let per_second = latencies.len() as f64 / took.as_secs_f64();
        Self { count: latencies.len(), per_second, median: at(50), p99: at(99) }
    }
}

const USERS: [usize; 2] = [1_000, 10_000];

#[tokio::main]
async fn main() {
    let part = std::env::args().nth(1);
    let is_wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if is_wanted("verify") {
        verify::verify().await;
    }
    if is_wanted("tls") {
        verify::verify_with_tls().await;
    }
    if is_wanted("generate") {
        verify::generate().await;
    }
    if is_wanted("uniform") {
        uniform::run().await;
    }
    if is_wanted("fleet") {
        fleet::run().await;
    }
    if is_wanted("footprint") {
        footprint::run().await;
    }
    if is_wanted("operator") {
        operator::print_head();
        for users in USERS {
            operator::run(users, false).await;
        }
        println!("\nWith the API server and etcd on a half of the processors for themselves:\n");
        operator::run(USERS[1], true).await;
    }
    if is_wanted("realms") {
        realms::run().await;
    }
    if is_wanted("large") {
        let users = std::env::args().nth(2).and_then(|users| users.parse().ok());
        large::run(users.unwrap_or(large::USERS)).await;
    }
    if is_wanted("away") {
        large::run_without_redis().await;
    }
}

fn show(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1000.0)
}
