//! Tests seeds that an administrator imports.

use crate::support::cluster::{BOUND, Cluster, user};
use twofactor_tests::wait::eventually;

const SEED: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
const OTHER_SEED: &str = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U";

fn importing(name: &str, secret: &str) -> String {
    user(name, &format!("deliveryMethod: app\n  secretRef:\n    name: {secret}"))
}

#[tokio::test]
async fn an_imported_seed_is_served_and_a_change_of_it_followed() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let _ = cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "old-system",
        &format!("--from-literal=secret={SEED}"),
    ]);
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
    eventually(std::time::Duration::from_secs(90), "the change to be followed", async || {
        if cluster.seed("dave") == OTHER_SEED { Ok(()) } else { Err("the old one is still there") }
    })
    .await;
    sidecar.wait_accepted("dave", OTHER_SEED).await;
}

#[tokio::test]
async fn an_invalid_import_is_reported_with_its_secret_and_key() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let uri = format!("otpauth://totp/x?secret={SEED}&digits=8");
    for (name, value) in [
        ("nobase", "SECRET-VALUE-018!"),
        ("short", "GEZDGNBVGY3TQOJQ"),
        ("eight", &uri),
        ("migration", "otpauth-migration://offline?data=AAAA"),
    ] {
        let _ = cluster.kubectl(&[
            "create",
            "secret",
            "generic",
            name,
            &format!("--from-literal=secret={value}"),
        ]);
        cluster.apply(&importing(name, name));
    }
    let _ = cluster.kubectl(&["create", "secret", "generic", "keyless", "--from-literal=other=x"]);
    cluster.apply(&importing("keyless", "keyless"));
    cluster.apply(&importing("missing", "nowhere"));
    for (name, secret, sentence) in [
        ("nobase", "nobase", "is not base32"),
        ("short", "short", "has 80 bits, at least 160 are needed"),
        ("eight", "eight", "says digits 8, but the user's totp.digits is 6: set it to the same"),
        ("migration", "migration", "is not a complete export of Google Authenticator"),
        ("keyless", "keyless", "secret"),
        ("missing", "nowhere", "secret"),
    ] {
        let (status, _, message) =
            eventually(BOUND, format_args!("a condition of {name}"), async || {
                cluster.condition(name, "SecretReady").filter(|(status, ..)| status == "False")
            })
            .await;
        assert_eq!(status, "False");
        assert!(message.contains(secret) && message.contains(sentence), "{message}");
        assert!(!message.contains("SECRET-VALUE") && !message.contains("GEZDG"), "{message}");
        assert_eq!(cluster.ready(name).unwrap().0, "False");
    }
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.api.verify("missing", "123456").await.status, 401);
    // After the correction, the user is served without any other change.
    let _ = cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "nowhere",
        &format!("--from-literal=secret={SEED}"),
    ]);
    eventually(std::time::Duration::from_secs(90), "the import to be found", async || {
        cluster.ready("missing").filter(|ready| ready.0 == "True")
    })
    .await;
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
        let literal = format!("--from-literal=secret={value}");
        let _ = cluster.kubectl(&["create", "secret", "generic", name, &literal]);
        cluster.apply(&importing(name, name));
    }
    for (name, _, seed) in &forms {
        cluster.wait_ready(name).await;
        assert_eq!(cluster.seed(name), *seed, "{name}");
    }
}
