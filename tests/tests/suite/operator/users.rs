//! Tests a user from `kubectl apply` to a verified code, and later edits and deletion.

use std::time::{Duration, Instant};

use twofactor_tests::process::{Signal, run};
use twofactor_tests::wait::eventually;
use twofactor_tests::{scratch, tools};

use crate::support::cluster::{BOUND, Cluster, app_user, code_of, user};

#[tokio::test]
async fn an_applied_user_is_ready_within_two_seconds() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("warm-up"));
    cluster.wait_ready("warm-up").await;
    cluster.apply(&app_user("carol"));
    let began = Instant::now();
    cluster.wait_ready("carol").await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn the_secret_of_a_user_has_seed_uri_qr_picture_and_owner() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let seed = cluster.seed("carol");
    let uri = String::from_utf8(cluster.secret("carol-totp", "otpauth-uri").unwrap()).unwrap();
    assert!(
        uri.starts_with("otpauth://totp/FountainAI:carol?")
            && uri.contains(&format!("secret={seed}")),
        "{uri}"
    );
    assert_eq!(cluster.secret("carol-totp", "username").unwrap(), b"carol");
    let folder = scratch::folder("qr");
    let picture = folder.path().join("qr.png");
    std::fs::write(&picture, cluster.secret("carol-totp", "qr.png").unwrap()).unwrap();
    let read = run(tools::find("zbarimg"), &["--quiet", "--raw", picture.to_str().unwrap()]);
    assert_eq!(read.trim_end(), uri);
    let secret = cluster.get("secret", "carol-totp").unwrap();
    let owner = &secret["metadata"]["ownerReferences"][0];
    assert_eq!(
        (owner["kind"].as_str(), owner["name"].as_str(), owner["controller"].as_bool()),
        (Some("TwoFactorUser"), Some("carol"), Some(true))
    );
}

#[tokio::test]
async fn a_new_users_code_is_accepted_once_and_is_in_no_log_metric_status_or_event() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let seed = cluster.seed("carol");

    // A code of another implementation is accepted at once, and once.
    let sidecar = cluster.sidecar().await;
    let code = code_of(&seed);
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 200);
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 400);
    assert_eq!(sidecar.api.verify("unknown", &code).await.status, 404);

    let log = operator.process().output();
    assert!(!log.contains(&seed) && !log.contains(&code), "{log}");
    let metrics = operator.admin().get("/metrics").await.body;
    assert!(
        metrics.contains("controller_runtime_reconcile_total{") && !metrics.contains("carol"),
        "{metrics}"
    );
    let status = cluster.get("tfu", "carol").unwrap()["status"].to_string();
    let events = cluster.kubectl(&["get", "events", "-o", "json"]);
    assert!(!status.contains(&seed) && !events.contains(&seed));
    assert!(events.contains("carol"), "{events}");
}

#[tokio::test]
async fn kubectl_shows_delivery_state_and_reason_of_a_user_as_columns() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(
        &[
            user("alice", "email: alice@example.org"),
            user("zoe", "username: Zoë\n  deliveryMethod: app\n  enabled: false"),
        ]
        .concat(),
    );
    cluster.wait_ready("alice").await;
    eventually(BOUND, "zoe to have a status", async || cluster.ready("zoe")).await;
    let table = cluster.kubectl(&["get", "tfu"]);
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["NAME", "USERNAME", "DELIVERY", "ENABLED", "READY", "REASON", "AGE"],
        "{table}"
    );
    assert_eq!(lines[1][..6], ["alice", "alice", "email", "True", "True", "Ready"], "{table}");
    assert_eq!(lines[2][..6], ["zoe", "Zoë", "app", "False", "True", "Disabled"], "{table}");
    assert_eq!(cluster.kubectl(&["get", "fountainai", "-o", "name"]).lines().count(), 2);
}

#[tokio::test]
async fn tools_that_wait_for_ready_are_content_with_a_disabled_user() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&user("zoe", "deliveryMethod: app\n  enabled: false"));
    let wait = |condition: &str| {
        cluster.kubectl(&[
            "wait",
            &format!("--for=condition={condition}"),
            "--timeout=30s",
            "tfu/zoe",
        ])
    };
    for condition in ["Ready", "Enabled=False", "Published", "SecretReady"] {
        assert_eq!(
            wait(condition).trim(),
            "twofactoruser.twofactor.fountainai.io/zoe condition met"
        );
    }
    cluster.apply(&user("zoe", "deliveryMethod: app"));
    wait("Enabled");
}

