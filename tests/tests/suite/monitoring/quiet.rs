//! Uses a healthy system as people do, and shows that no alert fires in an hour of it. The suite
//! uses it for some seconds, and plays what Prometheus recorded for an hour. For a real hour:
//!
//! ```sh
//! export TWOFACTOR_QUIET_SECONDS=3600
//! cargo test -p twofactor-tests --test suite -- --nocapture monitoring::quiet
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use twofactor_core::seed::Seed;
use twofactor_core::totp::{Totp, TotpParameters};
use twofactor_store::clock::Clock;
use twofactor_tests::http::Reply;
use twofactor_tests::prometheus::Target;

use super::alarms::{Alarms, now};
use super::observed::{Observed, flushing_at_once};
use super::replay::Snapshot;
use super::rules::{alerts, rules};
use crate::support::cluster::{app_user, user};

/// Every so many verifies the code is wrong.
const MISTAKES: usize = 20;
/// Every so many verifies another user is sent a code, so that the limits of deliveries fit.
const DELIVERIES: usize = 80;
/// Time without an hour to spare. The alerts without a delay can fire in it.
const SECONDS: u64 = 5;
/// Pause between two verifies.
const PAUSE: Duration = Duration::from_millis(100);
/// Time in which a user is verified once, longer than a code is shown.
const TURN: Duration = Duration::from_secs(32);

/// Lets people verify for a while, each once in [`TURN`], with these pauses between them, and
/// returns what Prometheus has seen of it each second.
pub(super) async fn use_normally(
    system: &Observed,
    time: Duration,
    pause: Duration,
) -> Vec<Snapshot> {
    let (people, readers) = (count(TURN, pause).min(count(time, pause)), time.as_secs() / 60 + 1);
    let mut manifest = String::new();
    for number in 0..readers {
        let address = format!("email: reader-{number}@example.org");
        manifest += &user(&format!("reader-{number}"), &address);
    }
    system.cluster.apply(&manifest);
    system.cluster.wait_ready(&format!("reader-{}", readers - 1)).await;
    let seeds = create_people(system, people).await;
    system.alarms.wait_silent().await;
    let metrics: Vec<_> =
        rules().iter().map(|it| it["expr"].as_str().unwrap().to_owned()).collect();
    let metrics = metrics.join(" ");
    let (mut snapshots, mut tick) = (Vec::new(), tokio::time::interval(pause));
    let (begun, mut number, mut statuses) = (Instant::now(), 0, BTreeMap::<u16, usize>::new());
    let mut count_status = |answer: Reply| *statuses.entry(answer.status).or_default() += 1;
    while begun.elapsed() < time {
        let _ = tick.tick().await;
        let sidecar = if number % 2 == 0 { &system.kms } else { &system.shop };
        let person = format!("person-{}", number % people);
        let code = shown(&seeds[number % people]);
        count_status(sidecar.api.verify(&person, &code).await);
        if number % MISTAKES == MISTAKES / 2 {
            count_status(sidecar.api.verify(&person, "0000000").await);
        }
        if number % DELIVERIES == DELIVERIES / 4 {
            let reader =
                format!("reader-{}", number / DELIVERIES % count(time, Duration::from_mins(1)));
            count_status(sidecar.api.generate(&reader).await);
        }
        if begun.elapsed() >= Duration::from_secs(snapshots.len() as u64) && snapshots.len() < 60 {
            snapshots.push(system.alarms.snapshot(&metrics).await);
        }
        number += 1;
    }
    println!("{number} verifies of {people} people in {:?}: {statuses:?}", begun.elapsed());
    // A machine that other tests use may be too slow for one of them.
    assert!(statuses[&200] * 10 > number * 9, "{statuses:?}");
    snapshots
}

/// Creates the users `person-0` and so on with apps, and returns their seeds.
pub(super) async fn create_people(system: &Observed, count: usize) -> Vec<String> {
    let manifest: String = (0..count).map(|number| app_user(&format!("person-{number}"))).collect();
    system.cluster.apply(&manifest);
    let mut seeds = Vec::new();
    for number in 0..count {
        system.cluster.wait_ready(&format!("person-{number}")).await;
        seeds.push(system.cluster.seed(&format!("person-{number}")));
    }
    seeds
}

/// The code that an app shows.
pub(super) fn shown(seed: &str) -> String {
    let totp = Totp::new(&Seed::from_base32(seed).unwrap(), TotpParameters::default());
    let code = totp.code_of(TotpParameters::default().step_at(Clock::System.now()));
    code.expose_secret().to_owned()
}

fn count(time: Duration, each: Duration) -> usize {
    usize::try_from(time.as_millis() / each.as_millis()).unwrap() + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_alert_fires_while_a_healthy_system_is_used_under_the_rules_as_they_are() {
    let seconds = std::env::var("TWOFACTOR_QUIET_SECONDS")
        .map_or(SECONDS, |seconds| seconds.parse().expect("a number of seconds"));
    let start = async |targets: &[Target]| Alarms::with_rules(targets, &alerts()).await;
    let system = Observed::start_with(flushing_at_once(), start).await;
    let begun = now();
    let _ = use_normally(&system, Duration::from_secs(seconds), PAUSE).await;
    let seen = format!("count by (alertname, alertstate) (max_over_time(ALERTS[{seconds}s]))");
    let found = system.alarms.prometheus.query_at(&seen, now()).await.unwrap();
    for rate in ["twofactor_decisions_total", "twofactor_deliveries_total"] {
        let total = format!("sum by (operation, outcome, channel) ({rate})");
        println!("{rate}: {:?}", system.alarms.prometheus.query_at(&total, now()).await.unwrap());
    }
    println!("{:.0} s; alerts, also those that waited: {found:?}", now() - begun);
    let is_firing = |it: &&serde_json::Value| it["metric"]["alertstate"] == "firing";
    assert_eq!(found.iter().find(is_firing), None);
}
