//! Crashes the operator after each step of a reconcile, and checks that a user never gets a second
//! seed and is never served with a seed that the Secret does not hold.

use std::time::Duration;

use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user, user};

/// The steps of `twofactor_operator::failpoint` in the reconcile of a new user, and in that of a
/// rotated one.
const NEW_USER: [&str; 6] =
    ["started", "fetched", "secret-created", "predecessor-removed", "published", "status-written"];
const ROTATED_USER: [&str; 5] =
    ["started", "fetched", "secret-updated", "published", "status-written"];

/// Starts an operator that crashes at a step.
async fn die_at(cluster: &Cluster, step: &str) {
    let operator = cluster.operator().env("TWOFACTOR_CRASH_AT", step).launch();
    let status = operator.process().wait_exit(Duration::from_secs(30)).await;
    assert!(!status.success(), "{step}: {}", operator.process().output());
}

#[tokio::test]
async fn a_new_user_has_one_seed_after_a_crash_at_any_step() {
    // Each in a cluster of its own and all at once, because a code is accepted only a minute after
    // some of these crashes.
    futures_util::future::join_all(NEW_USER.map(new_user_after)).await;
}

async fn new_user_after(step: &str) {
    let cluster = Cluster::start().await;
    let name = format!("new-{step}");
    cluster.apply(&app_user(&name));
    die_at(&cluster, step).await;
    // The seed that the administrator may have read before the crash.
    let early = cluster.secret(&format!("{name}-totp"), "secret");
    let _operator = cluster.operator().start().await;
    cluster.wait_ready(&name).await;
    let seed = cluster.seed(&name);
    if let Some(early) = early {
        assert_eq!(seed.as_bytes(), early, "{step}: a second seed");
    }
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted(&name, &seed).await;
}

#[tokio::test]
async fn a_rotation_is_finished_after_a_crash_at_any_step() {
    let cluster = Cluster::start().await;
    for step in ROTATED_USER {
        let name = format!("rotated-{step}");
        let operator = cluster.operator().start().await;
        cluster.apply(&app_user(&name));
        cluster.wait_ready(&name).await;
        let old = cluster.seed(&name);
        let sidecar = cluster.sidecar().await;
        operator.process().kill();
        let _ = cluster.kubectl(&["annotate", "tfu", &name, "twofactor.fountainai.io/rotate=now"]);
        die_at(&cluster, step).await;
        let early = cluster.seed(&name);
        let _operator = cluster.operator().start().await;
        let new = eventually(BOUND, "the rotation", async || {
            Some(cluster.seed(&name)).filter(|seed| *seed != old)
        })
        .await;
        if early != old {
            assert_eq!(new, early, "{step}: a third seed");
        }
        // The earlier status also says that the user is ready.
        eventually(BOUND, "the rotation in the status", async || {
            cluster.get("tfu", &name).is_some_and(|user| user["status"]["rotated"] == "now")
        })
        .await;
        sidecar.wait_accepted(&name, &new).await;
        assert_eq!(sidecar.verify_seed(&name, &old).await.status, 401, "{step}");
        let _ = cluster.kubectl(&["delete", "tfu", &name, "--wait=false"]);
    }
}

#[tokio::test]
async fn a_user_deleted_while_no_operator_runs_leaves_no_key() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(
        &[app_user("carol"), app_user("dora"), user("alice", "email: a@example.org")].concat(),
    );
    for name in ["carol", "dora", "alice"] {
        cluster.wait_ready(name).await;
    }
    operator.process().kill();
    let _ = cluster.kubectl(&["delete", "tfu", "carol", "alice"]);
    let before = cluster.user_keys().await.len();
    let _operator = cluster.operator().start().await;
    eventually(BOUND, "the sweep", async || cluster.user_keys().await.len() * 3 == before).await;
    assert_eq!(
        cluster.sidecar().await.verify_seed("dora", &cluster.seed("dora")).await.status,
        200
    );
}

#[tokio::test]
async fn a_secret_deleted_after_a_crash_is_restored_without_a_status() {
    let cluster = Cluster::start().await;
    cluster.apply(&app_user("carol"));
    die_at(&cluster, "published").await;
    let seed = cluster.seed("carol");
    assert_eq!(cluster.get("tfu", "carol").unwrap()["status"], serde_json::Value::Null);
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp"]);
    let _operator = cluster.operator().start().await;
    cluster.wait_ready("carol").await;
    assert_eq!(cluster.seed("carol"), seed, "a second seed");
}
