//! Measures what the refresh of many sidecars at rest costs Redis. Each stand-in has a connection
//! of its own and reads the realm as a sidecar does.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep_until};
use twofactor_core::realm::RealmRecord;
use twofactor_core::seal::BEGINNING_BYTES;
use twofactor_core::user::DeliveryMethod;
use twofactor_store::RealmRead;
use twofactor_tests::redis::RedisServer;

use crate::realm::Realm;
use crate::usage::processor_time;

const SIDECARS: u32 = 10_000;
/// Interval of a sidecar without requests, and of one with requests.
const INTERVALS: [(&str, Duration); 2] =
    [("at rest", Duration::from_secs(15)), ("with requests", Duration::from_secs(1))];
const DURATION: Duration = Duration::from_secs(30);

/// Measures and prints.
pub(crate) async fn run() {
    let callers = (0..250).map(|number| format!("{}-{number}", "namespace".repeat(6)));
    let policy = RealmRecord { callers: Some(callers.collect()), ..RealmRecord::default() };
    println!(
        "\nRefresh of {SIDECARS} sidecars for {DURATION:?} (goals at rest: 5 % of a core, 5 MB/s):\n"
    );
    println!("sidecars      | processor of Redis | from and to Redis");
    for (name, interval) in INTERVALS {
        let redis = RedisServer::builder().args(["--maxclients", "20000"]).start().await;
        let realm = Realm::publish(&redis, &policy, 1, DeliveryMethod::App).await;
        let mut sidecars = JoinSet::new();
        let began = Instant::now() + Duration::from_secs(2);
        for number in 0..SIDECARS {
            let store = realm.decisions(&redis);
            let phase = interval * number / SIDECARS;
            let first = store.realm(None).await.expect("the realm");
            let RealmRead::Changed(sealed) = first else { panic!("no realm") };
            sidecars.spawn(async move {
                let mut ticks = interval_at(began + phase, interval);
                loop {
                    let _ = ticks.tick().await;
                    let read = store.realm(Some(&sealed[..BEGINNING_BYTES])).await;
                    assert_eq!(read.expect("the realm"), RealmRead::Unchanged);
                }
            });
        }
        sleep_until(began + interval).await;
        let before = (processor_time(redis.process().id()), bytes(&redis).await, Instant::now());
        sleep_until(before.2 + DURATION).await;
        let took = before.2.elapsed().as_secs_f64();
        let spent = processor_time(redis.process().id()).as_secs_f64() - before.0.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a number of bytes")]
        let rate = (bytes(&redis).await - before.1) as f64 / took / 1e6;
        let core = spent / took * 100.0;
        println!("{name:<13} | {core:>8.2} % of a core | {rate:>10.3} MB/s");
        sidecars.shutdown().await;
    }
}

/// Bytes that Redis has received and sent so far.
async fn bytes(redis: &RedisServer) -> u64 {
    let statistics: String = redis.ask(&["INFO", "stats"]).await;
    ["total_net_input_bytes:", "total_net_output_bytes:"]
        .map(|name| {
            let line = statistics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse::<u64>().ok()).expect("a number of bytes")
        })
        .iter()
        .sum()
}
