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

use serde_json::{Map, Value, json};
use tokio::time::MissedTickBehavior;
use twofactor_store::clock::Clock;

use super::dashboards::{dashboards, filled, queries};
use super::observed::Observed;
use super::quiet::{create_people, shown};
use crate::support::cluster::app_user;

/// Duration of the requests before, during and after the outage, in seconds.
const PARTS: [u64; 3] = [2, 1, 2];
/// The same for the pictures.
const PARTS_OF_PICTURES: [u64; 3] = [100, 20, 100];
/// Interval between two verifies of a person.
const PACE: Duration = Duration::from_millis(250);
/// The same for the pictures, which show a busy service.
const PACE_OF_PICTURES: Duration = Duration::from_millis(20);
/// Time in which a person is verified once, longer than a code is shown.
const TURN: Duration = Duration::from_secs(32);
/// Every so many verifies, an attacker guesses, and a code is requested.
const OTHERS: usize = 20;

fn now() -> u64 {
    Clock::System.now().seconds()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_dashboards_show_of_an_outage_is_written_for_the_pictures() {
    let file = std::env::var_os("TWOFACTOR_PICTURES").map(PathBuf::from);
    let (parts, pace) =
        if file.is_some() { (PARTS_OF_PICTURES, PACE_OF_PICTURES) } else { (PARTS, PACE) };
    let system = Observed::start().await;
    let start = now();
    let turn = Duration::from_secs(parts.iter().sum()).min(TURN);
    let people = usize::try_from(turn.as_millis() / pace.as_millis()).unwrap();
    let seeds = create_people(&system, people).await;
    let (mut ticks, mut round) = (tokio::time::interval(pace), 0);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for (part, seconds) in parts.into_iter().enumerate() {
        match part {
            1 => drop(system.cluster.redis.kill()),
            2 => system.cluster.redis.restart().await,
            _ => {}
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let _ = ticks.tick().await;
            let person = round % people;
            let code = shown(&seeds[person]);
            let sidecar = if round % 3 == 0 { &system.shop } else { &system.kms };
            let _ = sidecar.api.verify(&format!("person-{person}"), &code).await;
            if round % OTHERS == 0 {
                others(&system, round / OTHERS).await;
            }
            round += 1;
        }
    }
    write(&system, start, file).await;
}

/// What happens beside the verifies of people: guesses of an attacker, requests of codes, new users
/// and new pods, of which some are refused.
async fn others(system: &Observed, number: usize) {
    let _ = system.shop.api.verify("dora", "000000").await;
    let _ = system.shop.api.verify("unknown", "000000").await;
    let _ = system.kms.api.generate(&format!("alice-{}", number % 5)).await;
    if number.is_multiple_of(5) {
        system.cluster.apply(&app_user(&format!("newcomer-{number}")));
        let _ = system.shop.api.raw("POST", "/auth/verify", &[], "{").await;
        let invalid = json!({ "twofactor.fountainai.io/realm": "no name of a namespace" });
        for annotations in [json!({}), json!({}), invalid] {
            system.cluster.review_annotated(&system.admission, &annotations).await.unwrap();
        }
    }
}

/// Writes what the dashboards show since `start`.
async fn write(system: &Observed, start: u64, file: Option<PathBuf>) {
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
