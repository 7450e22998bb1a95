//! Tests that the administrator sees a user disabled by a hundred failures, and can enable the
//! user.

use std::time::Duration;

use redis::AsyncCommands;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user, code_of, user};

/// Timeout for the operator to notice disabled users, which it reads every 30 seconds.
const NOTICED: Duration = Duration::from_secs(75);

/// Adds one failure after ninety-nine, which would take days otherwise.
async fn fail_for_the_hundredth_time(
    cluster: &Cluster,
    sidecar: &crate::support::cluster::Sidecar,
) {
    let mut connection = cluster.redis.connect().await;
    let states: Vec<String> = connection.keys("*:state").await.unwrap();
    let [state] = &states[..] else { panic!("{states:?}") };
    let () = connection.hset(state, "failures:another", 99).await.unwrap();
    eventually(BOUND, "the hundredth failure", async || {
        let reply = sidecar.api.verify("carol", "0000000").await;
        if reply.status == 401 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    let reply = sidecar.api.verify("carol", "0000000").await;
    assert_eq!(
        (reply.status, reply.json()["type"].as_str()),
        (404, Some("urn:fountainai:2fa:unknown-user"))
    );
    assert_eq!(reply.json()["detail"], "User not found or 2FA not enabled.");
}

async fn wait_disabled(cluster: &Cluster) {
    eventually(NOTICED, "carol to be disabled", async || match cluster.ready("carol") {
        Some((status, reason, message)) if status == "True" && reason == "DisabledByFailures" => {
            assert!(message.contains("twofactor.fountainai.io/reset-failures"), "{message}");
            Ok(())
        }
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_user_disabled_by_failures_is_reported_and_enabled_once_for_each_request() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let (seed, sidecar) = (cluster.seed("carol"), cluster.sidecar().await);
    sidecar.wait_accepted("carol", &seed).await;
    fail_for_the_hundredth_time(&cluster, &sidecar).await;
    wait_disabled(&cluster).await;
    eventually(BOUND, "the metric", async || {
        let metrics = operator.admin().get("/metrics").await.body;
        let is_counted = metrics.contains("twofactor_users_disabled_by_failures 1");
        if is_counted { Ok(()) } else { Err(metrics) }
    })
    .await;

    let reset = |value: &str| {
        let annotation = format!("twofactor.fountainai.io/reset-failures={value}");
        let _ = cluster.kubectl(&["annotate", "tfu", "carol", "--overwrite", &annotation]);
    };
    reset("ticket-1");
    cluster.wait_condition("carol", "Enabled", "True", "Enabled").await;
    assert_eq!(cluster.get("tfu", "carol").unwrap()["status"]["failuresReset"], "ticket-1");
    sidecar.wait_accepted("carol", &seed).await;
    eventually(BOUND, "the Events", async || {
        let events = cluster.kubectl(&["get", "events", "-o", "json"]);
        let missing: Vec<_> = ["\"DisabledByFailures\"", "\"FailuresReset\""]
            .into_iter()
            .filter(|reason| !events.contains(reason))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not yet {missing:?}")) }
    })
    .await;

    // The same request has no effect on later failures, neither after an edit nor for the next
    // operator.
    fail_for_the_hundredth_time(&cluster, &sidecar).await;
    cluster.apply(&user("carol", "deliveryMethod: app\n  issuer: Another"));
    cluster.wait_condition("carol", "Enabled", "False", "DisabledByFailures").await;
    operator.process().kill();
    let _operator = cluster.operator().start().await;
    cluster.apply(&user("carol", "deliveryMethod: app\n  issuer: A third one"));
    cluster.wait_condition("carol", "Enabled", "False", "DisabledByFailures").await;
    assert_eq!(sidecar.api.verify("carol", &code_of(&seed)).await.status, 404);
    // A loss of Redis does not enable the user, although the request is published again.
    cluster.redis.flush_all().await;
    eventually(BOUND, "the user to be disabled in Redis again", async || {
        let mut connection = cluster.redis.connect().await;
        let states: Vec<String> = connection.keys("*:state").await.unwrap();
        let state = states.first().ok_or("no state yet")?;
        let disabled: bool = connection.hexists(state, "disabled").await.unwrap();
        if disabled { Ok(()) } else { Err("not disabled") }
    })
    .await;
    assert_eq!(sidecar.api.verify("carol", &code_of(&seed)).await.status, 404);
    reset("ticket-2");
    cluster.wait_condition("carol", "Enabled", "True", "Enabled").await;
    sidecar.wait_accepted("carol", &seed).await;
    // The text of the annotation is not stored in Redis.
    let keys: Vec<String> = cluster.redis.connect().await.keys("*:state").await.unwrap();
    let known: String = cluster.redis.connect().await.hget(&keys[0], "reset").await.unwrap();
    assert!(!known.contains("ticket") && known.len() == 32, "{known}");
}

#[tokio::test]
async fn a_user_whose_data_was_spoilt_is_named_and_verified_again() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let (seed, sidecar) = (cluster.seed("carol"), cluster.sidecar().await);
    sidecar.wait_accepted("carol", &seed).await;
    let mut connection = cluster.redis.connect().await;
    let states: Vec<String> = connection.keys("*:state").await.unwrap();
    let () = connection.set(&states[0], "spoilt").await.unwrap();
    assert_eq!(sidecar.api.verify("carol", "0000000").await.status, 503);
    eventually(NOTICED, "carol to be named", async || {
        let metrics = operator.admin().get("/metrics").await.body;
        let name = format!("user=\"carol\",user_namespace=\"{}\"}} 1", cluster.namespace);
        if metrics.contains(&name) { Ok(()) } else { Err(metrics) }
    })
    .await;
    operator.process().wait_for_line("spoilt data of a user removed from Redis", BOUND).await;
    eventually(BOUND, "a decision about carol", async || {
        let reply = sidecar.api.verify("carol", "0000000").await;
        if reply.status == 401 { Ok(()) } else { Err(reply.body) }
    })
    .await;
}
