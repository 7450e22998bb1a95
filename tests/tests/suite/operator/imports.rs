//! Tests seeds that an administrator imports.

use std::time::Duration;

use twofactor_tests::wait::{eventually, eventually_every};

use crate::support::cluster::{BOUND, Cluster, user};

const SEED: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
const OTHER_SEED: &str = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U";

fn importing(name: &str, secret: &str) -> String {
    user(name, &format!("deliveryMethod: app\n  secretRef:\n    name: {secret}"))
}

/// Creates a Secret that may be imported from.
fn offer(cluster: &Cluster, name: &str, value: &str) {
    let literal = format!("--from-literal=secret={value}");
    let _ = cluster.kubectl(&["create", "secret", "generic", name, &literal]);
    label(cluster, name, "true");
}

fn label(cluster: &Cluster, secret: &str, value: &str) {
    let label = format!("twofactor.fountainai.io/import={value}");
    let _ = cluster.kubectl(&["label", "--overwrite", "secret", secret, &label]);
}

/// Waits until the import of a user is refused, and returns the message.
async fn wait_refused(cluster: &Cluster, user: &str) -> String {
    eventually(BOUND, format_args!("a refusal for {user}"), async || {
        let (status, reason, message) = cluster.condition(user, "SecretReady")?;
        (status == "False" && reason == "ImportRefused").then_some(message)
    })
    .await
}

#[tokio::test]
async fn an_imported_seed_is_served_and_a_change_of_it_followed_at_once() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    offer(&cluster, "old-system", SEED);
    cluster.apply(&importing("dave", "old-system"));
    cluster.wait_ready("dave").await;
    assert_eq!(cluster.seed("dave"), SEED);
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted("dave", SEED).await;
    let _ = cluster.kubectl(&[
        "patch",
        "secret",
        "old-system",
        "--type=merge",
        "-p",
        &format!("{{\"stringData\":{{\"secret\":\"{OTHER_SEED}\"}}}}"),
    ]);
    // Within the usual bound, which is shorter than any interval between reads.
    eventually(BOUND, "the change to be followed", async || {
        if cluster.seed("dave") == OTHER_SEED { Ok(()) } else { Err("the old one is still there") }
    })
    .await;
    // The Secret is written before Redis, and the code of a new seed is of a later step.
    let (pause, bound) = (Duration::from_secs(2), Duration::from_secs(100));
    eventually_every(pause, bound, "a code of the new seed to be accepted", async || {
        let reply = sidecar.verify_seed("dave", OTHER_SEED).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    // The label can be withdrawn, and given again.
    label(&cluster, "old-system", "false");
    let _ = wait_refused(&cluster, "dave").await;
    label(&cluster, "old-system", "true");
    cluster.wait_ready("dave").await;
}

#[tokio::test]
async fn every_import_that_is_refused_is_reported_with_the_same_sentence() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let uri = format!("otpauth://totp/x?secret={SEED}&digits=8");
    for (name, value) in [
        ("nobase", "SECRET-VALUE-018!"),
        ("short", "GEZDGNBVGY3TQOJQ"),
        ("eight", &uri),
        ("migration", "otpauth-migration://offline?data=AAAA"),
    ] {
        offer(&cluster, name, value);
    }
    offer(&cluster, "without-key", SEED);
    let rename = r#"[{"op":"move","from":"/data/secret","path":"/data/other"}]"#;
    let _ = cluster.kubectl(&["patch", "secret", "without-key", "--type=json", "-p", rename]);
    offer(&cluster, "unlabelled", SEED);
    label(&cluster, "unlabelled", "false");
    offer(&cluster, "mine-totp", SEED);
    // The Secret of another user, with a label that its owner did not choose.
    cluster.apply(&crate::support::cluster::app_user("carol"));
    cluster.wait_ready("carol").await;
    label(&cluster, "carol-totp", "true");
    let names = [
        "nobase",
        "short",
        "eight",
        "migration",
        "without-key",
        "unlabelled",
        "mine-totp",
        "carol-totp",
        "nowhere",
    ];
    for secret in names {
        cluster.apply(&importing(&format!("of-{secret}"), secret));
    }
    for secret in names {
        let user = format!("of-{secret}");
        let message = wait_refused(&cluster, &user).await;
        assert_eq!(
            message.replace(secret, "X"),
            "No seed can be imported from the key secret of the Secret X: the Secret must exist in this namespace \
             with the label twofactor.fountainai.io/import: \"true\", must not be that of a user, and the key must \
             hold a seed that fits spec.totp"
        );
        assert_eq!(cluster.ready(&user).unwrap().0, "False");
        assert!(cluster.get("secret", &format!("{user}-totp")).is_none(), "{user}");
    }
    let log = operator.process().output();
    assert!(log.contains("seed not imported") && log.contains("says digits 8"), "{log}");
    assert!(!log.contains("SECRET-VALUE") && !log.contains("GEZDG"), "{log}");
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.api.verify("of-nowhere", "123456").await.status, 401);
    // After the correction, the users are served without any other change.
    offer(&cluster, "nowhere", SEED);
    cluster.wait_ready("of-nowhere").await;
    label(&cluster, "unlabelled", "true");
    cluster.wait_ready("of-unlabelled").await;
}

#[tokio::test]
async fn seeds_are_imported_in_the_forms_that_apps_export() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    // The last one is an export of Google Authenticator with the accounts `bob` and `export`.
    let forms = [
        ("bits", "X".repeat(52), format!("{}Q", "X".repeat(51))),
        ("groups", SEED.to_lowercase().replace('Q', " q"), SEED.to_owned()),
        ("uri", format!("otpauth://totp/a:b?secret={SEED}&issuer=a"), SEED.to_owned()),
        (
            "export",
            "otpauth-migration://offline?data=ChsKFGFiY2RlZmdoaWprbG1ub3BxcnN0EgNib2IKHgoUMTIzNDU2Nzg5MDEyMzQ1Njc4\
             OTASBmV4cG9ydBABGAEgAA%3D%3D"
                .to_owned(),
            SEED.to_owned(),
        ),
    ];
    for (name, value, _) in &forms {
        offer(&cluster, name, value);
        cluster.apply(&importing(name, name));
    }
    for (name, _, seed) in &forms {
        cluster.wait_ready(name).await;
        assert_eq!(cluster.seed(name), *seed, "{name}");
    }
}

#[tokio::test]
async fn a_rotation_of_an_imported_seed_is_refused_and_carried_out_once_it_is_the_operators() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    offer(&cluster, "old-system", SEED);
    cluster.apply(&importing("dave", "old-system"));
    cluster.wait_ready("dave").await;
    let _ = cluster.kubectl(&["annotate", "tfu", "dave", "twofactor.fountainai.io/rotate=1"]);
    let refused = cluster.wait_condition("dave", "SecretReady", "True", "RotationRefused").await;
    assert!(refused.contains("old-system") && refused.contains("spec.secretRef"), "{refused}");
    let user_object = cluster.get("tfu", "dave").unwrap();
    assert!(user_object["status"].get("rotated").is_none(), "{user_object}");
    assert_eq!(cluster.seed("dave"), SEED);
    cluster.wait_ready("dave").await;
    let _ = cluster.kubectl(&[
        "patch",
        "tfu",
        "dave",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/spec/secretRef"}]"#,
    ]);
    cluster.wait_condition("dave", "SecretReady", "True", "Available").await;
    eventually(BOUND, "a new seed", async || {
        if cluster.seed("dave") == SEED { Err("the imported one") } else { Ok(()) }
    })
    .await;
}
