//! Tests several operators, of which one leads, as real processes that stop and crash.

use std::time::{Duration, Instant};

use twofactor_tests::operator::{OperatorBuilder, OperatorProcess};
use twofactor_tests::process::Signal;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{Cluster, app_user};

/// A replica with its own pod name.
fn replica(cluster: &Cluster, name: &str) -> OperatorBuilder {
    cluster.operator().env("POD_NAME", name)
}

async fn leads(operator: &OperatorProcess) -> bool {
    operator.admin().get("/metrics").await.body.contains("\ntwofactor_leader 1\n")
}

async fn wait_until_it_leads(operator: &OperatorProcess, bound: Duration) {
    eventually(bound, "another replica to lead", async || leads(operator).await).await;
}

#[tokio::test]
async fn another_replica_leads_5_s_after_a_shutdown_and_20_s_after_a_crash() {
    let cluster = Cluster::start().await;
    let first = replica(&cluster, "first").start().await;
    wait_until_it_leads(&first, Duration::from_secs(5)).await;
    let second = replica(&cluster, "second").start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    assert!(!leads(&second).await, "only one replica may lead");

    first.process().signal(Signal::Term);
    wait_until_it_leads(&second, Duration::from_secs(5)).await;
    assert!(first.process().wait_exit(Duration::from_secs(10)).await.success());
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;

    let third = replica(&cluster, "third").start().await;
    let _ = second.process().kill();
    let died = Instant::now();
    wait_until_it_leads(&third, Duration::from_secs(20)).await;
    assert!(
        died.elapsed() > Duration::from_secs(5),
        "no replica may lead before the Lease expires"
    );
    cluster.apply(&app_user("erin"));
    cluster.wait_ready("erin").await;
}

#[tokio::test]
async fn a_restarted_container_leads_again_at_once() {
    let cluster = Cluster::start().await;
    let before = replica(&cluster, "pod-0").start().await;
    wait_until_it_leads(&before, Duration::from_secs(5)).await;
    let _ = before.process().kill();
    let after = replica(&cluster, "pod-0").start().await;
    wait_until_it_leads(&after, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_replica_that_loses_the_lease_exits_and_logs_why() {
    let cluster = Cluster::start().await;
    let operator = replica(&cluster, "first").start().await;
    wait_until_it_leads(&operator, Duration::from_secs(5)).await;
    let thief = r#"{"spec":{"holderIdentity":"another"}}"#;
    let arguments =
        ["--namespace", &cluster.home, "patch", "lease", "twofactor-operator", "-p", thief];
    let _ = cluster.server.kubectl(&arguments);
    let status = operator.process().wait_exit(Duration::from_secs(15)).await;
    assert!(!status.success());
    let log = operator.process().output();
    assert!(log.contains("leadership lost"), "{log}");
}
