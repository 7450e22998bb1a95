//! Checks the metrics with Prometheus' `promtool`, and that they count requests and round trips.

use std::fs;

use twofactor_core::user::DeliveryMethod::App;
use twofactor_tests::process::run;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::{scratch, tools};

use crate::support::cluster::{Cluster, app_user};
use crate::support::sidecar::{Served, metrics, shown};
use crate::support::world::World;

/// Fails if `promtool` reports anything.
fn check(metrics: &str) {
    let folder = scratch::folder("metrics");
    let path = folder.path().join("metrics");
    fs::write(&path, metrics).unwrap();
    let promtool = tools::find("promtool");
    let script = "\"$0\" check metrics < \"$1\" 2>&1";
    let said = run("sh", &["-c", script, promtool.to_str().unwrap(), path.to_str().unwrap()]);
    assert_eq!(said.trim(), "", "{metrics}");
}

/// The value of a line of metrics, or 0 without that line.
fn value(metrics: &str, line: &str) -> u64 {
    let found = metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_default()
}

#[tokio::test]
async fn promtool_finds_no_fault_in_the_sidecars_metrics_and_they_count_round_trips() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let person = world.person("carol", App).await;
    let sidecar = Served::start(&world, "kms").await;
    let api = sidecar.api();
    assert_eq!(api.verify("carol", "000000").await.status, 401);
    let round_trips = |metrics: &str| {
        ["verify", "issue", "record", "absence"].map(|operation| {
            value(
                metrics,
                &format!("twofactor_store_round_trips_total{{operation=\"{operation}\"}}"),
            )
        })
    };
    let before = round_trips(&metrics(&sidecar).await);
    assert_eq!(before, [1, 0, 1, 0]);
    // A decision about a known user takes one round trip.
    for number in 0..3 {
        let _ = api.verify("carol", &format!("00000{number}")).await;
    }
    assert_eq!(round_trips(&metrics(&sidecar).await), [4, 0, 1, 0]);
    // A changed record costs three round trips: the undecided attempt, the read, and the second
    // attempt.
    let mut record = person.record.clone();
    record.definition.issuer = Some("Another".to_owned());
    world.publish(record, false).await;
    let _ = api.verify("carol", &shown(&person)).await;
    let now = metrics(&sidecar).await;
    assert_eq!(
        (round_trips(&now), value(&now, "twofactor_stale_records_total")),
        ([6, 0, 2, 0], 1)
    );
    assert_eq!(api.verify("unknown", "000000").await.status, 404);
    let _ = api.raw("POST", "/auth/verify", &[], "{").await;
    let _ = api.get("/nowhere/alice").await;
    let _ = api.generate("carol").await;
    let now = metrics(&sidecar).await;
    check(&now);
    assert!(!now.contains("carol") && !now.contains("nowhere"), "{now}");
    for name in [
        "twofactor_http_request_duration_seconds_bucket{route=\"/auth/verify\",le=\"0.0001\"}",
        "twofactor_http_request_duration_seconds_bucket{route=\"/auth/verify\",le=\"10\"}",
        "twofactor_store_operation_duration_seconds_count{operation=\"verify\"}",
        "twofactor_http_requests_total{route=\"/auth/verify\",status=\"422\"} 1",
    ] {
        assert!(now.contains(name), "{name} in {now}");
    }
}

#[tokio::test]
async fn promtool_finds_no_fault_in_the_operators_metrics() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    check(&operator.admin().get("/metrics").await.body);
}
