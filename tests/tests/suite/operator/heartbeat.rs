//! Tests what sidecars do while no operator runs.

use std::time::Duration;

use redis::AsyncCommands;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user};

/// Lifetime of the heartbeat in Redis, in milliseconds.
const LIFETIME: i64 = 30 * 24 * 3_600_000;

/// Makes the heartbeat two minutes old.
async fn age_heartbeat(cluster: &Cluster) {
    let mut connection = cluster.redis.connect().await;
    let keys: Vec<String> = connection.keys("*:heartbeat").await.unwrap();
    assert_eq!(keys.len(), 1, "all realms share it: {keys:?}");
    let _: () = connection.pexpire(&keys[0], LIFETIME - 120_000).await.unwrap();
}

/// The age of the heartbeat that a sidecar shows, in seconds.
async fn wait_for_age(sidecar: &Sidecar, is_right: impl Fn(f64) -> bool) {
    eventually(BOUND, "the age of the heartbeat", async || {
        let metrics = sidecar.admin().get("/metrics").await.body;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("twofactor_operator_heartbeat_age_seconds "));
        let age: f64 = line.ok_or("unknown")?.parse().map_err(|_| "not a number")?;
        if is_right(age) { Ok(()) } else { Err("another age") }
    })
    .await;
}

#[tokio::test]
async fn sidecars_answer_503_without_an_operator_only_if_the_realm_says_so() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    let seed = cluster.seed("carol");
    sidecar.wait_accepted("carol", &seed).await;
    wait_for_age(&sidecar, |age| age < 60.0).await;
    drop(operator);
    age_heartbeat(&cluster).await;
    wait_for_age(&sidecar, |age| age >= 120.0).await;
    let goes_on = sidecar.verify_seed("carol", &seed).await;
    assert!([200, 400].contains(&goes_on.status), "{}", goes_on.body);

    let operator = cluster.operator().start().await;
    cluster.apply(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata: {name: default}\n\
         spec: {maxStalenessSeconds: 60}\n",
    );
    eventually(BOUND, "the realm to be published", async || {
        operator.process().output().contains("policy of a realm published")
    })
    .await;
    drop(operator);
    age_heartbeat(&cluster).await;
    let status = async |expected: &[u16]| {
        let bound = BOUND + Duration::from_secs(30);
        eventually(bound, format_args!("an answer of {expected:?}"), async || {
            let reply = sidecar.verify_seed("carol", &seed).await;
            if expected.contains(&reply.status) { Ok(()) } else { Err(reply.body) }
        })
        .await;
    };
    status(&[503]).await;
    assert!(sidecar.log().contains("no operator has worked for longer than the realm allows"));
    let _operator = cluster.operator().start().await;
    status(&[200, 400]).await;
}

#[tokio::test]
async fn requests_wait_while_the_heartbeat_is_read_for_the_first_time() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.apply(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata: {name: default}\n\
         spec: {maxStalenessSeconds: 60}\n",
    );
    eventually(BOUND, "the realm to be published", async || {
        operator.process().output().contains("policy of a realm published")
    })
    .await;
    drop(cluster.sidecar().await);
    for _ in 0..3 {
        // All requests wait for the realm, and then find no heartbeat at the same time.
        cluster.redis.pause().await;
        let sidecar = cluster.sidecar().await;
        let asked = (0..40).map(|_| sidecar.api.verify("unknown", "000000"));
        let resume = async { cluster.redis.resume() };
        let (replies, ()) = tokio::join!(futures_util::future::join_all(asked), resume);
        let log = sidecar.log();
        // On a busy machine, Redis may have been paused for too long.
        let waited = !log.contains("failed to get a decision from the store");
        for reply in replies {
            assert!(reply.status == 404 || !waited, "{}\n{log}", reply.body);
        }
    }
}
