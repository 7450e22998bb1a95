//! Tests that a Secret without a living owner is adopted if it proves itself, and else refused.

use data_encoding::BASE64;
use serde_json::{Value, json};
use twofactor_tests::wait::eventually;

use super::PROOF;
use crate::support::cluster::{BOUND, Cluster, app_user, user};

const OTHER_SEED: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

#[tokio::test]
async fn a_secret_that_velero_restores_is_adopted_with_its_seed_and_that_is_reported() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let saved = cluster.saved_user("carol").await;
    let seed = cluster.seed("carol");
    cluster.lose("carol");
    cluster.wait_for_no_user_keys().await;

    cluster.restore(&saved);
    cluster.apply(&app_user("carol"));
    cluster.wait_adopted("carol", &seed).await;
    let event = cluster.wait_event("carol", "SecretAdopted").await;
    assert_eq!(event["type"], "Normal");
    let log = operator.process().output();
    assert!(log.contains("secret without an owner adopted with its seed"), "{log}");
    assert!(!log.contains(&seed) && !log.contains(&cluster.proof("carol").unwrap()));
    cluster.sidecar().await.wait_accepted("carol", &seed).await;

    // The status says so as long as the seed is the same.
    drop(operator);
    let _operator = cluster.operator().start().await;
    cluster.apply(&user("carol", "deliveryMethod: app\n  issuer: Another"));
    cluster.wait_adopted("carol", &seed).await;
    let _ = cluster.kubectl(&["annotate", "tfu", "carol", "twofactor.fountainai.io/rotate=1"]);
    eventually(BOUND, "the seed to be a new one", async || {
        let (_, reason, _) = cluster.condition("carol", "SecretReady")?;
        (reason == "Available" && cluster.seed("carol") != seed).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_recreated_user_adopts_the_secret_of_the_deleted_one_if_it_is_still_there() {
    // Without a garbage collector the old Secret stays, as with `--cascade=orphan`.
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let _ = cluster.saved_user("carol").await;
    let seed = cluster.seed("carol");
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.verify_seed("carol", &seed).await.status, 200);
    let _ = cluster.kubectl(&["delete", "tfu", "carol"]);
    cluster.wait_for_no_user_keys().await;
    assert_ne!(sidecar.verify_seed("carol", &seed).await.status, 200, "no code is used twice");
    cluster.apply(&app_user("carol"));
    cluster.wait_adopted("carol", &seed).await;
    sidecar.wait_accepted("carol", &seed).await;
}

#[tokio::test]
async fn a_secret_restored_after_its_user_is_adopted_when_it_comes() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let saved = cluster.saved_user("carol").await;
    let seed = cluster.seed("carol");
    drop(operator);
    // The record is lost with the Secret, and only the status says that there was a seed.
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp"]);
    cluster.redis.flush_all().await;
    let _operator = cluster.operator().start().await;
    let _ = cluster.wait_not_ready("carol", "SecretLost").await;
    assert!(cluster.get("secret", "carol-totp").is_none(), "no new seed");
    cluster.restore(&saved);
    cluster.wait_adopted("carol", &seed).await;
}

/// A change of a saved Secret.
type Edit<'a> = Box<dyn Fn(&mut Value) + 'a>;

/// Changes a value of a saved Secret.
fn edit(secret: &mut Value, key: &str, value: &str) {
    secret["data"][key] = BASE64.encode(value.as_bytes()).into();
}

