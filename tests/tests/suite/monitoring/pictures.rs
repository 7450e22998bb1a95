//! Writes what the dashboards show of a system with requests and an outage of Redis. The test runs
//! for some seconds. For the pictures of the documentation, it runs for minutes:
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

/// Duration of the requests before, during and after the outage, in seconds, and for the pictures.
const PARTS: [u64; 3] = [2, 1, 2];
const PARTS_OF_PICTURES: [u64; 3] = [100, 20, 100];
/// Interval between two rounds of requests.
const PACE: Duration = Duration::from_millis(250);

fn now() -> u64 {
    Clock::System.now().seconds()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_dashboards_show_of_an_outage_is_written_for_the_pictures() {
    let file = std::env::var_os("TWOFACTOR_PICTURES").map(PathBuf::from);
    let parts = if file.is_some() { PARTS_OF_PICTURES } else { PARTS };
    let system = Observed::start().await;
    let (start, seed) = (now(), system.cluster.seed("carol"));
    let mut pace = tokio::time::interval(PACE);
    for (part, seconds) in parts.into_iter().enumerate() {
        match part {
            1 => drop(system.cluster.redis.kill()),
            2 => system.cluster.redis.restart().await,
            _ => {}
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut round = 0;
        while Instant::now() < end {
            let _ = pace.tick().await;
            let _ = system.kms.api.verify("carol", &code_of(&seed)).await;
            let _ = system.shop.api.verify("dora", "000000").await;
            let _ = system.shop.api.verify("unknown", "000000").await;
            let _ = system.kms.api.generate(&format!("alice-{}", round % 5)).await;
            round += 1;
        }
    }
    let mut answers = Map::new();
    for (_, dashboard) in dashboards() {
        for (_, expression) in queries(&dashboard) {
            let query = filled(&expression, ".*");
            let found = system.alarms.prometheus.range(&query, start, now()).await.unwrap();
            answers.insert(expression, Value::from(found));
        }
    }
    let has_data = |answer: &&Value| answer.as_array().is_some_and(|series| !series.is_empty());
    assert!(answers.values().filter(has_data).count() > 10, "{answers:?}");
    if let Some(file) = file {
        fs::write(file, Value::from(answers).to_string()).unwrap();
    }
}
