//! Tests restores beside the real garbage collector and namespace controller, which delete Secrets
//! whose owner does not exist, and in a second cluster.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user, code_of};

const GARBAGE_COLLECTOR: &str = "garbage-collector-controller";
/// The controllers that delete what belongs to something deleted.
pub(super) const CONTROLLERS: &[&str] = &[GARBAGE_COLLECTOR, "namespace-controller"];

impl Cluster {
    /// A user and their Secret with its owner, as `kubectl get --output=json` prints it.
    async fn printed_secret(&self, user: &str) -> Value {
        let mut saved = self.saved_user(user).await;
        let printed = self.get("secret", &format!("{user}-totp")).unwrap();
        saved["metadata"]["ownerReferences"] = printed["metadata"]["ownerReferences"].clone();
        saved
    }

    async fn wait_collected(&self, secret: &str) -> Duration {
        let begun = Instant::now();
        // The collector looks for new kinds of objects every 30 seconds.
        eventually(Duration::from_mins(2), format_args!("{secret} to be collected"), async || {
            self.get("secret", secret).is_none()
        })
        .await;
        begun.elapsed()
    }
}

#[tokio::test]
async fn the_garbage_collector_deletes_a_secret_of_an_old_owner_and_never_an_adopted_one() {
    let cluster = Cluster::on_own_server(&[GARBAGE_COLLECTOR]).await;
    let operator = cluster.operator().start().await;

    // With the user, the seed goes: a user who is created again gets another one.
    let printed = cluster.printed_secret("carol").await;
    let seed = cluster.seed("carol");
    let _ = cluster.kubectl(&["delete", "tfu", "carol"]);
    cluster.wait_collected("carol-totp").await;

    // A saved Secret that still names its old owner is gone before its user can be restored.
    cluster.restore(&printed);
    let took = cluster.wait_collected("carol-totp").await;
    eprintln!("a Secret of an old owner was collected after {took:?}");
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    assert_ne!(cluster.seed("carol"), seed);
    let event = cluster.wait_event("carol", "SecretCreated").await;
    assert!(event["message"].as_str().unwrap().contains("new seed"), "{event}");

    // Beside a living user it cannot even be applied.
    let refused = cluster.try_apply(&printed.to_string(), &[]).unwrap_err();
    assert!(refused.contains("Only one reference can have Controller set to true"), "{refused}");

    // A Secret that was kept without an owner is adopted, and stays.
    let kept = cluster.seed("carol");
    let _ = cluster.kubectl(&["delete", "tfu", "carol", "--cascade=orphan"]);
    eventually(BOUND, "the Secret to have no owner", async || {
        let secret = cluster.get("secret", "carol-totp")?;
        secret["metadata"]["ownerReferences"].is_null().then_some(())
    })
    .await;
    cluster.apply(&app_user("carol"));
    cluster.wait_adopted("carol", &kept).await;

    // The user waits for the Secret, and both the operator and the collector want it. Either may
    // be first; a new seed is never the result.
    let mut adopted = 0;
    for attempt in 0..5 {
        let name = format!("dora{attempt}");
        let printed = cluster.printed_secret(&name).await;
        let seed = cluster.seed(&name);
        operator_forgets(&cluster, &name).await;
        let mut stale = printed;
        stale["metadata"]["ownerReferences"][0]["uid"] =
            "11111111-2222-3333-4444-555555555555".into();
        cluster.restore(&stale);
        let found = eventually(BOUND, "the Secret to be adopted or collected", async || {
            let Some(secret) = cluster.get("secret", &format!("{name}-totp")) else {
                return Some(false);
            };
            let uid = &cluster.get("tfu", &name)?["metadata"]["uid"];
            (secret["metadata"]["ownerReferences"][0]["uid"] == *uid).then_some(true)
        })
        .await;
        if found {
            adopted += 1;
            cluster.wait_ready(&name).await;
            assert_eq!(cluster.seed(&name), seed);
        } else {
            let _ = cluster.wait_not_ready(&name, "SecretLost").await;
        }
    }
    eprintln!("of 5 Secrets of an old owner beside a waiting user, {adopted} were adopted");
    operator.process().assert_running();
    assert_eq!(cluster.seed("carol"), kept, "an adopted Secret is not collected");
}