#[tokio::test]
async fn a_secret_that_does_not_prove_itself_is_refused_with_the_reason_and_stays_as_it_is() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let of_dora = cluster.saved_user("dora").await;
    let dora = cluster.get("tfu", "dora").unwrap();
    let set =
        |secret: &mut Value, value: &str| secret["metadata"]["annotations"][PROOF] = value.into();
    let proof_of_dora = of_dora["metadata"]["annotations"][PROOF].as_str().unwrap();
    let cases: Vec<(&str, &str, Edit<'_>)> = vec![
        (
            "forged",
            "another namespace or user",
            Box::new(|it| {
                let proof = it["metadata"]["annotations"][PROOF].as_str().unwrap();
                let (known, digest) = proof.rsplit_once(':').unwrap();
                let forged = format!("{known}:{}", "0".repeat(digest.len()));
                set(it, &forged);
            }),
        ),
        ("of-another-user", "another namespace or user", Box::new(|it| set(it, proof_of_dora))),
        (
            "all-of-another-user",
            "another namespace or user",
            Box::new(|it| {
                it["data"] = of_dora["data"].clone();
                set(it, proof_of_dora);
            }),
        ),
        ("edited-seed", "edited", Box::new(|it| edit(it, "secret", OTHER_SEED))),
        ("edited-username", "edited", Box::new(|it| edit(it, "username", "dora"))),
        (
            "no-proof",
            "missing or damaged",
            Box::new(|it| it["metadata"]["annotations"] = json!({})),
        ),
        ("large", "missing or damaged", Box::new(|it| set(it, &"x".repeat(250_000)))),
        (
            "other-key",
            "another master key",
            Box::new(|it| {
                let proof = it["metadata"]["annotations"][PROOF].as_str().unwrap().to_owned();
                let parts: Vec<&str> = proof.split(':').collect();
                set(it, &format!("1:{}:{}", "0".repeat(16), parts[2]));
            }),
        ),
        ("other-type", "not Opaque", Box::new(|it| it["type"] = "example.org/seed".into())),
    ];
    for (name, part, change) in &cases {
        let mut saved = cluster.saved_user(name).await;
        cluster.lose(name);
        change(&mut saved);
        cluster.restore(&saved);
        let secret = format!("{name}-totp");
        let before = cluster.get("secret", &secret).unwrap();
        cluster.apply(&app_user(name));
        let message = cluster.wait_not_ready(name, "SecretNotProven").await;
        assert!(message.contains(part) && message.contains(&secret), "{name}: {message}");
        assert!(!message.contains("xxx"), "{message}");
        assert_eq!(cluster.get("secret", &secret).unwrap(), before, "{name}");
    }

    // The best proof is worth nothing while another user owns the Secret.
    let mut saved = cluster.saved_user("claimed").await;
    cluster.lose("claimed");
    saved["metadata"]["ownerReferences"] = json!([{
        "apiVersion": dora["apiVersion"],
        "kind": dora["kind"],
        "name": "dora",
        "uid": dora["metadata"]["uid"],
        "controller": true,
    }]);
    cluster.restore(&saved);
    cluster.apply(&app_user("claimed"));
    let message = cluster.wait_not_ready("claimed", "SecretNotOurs").await;
    assert!(message.contains("claimed-totp"), "{message}");
    cluster.wait_ready("dora").await;

    // A refused user is not served, and another Secret puts it right.
    let sidecar = cluster.sidecar().await;
    let reply = sidecar.verify_seed("edited-seed", OTHER_SEED).await;
    assert!([401, 404].contains(&reply.status), "{}", reply.body);
    let mut right = cluster.saved_secret("other-key");
    let _ = cluster.kubectl(&["delete", "secret", "other-key-totp"]);
    right["metadata"]["name"] = "old-seed".into();
    right["metadata"]["labels"] = json!({ "twofactor.fountainai.io/import": "true" });
    cluster.restore(&right);
    let seed = String::from_utf8(cluster.secret("old-seed", "secret").unwrap()).unwrap();
    cluster.apply(&user("other-key", "deliveryMethod: app\n  secretRef: {name: old-seed}"));
    cluster.wait_ready("other-key").await;
    assert_eq!(cluster.seed("other-key"), seed);
    // The import may end then.
    cluster.apply(&user("other-key", "deliveryMethod: app"));
    cluster.wait_ready("other-key").await;
    assert_eq!(cluster.seed("other-key"), seed);
}

#[tokio::test]
async fn a_secret_copied_to_another_namespace_is_refused_there() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let mut saved = cluster.saved_user("carol").await;
    drop(operator);
    let other = cluster.another_namespace("moved");
    saved["metadata"]["namespace"] = other.as_str().into();
    cluster.apply_anywhere(&saved.to_string());
    let carol =
        app_user("carol").replace("name: carol", &format!("name: carol\n  namespace: {other}"));
    cluster.apply_anywhere(&carol);
    let _operator = cluster.operator().args(["--namespace", &other]).start().await;
    let path =
        format!("/apis/twofactor.fountainai.io/v1alpha1/namespaces/{other}/twofactorusers/carol");
    eventually(BOUND, "the copy to be refused", async || {
        let conditions = cluster.server.read(&path)?["status"]["conditions"].clone();
        let conditions = conditions.as_array()?.clone();
        let reason = |it: &&Value| it["reason"] == "SecretNotProven";
        conditions.iter().find(reason).map(drop)
    })
    .await;
    cluster.wait_ready("carol").await;
}

