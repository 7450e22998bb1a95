//! Tests that one replica leads at a time, and that leadership is handed over, taken over and given
//! up in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use twofactor_operator::testing::lease::{Leadership, RedisOwner, Settings, acquire};
use twofactor_store::clock::Clock;
use twofactor_tests::apiserver::ApiServer;

use crate::support::home::{Home, client};

const NAME: &str = "twofactor-operator";

async fn candidate(client: &kube::Client, namespace: &str, identity: &str) -> Leadership {
    let settings = Settings::new(namespace, NAME, identity);
    let owner = Arc::new(RedisOwner::new(&settings.namespace, &settings.name));
    acquire(client, settings, owner, Clock::System, &CancellationToken::new()).await.unwrap()
}

/// Waits for the leadership within a bound.
async fn within(bound: u64, home: &Home, identity: &str) -> Leadership {
    let (began, bound) = (Instant::now(), Duration::from_secs(bound));
    let held =
        tokio::time::timeout(bound, candidate(&home.client, &home.namespace, identity)).await;
    held.unwrap_or_else(|_| panic!("{identity} does not lead after {:?}", began.elapsed()))
}

#[tokio::test]
async fn a_released_lease_is_taken_in_five_seconds_and_that_of_a_dead_leader_in_twenty() {
    let home = Home::new().await;
    let first = within(5, &home, "first").await;
    let second = candidate(&home.client, &home.namespace, "second");
    tokio::pin!(second);
    let waiting = tokio::time::timeout(Duration::from_secs(4), &mut second).await;
    assert!(waiting.is_err(), "two lead at the same time");
    first.release().await;
    let second =
        tokio::time::timeout(Duration::from_secs(5), second).await.expect("a hand-over in 5 s");

    // It does not release the lease, as if it had been killed.
    drop(second);
    let began = Instant::now();
    let third = within(20, &home, "third").await;
    assert!(
        began.elapsed() > Duration::from_secs(10),
        "the lease was still good: {:?}",
        began.elapsed()
    );

    // A container that is started again in the same pod.
    drop(third);
    let third = within(3, &home, "third").await;
    let lease = home.json(&["get", "lease", NAME]);
    assert_eq!(lease["spec"]["holderIdentity"], "third");
    assert_eq!(lease["spec"]["leaseTransitions"], 3, "{lease}");
    third.release().await;
    assert_eq!(home.json(&["get", "lease", NAME])["spec"]["holderIdentity"], "");
}

#[tokio::test]
async fn a_leader_keeps_an_edited_or_deleted_lease_and_notices_another_holder() {
    let home = Home::new().await;
    let held = within(5, &home, "first").await;
    let (lost, still) = (held.lost(), Duration::from_secs(7));
    tokio::pin!(lost);
    let _ = home.kubectl(&["annotate", "lease", NAME, "owner=another"]);
    let _ = home.kubectl(&["delete", "lease", NAME]);
    assert!(tokio::time::timeout(still, &mut lost).await.is_err(), "no other replica can have it");
    assert_eq!(home.json(&["get", "lease", NAME])["spec"]["holderIdentity"], "first");
    let taken = r#"{"spec":{"holderIdentity":"another"}}"#;
    let _ = home.kubectl(&["patch", "lease", NAME, "--type=merge", "-p", taken]);
    tokio::time::timeout(Duration::from_secs(7), lost).await.expect("to notice");
    held.release().await;
    assert_eq!(home.json(&["get", "lease", NAME])["spec"]["holderIdentity"], "another");
}

#[tokio::test]
async fn a_leader_without_an_api_server_gives_up_before_another_replica_can_lead() {
    let server = ApiServer::start().await;
    let client = client(&server.kubeconfig_path()).await;
    let held = candidate(&client, "default", "first").await;
    server.kill_apiserver();
    let killed = Instant::now();
    tokio::time::timeout(Duration::from_secs(12), held.lost()).await.expect("to give up in 10 s");
    assert!(
        killed.elapsed() > Duration::from_secs(5),
        "after trying again: {:?}",
        killed.elapsed()
    );
}
