//! Writes what the dashboards show of a system with requests and an outage of Redis, to be drawn:
//!
//! ```sh
//! TWOFACTOR_PICTURES=FILE cargo test -p twofactor-tests --test suite monitoring::pictures
//! tests/tools/draw-dashboards charts/fountainai-2fa/files/dashboards FILE docs/operations/pictures
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use twofactor_store::clock::Clock;

use super::dashboards::{dashboards, filled, queries};
use super::observed::Observed;
use crate::support::cluster::code_of;

/// Duration of the requests before, during and after the outage.
const PARTS: [Duration; 3] =
    [Duration::from_secs(100), Duration::from_secs(20), Duration::from_secs(100)];

fn now() -> u64 {
    Clock::System.now().seconds()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_for_the_pictures_are_written_if_asked_for() {
    let Some(file) = std::env::var_os("TWOFACTOR_PICTURES").map(PathBuf::from) else { return };
    let system = Observed::start().await;
    let (start, seed) = (now(), system.cluster.seed("carol"));
    for (part, duration) in PARTS.into_iter().enumerate() {
        match part {
            1 => drop(system.cluster.redis.kill()),
            2 => system.cluster.redis.restart().await,
            _ => {}
        }
        let end = Instant::now() + duration;
        let mut round = 0;
        while Instant::now() < end {
            let _ = system.kms.api.verify("carol", &code_of(&seed)).await;
            let _ = system.shop.api.verify("dora", "000000").await;
            let _ = system.shop.api.verify("unknown", "000000").await;
            let _ = system.kms.api.generate(&format!("alice-{}", round % 5)).await;
            round += 1;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    let mut answers = Map::new();
    for (_, dashboard) in dashboards() {
        for (_, expression) in queries(&dashboard) {
            let query = filled(&expression, ".*");
            let found = system.prometheus.range(&query, start, now()).await.unwrap();
            answers.insert(expression, Value::from(found));
        }
    }
    fs::write(file, Value::from(answers).to_string()).unwrap();
}