#[tokio::test]
async fn an_immutable_secret_that_proves_itself_is_adopted_as_it_is() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let mut saved = cluster.saved_user("carol").await;
    let seed = cluster.seed("carol");
    cluster.lose("carol");
    saved["immutable"] = true.into();
    cluster.restore(&saved);
    cluster.apply(&app_user("carol"));
    cluster.wait_adopted("carol", &seed).await;
    // A change of it is refused, and reported.
    cluster.apply(&user("carol", "deliveryMethod: app\n  issuer: Another"));
    let message = cluster.wait_not_ready("carol", "SecretRefused").await;
    assert!(message.contains("carol-totp") && message.contains("422"), "{message}");
}

#[tokio::test]
async fn a_secret_of_an_earlier_version_gets_a_proof_and_an_edited_one_a_new_proof() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let _ = cluster.saved_user("carol").await;
    let proof = cluster.proof("carol").unwrap();
    let remove = format!("{PROOF}-");
    for while_it_runs in [true, false] {
        if !while_it_runs {
            operator.process().kill();
        }
        let _ = cluster.kubectl(&["annotate", "secret", "carol-totp", &remove]);
        let _again = if while_it_runs { None } else { Some(cluster.operator().start().await) };
        eventually(BOUND, "the proof", async || cluster.proof("carol")).await;
        assert_eq!(cluster.proof("carol").unwrap(), proof);
    }
    let _operator = cluster.operator().start().await;
    let patch = format!(r#"{{"stringData":{{"secret":"{OTHER_SEED}"}}}}"#);
    let _ = cluster.kubectl(&["patch", "secret", "carol-totp", "-p", &patch]);
    let event = cluster.wait_event("carol", "SecretEdited").await;
    assert_eq!(event["type"], "Warning");
    assert_ne!(cluster.proof("carol").unwrap(), proof);
    assert_eq!(cluster.seed("carol"), OTHER_SEED, "the namespace's editors choose its seeds");
}

#[tokio::test]
async fn a_proof_of_the_previous_master_key_is_accepted_and_replaced() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let saved = cluster.saved_user("carol").await;
    let _ = cluster.saved_user("dora").await;
    let (seed, old) = (cluster.seed("carol"), cluster.master_key());
    let proof_of_dora = cluster.proof("dora");
    cluster.lose("carol");
    drop(operator);
    let new = BASE64.encode(&[42; 32]);
    cluster.restore_master_key(&json!({ "master-key": new, "previous-master-key": old }));
    let _operator = cluster.operator().start().await;
    cluster.restore(&saved);
    cluster.apply(&app_user("carol"));
    cluster.wait_adopted("carol", &seed).await;
    let proof = cluster.proof("carol").unwrap();
    assert_ne!(saved["metadata"]["annotations"][PROOF], proof);
    // Others are written when they are read next, which a change of theirs makes sooner.
    cluster.apply(&user("dora", "deliveryMethod: app\n  issuer: Another"));
    eventually(BOUND, "another proof", async || {
        cluster.proof("dora").is_some_and(|proof| Some(&proof) != proof_of_dora.as_ref())
    })
    .await;
}

#[tokio::test]
async fn while_new_seeds_are_held_users_wait_for_their_secrets_in_any_order() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let saved = cluster.saved_user("carol").await;
    let seed = cluster.seed("carol");
    cluster.lose("carol");
    cluster.wait_for_no_user_keys().await;
    drop(operator);
    let operator = cluster.operator().args(["--hold-new-seeds"]).start().await;
    // A tool applies the users before the Secrets are restored.
    cluster.apply(&[app_user("carol"), app_user("dora")].concat());
    for user in ["carol", "dora"] {
        let message = cluster.wait_not_ready(user, "NewSeedsHeld").await;
        assert!(message.contains(&format!("{user}-totp")), "{message}");
        assert!(cluster.get("secret", &format!("{user}-totp")).is_none());
    }
    cluster.restore(&saved);
    cluster.wait_adopted("carol", &seed).await;
    drop(operator);
    let _operator = cluster.operator().start().await;
    cluster.wait_ready("dora").await;
}
