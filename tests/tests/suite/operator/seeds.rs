//! Tests that a seed is generated once, restored after a loss, replaced by an edit, and reported if
//! it is lost.

use std::time::Duration;

use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user, user};

const OTHER_SEED: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

async fn with_carol() -> (Cluster, twofactor_tests::operator::OperatorProcess, String) {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let seed = cluster.seed("carol");
    (cluster, operator, seed)
}

#[tokio::test]
async fn a_secret_deleted_by_hand_is_restored_with_the_same_seed() {
    let (cluster, _operator, seed) = with_carol().await;
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp"]);
    eventually(BOUND, "the Secret to be back", async || cluster.secret("carol-totp", "secret"))
        .await;
    assert_eq!(cluster.seed("carol"), seed);
    cluster.wait_ready("carol").await;
    assert_eq!(cluster.sidecar().await.verify_seed("carol", &seed).await.status, 200);
}

#[tokio::test]
async fn a_secret_lost_with_its_record_is_reported_until_a_rotation_is_requested() {
    let (cluster, operator, seed) = with_carol().await;
    let sidecar = cluster.sidecar().await;
    operator.process().kill();
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp"]);
    cluster.redis.flush_all().await;
    let _operator = cluster.operator().start().await;
    cluster.wait_not_ready("carol", "SecretLost").await;
    assert_eq!(cluster.secret("carol-totp", "secret"), None, "never silently a new seed");
    assert_ne!(sidecar.verify_seed("carol", &seed).await.status, 200);
    let _ = cluster.kubectl(&["annotate", "tfu", "carol", "twofactor.fountainai.io/rotate=now"]);
    cluster.wait_ready("carol").await;
    let new = cluster.seed("carol");
    assert_ne!(new, seed);
    sidecar.wait_accepted("carol", &new).await;
}

#[tokio::test]
async fn a_rotation_is_carried_out_once() {
    let (cluster, operator, seed) = with_carol().await;
    let sidecar = cluster.sidecar().await;
    let _ =
        cluster.kubectl(&["annotate", "tfu", "carol", "twofactor.fountainai.io/rotate=2026-11"]);
    let new = eventually(BOUND, "a new seed", async || {
        Some(cluster.seed("carol")).filter(|found| *found != seed)
    })
    .await;
    cluster.wait_ready("carol").await;
    sidecar.wait_accepted("carol", &new).await;
    assert_eq!(
        sidecar.verify_seed("carol", &seed).await.status,
        401,
        "the old seed is worth nothing"
    );
    operator.process().kill();
    let _operator = cluster.operator().start().await;
    cluster.apply(&user("carol", "deliveryMethod: app\n  issuer: Another"));
    cluster.wait_ready("carol").await;
    assert_eq!(cluster.seed("carol"), new, "not again after a restart or an edit");
}

#[tokio::test]
async fn a_secret_edited_by_hand_is_followed_or_refused_and_never_overwritten() {
    let (cluster, _operator, seed) = with_carol().await;
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.verify_seed("carol", &seed).await.status, 200);
    let edit = |value: &str| {
        cluster.kubectl(&[
            "patch",
            "secret",
            "carol-totp",
            "--type=merge",
            "-p",
            &format!("{{\"stringData\":{{\"secret\":\"{value}\"}}}}"),
        ])
    };
    let _ = edit("not base32 !");
    let message = cluster.wait_not_ready("carol", "SecretInvalid").await;
    assert!(
        message.contains("carol-totp")
            && message.contains("secret")
            && !message.contains("not base32 !"),
        "{message}"
    );
    assert_eq!(sidecar.verify_seed("carol", &seed).await.status, 401);
    let _ = edit(OTHER_SEED);
    cluster.wait_ready("carol").await;
    assert_eq!(cluster.seed("carol"), OTHER_SEED);
    let uri = eventually(BOUND, "the URI to follow", async || {
        let uri = String::from_utf8(cluster.secret("carol-totp", "otpauth-uri")?).unwrap();
        uri.contains(OTHER_SEED).then_some(uri)
    })
    .await;
    assert!(uri.starts_with("otpauth://totp/"));
    sidecar.wait_accepted("carol", OTHER_SEED).await;
}

#[tokio::test]
async fn a_secret_of_another_owner_is_neither_used_nor_changed() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let _ = cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "carol-totp",
        &format!("--from-literal=secret={OTHER_SEED}"),
    ]);
    let before = cluster.get("secret", "carol-totp").unwrap();
    cluster.apply(&app_user("carol"));
    let message = cluster.wait_not_ready("carol", "SecretNotOurs").await;
    assert!(message.contains("carol-totp"), "{message}");
    assert_eq!(cluster.get("secret", "carol-totp").unwrap(), before);
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    let sidecar = cluster.sidecar().await;
    let reply = sidecar.verify_seed("carol", OTHER_SEED).await;
    assert!(reply.status == 401 || reply.status == 404, "{}", reply.body);
    // After the other Secret is deleted, the user gets one.
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp"]);
    // The operator does not watch Secrets of others, but reads them periodically.
    eventually(Duration::from_secs(90), "carol to get a Secret", async || {
        cluster.ready("carol").filter(|(status, ..)| status == "True")
    })
    .await;
    assert_ne!(cluster.seed("carol"), OTHER_SEED);
}

#[tokio::test]
async fn a_recreated_user_waits_for_a_predecessors_secret_that_was_edited_and_gets_a_new_seed() {
    // Without a garbage collector the old Secret stays until the test deletes it.
    let (cluster, _operator, seed) = with_carol().await;
    let _ = cluster.kubectl(&["delete", "tfu", "carol"]);
    let edited = format!(r#"{{"stringData":{{"secret":"{OTHER_SEED}"}}}}"#);
    let _ = cluster.kubectl(&["patch", "secret", "carol-totp", "-p", &edited]);
    cluster.apply(&app_user("carol"));
    cluster.wait_not_ready("carol", "WaitingForPredecessor").await;
    assert_eq!(cluster.seed("carol"), OTHER_SEED, "the predecessor's is not touched");
    let sidecar = cluster.sidecar().await;
    assert_ne!(sidecar.verify_seed("carol", OTHER_SEED).await.status, 200, "and not used");
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp"]);
    cluster.wait_ready("carol").await;
    let new = cluster.seed("carol");
    assert!(new != seed && new != OTHER_SEED);
    sidecar.wait_accepted("carol", &new).await;
}

#[tokio::test]
async fn a_secret_whose_deletion_is_slow_keeps_its_seed() {
    let (cluster, _operator, seed) = with_carol().await;
    let finalizer = |value: &str| {
        let patch = format!("{{\"metadata\":{{\"finalizers\":{value}}}}}");
        cluster.kubectl(&["patch", "secret", "carol-totp", "--type=merge", "-p", &patch])
    };
    let _ = finalizer("[\"example.org/slow\"]");
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp", "--wait=false"]);
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.verify_seed("carol", &seed).await.status, 200);
    let _ = finalizer("null");
    eventually(BOUND, "the Secret to be another one", async || {
        let secret = cluster.get("secret", "carol-totp")?;
        secret["metadata"]["deletionTimestamp"].is_null().then_some(())
    })
    .await;
    assert_eq!(cluster.seed("carol"), seed);
    cluster.wait_ready("carol").await;
}