#[tokio::test]
async fn kubectl_selects_users_by_their_fields() {
    let cluster = Cluster::start().await;
    cluster.apply(
        &[
            user("alice", "email: alice@example.org"),
            user("bob", "deliveryMethod: app"),
            user("zoe", "deliveryMethod: app\n  enabled: false"),
        ]
        .concat(),
    );
    let status = r#"{"status":{"disabledByFailures":true}}"#;
    let _ = cluster.kubectl(&[
        "patch",
        "tfu",
        "bob",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    for (selector, expected) in [
        ("spec.enabled=false", "zoe"),
        ("spec.deliveryMethod=app", "bob zoe"),
        ("spec.deliveryMethod=app,spec.enabled=true", "bob"),
        ("status.disabledByFailures=true", "bob"),
    ] {
        let names = "-o=jsonpath={.items[*].metadata.name}";
        let found = cluster.kubectl(&["get", "tfu", "--field-selector", selector, names]);
        assert_eq!(found, expected, "{selector}");
    }
    // What a selector says is in logs of the API server, so nothing personal is selectable.
    let address = ["get", "tfu", "--field-selector", "spec.email=alice@example.org"];
    assert!(cluster.try_kubectl(&address).unwrap_err().contains("not supported"));
}

#[tokio::test]
async fn an_edit_takes_effect_within_two_seconds() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.api.verify("carol", "000000").await.status, 401);
    let timed = async |what: &str, expected: u16| {
        let began = Instant::now();
        eventually(BOUND, what, async || {
            let reply = sidecar.api.verify("carol", "000000").await;
            if reply.status == expected { Ok(()) } else { Err(reply.body) }
        })
        .await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "{what}: {took:?}");
    };
    cluster.apply(&user("carol", "deliveryMethod: app\n  enabled: false"));
    timed("carol to be disabled", 404).await;
    cluster.apply(&user("carol", "deliveryMethod: app\n  enabled: true"));
    timed("carol to be enabled", 401).await;
    let _ = cluster.kubectl(&["delete", "tfu", "carol", "--wait=false"]);
    timed("carol to be unknown", 404).await;
    cluster.wait_for_no_user_keys().await;
}

#[tokio::test]
async fn a_username_belongs_to_the_oldest_user_until_that_user_is_deleted() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&user("first", "username: shared\n  deliveryMethod: app"));
    cluster.wait_ready("first").await;
    // Creation times have whole seconds.
    let created = cluster.get("tfu", "first").unwrap()["metadata"]["creationTimestamp"].clone();
    eventually(BOUND, "the next second", async || {
        let _ = cluster.try_kubectl(&["delete", "configmap", "tick"]);
        let _ = cluster.kubectl(&["create", "configmap", "tick"]);
        cluster.get("configmap", "tick").unwrap()["metadata"]["creationTimestamp"] != created
    })
    .await;
    cluster.apply(&user("second", "username: shared\n  deliveryMethod: app"));
    let message = cluster.wait_not_ready("second", "Conflict").await;
    assert!(message.contains("first"), "{message}");
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.verify_seed("shared", &cluster.seed("first")).await.status, 200);
    assert_eq!(
        cluster.secret("second-totp", "secret"),
        None,
        "never served, so no seed is handed out"
    );
    let old = cluster.seed("first");
    let _ = cluster.kubectl(&["delete", "tfu", "first", "--wait=false"]);
    cluster.wait_ready("second").await;
    let new = cluster.seed("second");
    assert_ne!(old, new);
    sidecar.wait_accepted("shared", &new).await;
    assert_ne!(sidecar.verify_seed("shared", &old).await.status, 200);
}

#[tokio::test]
async fn usernames_of_all_kinds_are_matched_exactly_from_manifest_to_verify() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let names = ["Alice", " padded ", "a{b}c", "Zoë 名前", "a:b*c?[d]"];
    for (number, name) in names.iter().enumerate() {
        cluster.apply(&user(
            &format!("user{number}"),
            &format!("username: \"{name}\"\n  deliveryMethod: app"),
        ));
    }
    let sidecar = cluster.sidecar().await;
    for (number, name) in names.iter().enumerate() {
        let object = format!("user{number}");
        cluster.wait_ready(&object).await;
        assert_eq!(sidecar.verify_seed(name, &cluster.seed(&object)).await.status, 200, "{name:?}");
    }
    assert_eq!(sidecar.api.verify("alice", "000000").await.status, 404);
    let _ = cluster.kubectl(&["delete", "tfu", "--all", "--wait=false"]);
    cluster.wait_for_no_user_keys().await;
}

#[tokio::test]
async fn the_operator_exits_with_success_on_sigterm() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    operator.process().signal(Signal::Term);
    assert!(
        operator.process().wait_exit(Duration::from_secs(12)).await.success(),
        "{}",
        operator.process().output()
    );
}