/// Brings a user into the state in which only the status says that there was a seed.
pub(super) async fn operator_forgets(cluster: &Cluster, user: &str) {
    // The record goes first, so that the Secret is not restored from it.
    cluster.redis.flush_all().await;
    let _ = cluster.kubectl(&["delete", "secret", &format!("{user}-totp")]);
    eventually(Duration::from_mins(1), "the seed to be lost", async || {
        let lost = cluster.ready(user).is_some_and(|(_, reason, _)| reason == "SecretLost");
        if !lost && cluster.get("secret", &format!("{user}-totp")).is_some() {
            cluster.redis.flush_all().await;
            let _ = cluster.try_kubectl(&["delete", "secret", &format!("{user}-totp")]);
        }
        lost
    })
    .await;
}

#[tokio::test]
async fn a_namespace_that_is_deleted_and_restored_has_the_same_seeds_and_accepts_no_code_twice() {
    let cluster = Cluster::on_own_server(CONTROLLERS).await;
    let _operator = cluster.operator().start().await;
    let mut saved = Vec::new();
    for name in ["carol", "dora"] {
        saved.push(cluster.saved_user(name).await);
    }
    let seeds = ["carol", "dora"].map(|name| cluster.seed(name));
    let sidecar = cluster.sidecar().await;
    let realm = cluster.credentials_in(&cluster.namespace, "realm").unwrap();
    let code = code_of(&seeds[0]);
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 200);
    drop(sidecar);
    // Its pod has to go, because there is no kubelet that would end it.
    cluster.stop_asking_from(&cluster.namespace);
    let _ = cluster.server.kubectl(&["delete", "namespace", &cluster.namespace]);
    let of_realm = async || {
        let keys: Vec<String> = cluster.redis.ask(&["KEYS", &format!("*{realm}*")]).await;
        if keys.is_empty() { Ok(()) } else { Err(format!("{keys:?}")) }
    };
    eventually(BOUND, "the deleted realm to leave Redis", of_realm).await;

    // As Velero does it: the namespace, then Secrets, then the other objects.
    let _ = cluster.server.kubectl(&["create", "namespace", &cluster.namespace]);
    for secret in &saved {
        cluster.restore(secret);
    }
    cluster.apply(&[app_user("carol"), app_user("dora")].concat());
    for (name, seed) in ["carol", "dora"].iter().zip(&seeds) {
        cluster.wait_adopted(name, seed).await;
    }
    let sidecar = cluster.sidecar().await;
    assert_ne!(cluster.credentials_in(&cluster.namespace, "realm").unwrap(), realm);
    assert_ne!(sidecar.api.verify("carol", &code).await.status, 200, "the code was used");
    sidecar.wait_accepted("carol", &seeds[0]).await;
    sidecar.wait_accepted("dora", &seeds[1]).await;
}

#[tokio::test]
async fn a_second_cluster_with_the_master_key_adopts_the_secrets_of_the_first() {
    let first = Cluster::on_own_server(&[]).await;
    let operator = first.operator().start().await;
    let saved = first.saved_user("carol").await;
    let (seed, key) = (first.seed("carol"), first.master_key());
    let mut second = Cluster::on_own_server(&[GARBAGE_COLLECTOR]).await;
    second.namespace.clone_from(&first.namespace);
    let _ = second.server.try_kubectl(&["create", "namespace", &second.namespace]);

    // With a master key of its own, the second cluster says what is missing, and makes no seed.
    let other = data_encoding::BASE64.encode(&[7; 32]);
    second.restore_master_key(&json!({ "master-key": other }));
    let operator_of_second = second.operator().start().await;
    second.restore(&saved);
    second.apply(&app_user("carol"));
    let message = second.wait_not_ready("carol", "SecretNotProven").await;
    assert!(message.contains("another master key"), "{message}");
    // The lost key turns up in a backup.
    drop(operator_of_second);
    second.restore_master_key(&json!({ "master-key": other, "previous-master-key": key }));
    let _operator_of_second = second.operator().start().await;
    second.wait_adopted("carol", &seed).await;
    second.sidecar().await.wait_accepted("carol", &seed).await;
    // Each works in its own Redis, and neither disturbs the other.
    operator.process().assert_running();
    first.wait_ready("carol").await;
    assert_eq!(first.seed("carol"), seed);
}
