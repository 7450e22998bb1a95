//! Tests that a withdrawal replaces the keys of a realm whatever editors of the namespace do with
//! the credentials there, and that nothing else there has an effect on other namespaces.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use twofactor_tests::faults::{Fault, FaultProxy};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::wait::{eventually, eventually_every};

use super::keys::{may_log_in, operator, realm, wait_for_keys};
use crate::support::cluster::{BOUND, Cluster, app_user};

/// A realm that allows other namespaces, with an operator whose requests are counted.
struct Allowing {
    cluster: Cluster,
    proxy: FaultProxy,
    operator: OperatorProcess,
    names: Vec<String>,
}

impl Allowing {
    async fn start(namespaces: &[&str], overlap: u32) -> Self {
        let cluster = Cluster::start().await;
        let proxy = FaultProxy::start(&cluster.server).await;
        let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
        let operator = operator(&cluster, &kubeconfig, overlap).start().await;
        let names: Vec<String> =
            namespaces.iter().map(|prefix| cluster.another_namespace(prefix)).collect();
        let started = Self { cluster, proxy, operator, names };
        started.cluster.apply(&app_user("alice"));
        started.allow(&started.names);
        started.cluster.wait_ready("alice").await;
        for name in &started.names {
            started.cluster.ask_from(name);
        }
        for name in &started.names {
            started.wait_for_generation(name, 1).await;
        }
        started
    }

    /// Lets the realm allow these namespaces and no other.
    fn allow(&self, namespaces: &[String]) {
        let names = namespaces.join(", ");
        self.cluster.apply(&realm(&format!("allowedNamespaces: {{names: [{names}]}}")));
    }

    fn secret(&self) -> String {
        format!("twofactor-{}", self.cluster.namespace)
    }

    fn in_namespace(&self, namespace: &str, args: &[&str]) -> String {
        self.cluster.server.kubectl(&[&["--namespace", namespace], args].concat())
    }

    /// The newest generation in the credentials of a namespace.
    fn generation_in(&self, namespace: &str) -> Option<u32> {
        let keys = self.cluster.credentials_in(namespace, "realm-keys")?;
        keys.lines().filter_map(|line| line.split_once(' ')?.0.parse().ok()).max()
    }

    async fn wait_for_generation(&self, namespace: &str, generation: u32) {
        let what = format!("generation {generation} in {namespace}");
        eventually(BOUND, what, async || match self.generation_in(namespace) {
            Some(found) if found == generation => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// Creates a Secret that looks like the operator's, and waits until the operator has removed
    /// it.
    async fn forge(&self, namespace: &str, keys: &str) {
        let (secret, realm) = (self.secret(), &self.cluster.namespace);
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": secret,
                "namespace": namespace,
                "labels": {
                    "app.kubernetes.io/managed-by": "twofactor-operator",
                    "twofactor.fountainai.io/credentials": realm,
                },
            },
            "stringData": { "realm-keys": keys, "caller": namespace },
        });
        self.cluster.apply_anywhere(&manifest.to_string());
        eventually(BOUND, "the forged Secret to be removed", async || {
            self.cluster.credentials_in(namespace, "caller").is_none()
        })
        .await;
    }

    /// What the operator has stored about the keys of the realm.
    fn stored(&self) -> Value {
        let uid =
            self.cluster.server.read(&format!("/api/v1/namespaces/{}", self.cluster.namespace));
        let uid = uid.unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        let path = format!("/api/v1/namespaces/{}/secrets/twofactor-keys", self.cluster.home);
        let secret = self.cluster.server.read(&path).unwrap();
        let Some(text) = secret["data"][&uid].as_str() else { return Value::Null };
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The generations that are recorded as given to namespaces.
    fn given(&self) -> BTreeMap<String, u32> {
        serde_json::from_value(self.stored()["given"].clone()).unwrap_or_default()
    }

    /// How often the Secret with all states was written.
    fn writes(&self) -> usize {
        let is_write = |request: &str| {
            request.starts_with("PATCH") && request.contains("/secrets/twofactor-keys")
        };
        self.proxy.count(is_write)
    }

    async fn wait_for_realm(&self, generation: u32) {
        wait_for_keys(&self.cluster, "Current", &format!("Generation {generation} ")).await;
    }
}

#[tokio::test]
async fn a_namespace_that_has_deleted_or_relabelled_its_credentials_is_withdrawn_with_new_keys() {
    let realm = Allowing::start(&["deletes", "relabels", "stays"], 2).await;
    let [deletes, relabels, stays] = [0, 1, 2].map(|index| realm.names[index].clone());
    let url = realm.cluster.credentials_in(&deletes, "redis-url").unwrap();
    // When the operator knows that there is no pod, it does not write the Secret again.
    realm.cluster.stop_asking_from(&deletes);
    eventually(BOUND, "the Secret to be deleted", async || {
        let delete = ["delete", "secret", &realm.secret(), "--ignore-not-found"];
        let _ = realm.in_namespace(&deletes, &delete);
        realm.generation_in(&deletes).is_none()
    })
    .await;
    realm.allow(&[relabels.clone(), stays.clone()]);
    realm.wait_for_realm(2).await;
    assert!(!may_log_in(&url).await);
    realm.wait_for_generation(&relabels, 2).await;

    let url = realm.cluster.credentials_in(&relabels, "redis-url").unwrap();
    let _ = realm.in_namespace(
        &relabels,
        &["label", "secret", &realm.secret(), "app.kubernetes.io/managed-by-"],
    );
    realm.allow(std::slice::from_ref(&stays));
    realm.wait_for_realm(3).await;
    realm.wait_for_generation(&stays, 3).await;
    assert_eq!(realm.generation_in(&relabels), Some(2), "the Secret is not the operator's");
    assert!(!may_log_in(&url).await);
}

#[tokio::test]
async fn a_forged_secret_is_removed_and_replaces_no_keys() {
    let realm = Allowing::start(&["was-allowed", "stays"], 1).await;
    let stranger = realm.cluster.another_namespace("stranger");
    let [was_allowed, stays] = [0, 1].map(|index| realm.names[index].clone());
    realm.allow(std::slice::from_ref(&stays));
    realm.wait_for_realm(2).await;
    let keys = realm.cluster.credentials_in(&stays, "realm-keys").unwrap();
    let writes = realm.writes();
    for namespace in [&stranger, &was_allowed, &stranger] {
        realm.forge(namespace, &keys).await;
    }
    // The operator would have announced the next generation before it removes the Secret.
    assert_eq!(realm.writes(), writes);
    assert_eq!(realm.stored()["generation"], 2);
    realm.wait_for_realm(2).await;
}

#[tokio::test]
async fn the_record_of_given_keys_is_written_as_often_as_it_changes_and_forgets_what_is_gone() {
    let prefixes = ["one", "two", "three", "four", "five", "six"];
    let realm = Allowing::start(&prefixes, 2).await;
    let given = realm.given();
    assert!(given.len() == 6 && given.values().all(|generation| *generation == 1), "{given:?}");
    let writes = realm.writes();
    assert!((1..=6).contains(&writes), "{writes}");

    // What is given again was given before.
    for name in &realm.names[..3] {
        let _ = realm.in_namespace(name, &["delete", "secret", &realm.secret()]);
        realm.wait_for_generation(name, 1).await;
    }
    assert_eq!(realm.writes(), writes);

    // Three at once: announced, given to the others, sealed, completed.
    realm.allow(&realm.names[3..]);
    realm.wait_for_realm(2).await;
    let given = realm.given();
    assert!(given.len() == 3 && given.values().all(|generation| *generation == 2), "{given:?}");
    let more = realm.writes() - writes;
    assert!((3..=5).contains(&more), "{more}");

    // A namespace that is deleted is no withdrawal.
    let path = format!("/api/v1/namespaces/{}/finalize", realm.names[5]);
    let _ = realm.cluster.server.kubectl(&["delete", "namespace", &realm.names[5], "--wait=false"]);
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": realm.names[5] },
        "spec": { "finalizers": [] },
    });
    let folder = twofactor_tests::scratch::folder("finalize");
    let file = folder.path().join("namespace.json");
    std::fs::write(&file, namespace.to_string()).unwrap();
    let _ =
        realm.cluster.server.kubectl(&["replace", "--raw", &path, "-f", file.to_str().unwrap()]);
    eventually(BOUND, "the deleted namespace to be forgotten", async || {
        let given = realm.given();
        if given.len() == 2 { Ok(()) } else { Err(format!("{given:?}")) }
    })
    .await;
    realm.wait_for_realm(2).await;
}

#[tokio::test]
async fn no_namespace_is_given_keys_before_that_is_recorded() {
    let realm = Allowing::start(&["first"], 1).await;
    let second = realm.cluster.another_namespace("second");
    realm.proxy.set(Some(Fault::Path("/secrets/twofactor-keys", 503)));
    realm.allow(&[realm.names[0].clone(), second.clone()]);
    realm.cluster.ask_from(&second);
    eventually(BOUND, "the log to say so", async || {
        let output = realm.operator.process().output();
        output.contains("failed to record which namespaces are given keys; trying again")
    })
    .await;
    assert!(realm.generation_in(&second).is_none() && realm.given().len() == 1);
    realm.proxy.set(None);
    realm.wait_for_generation(&second, 1).await;
    assert_eq!(realm.given().len(), 2);
}

#[tokio::test]
async fn credentials_that_cannot_be_changed_are_created_again() {
    let realm = Allowing::start(&["frozen", "typed", "leaves"], 1).await;
    let [frozen, typed] = [0, 1].map(|index| realm.names[index].clone());
    let secret = realm.secret();
    let freeze = json!({ "immutable": true }).to_string();
    let _ = realm.in_namespace(&frozen, &["patch", "secret", &secret, "--patch", &freeze]);
    // Another type has rules of its own. Its editor has put this one there.
    let path = format!("/api/v1/namespaces/{typed}/secrets/{secret}");
    let mut copy = realm.cluster.server.read(&path).unwrap();
    copy["type"] = "kubernetes.io/basic-auth".into();
    copy["data"]["username"] = "eA==".into();
    copy["data"]["password"] = "eA==".into();
    copy["metadata"] = json!({
        "name": secret,
        "namespace": typed,
        "labels": copy["metadata"]["labels"],
    });
    realm.proxy.set(Some(Fault::Writes(503)));
    let _ = realm.in_namespace(&typed, &["delete", "secret", &secret]);
    realm.cluster.apply_anywhere(&copy.to_string());
    realm.proxy.set(None);
    realm.allow(&[frozen.clone(), typed.clone()]);
    realm.wait_for_realm(2).await;
    for name in [&frozen, &typed] {
        realm.wait_for_generation(name, 2).await;
    }
}

#[tokio::test]
async fn a_new_generation_seals_an_overlap_after_the_last_namespace_has_it() {
    const OVERLAP: Duration = Duration::from_secs(4);
    let realm = Allowing::start(&["late"], 4).await;
    let late = &realm.names[0];
    let path: &'static str = format!("/namespaces/{late}/secrets").leak();
    realm.proxy.set(Some(Fault::Path(path, 503)));
    let annotation = "twofactor.fountainai.io/rotate-keys=1";
    let _ = realm.cluster.kubectl(&["annotate", "tfr", "default", annotation]);
    let begun = Instant::now();
    eventually(BOUND, "an overlap to pass", async || begun.elapsed() > OVERLAP * 3 / 2).await;
    assert_eq!(realm.generation_in(late), Some(1));
    realm.proxy.set(None);
    let pause = Duration::from_millis(50);
    eventually_every(pause, BOUND, "the late credentials", async || {
        realm.generation_in(late) == Some(2)
    })
    .await;
    let written = Instant::now();
    eventually_every(pause, BOUND, "the generation to seal", async || {
        realm.stored()["generation"] == 2
    })
    .await;
    // The credentials may have been written shortly before they were found.
    assert!(written.elapsed() > OVERLAP * 3 / 4, "{:?}", written.elapsed());
}

#[tokio::test]
async fn a_sidecar_of_another_version_keeps_the_old_keys_for_ten_overlaps_at_most() {
    let realm = Allowing::start(&["outdated"], 1).await;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "outdated",
            "namespace": realm.names[0],
            "labels": { "twofactor.fountainai.io/inject": "true" },
            "annotations": {
                "twofactor.fountainai.io/realm": realm.cluster.namespace,
                "twofactor.fountainai.io/injected": "0.0.1",
            },
        },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    realm.cluster.apply_anywhere(&pod.to_string());
    eventually(BOUND, "the pod to be counted", async || {
        let metrics = realm.operator.admin().get("/metrics").await.body;
        metrics.contains("twofactor_pods_outdated 1")
    })
    .await;
    let annotation = "twofactor.fountainai.io/rotate-keys=1";
    let _ = realm.cluster.kubectl(&["annotate", "tfr", "default", annotation]);
    let begun = Instant::now();
    wait_for_keys(&realm.cluster, "SidecarsOutdated", "ten overlaps").await;
    realm.wait_for_realm(2).await;
    assert!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_a_withdrawn_namespace_has_spoilt_is_repaired_at_once() {
    let realm = Allowing::start(&["spoils"], 1).await;
    let spoils = &realm.names[0];
    let url = realm.cluster.credentials_in(spoils, "redis-url").unwrap();
    let states: Vec<String> = realm.cluster.redis.ask(&["KEYS", "*:state"]).await;
    let client = redis::Client::open(url).unwrap();
    let mut login = client.get_multiplexed_async_connection().await.unwrap();
    let mut spoil = redis::cmd("HSET");
    spoil.arg(&states[0]).arg("since").arg("x").exec_async(&mut login).await.unwrap();
    realm.allow(&[]);
    let withdrawn = Instant::now();
    eventually(BOUND, "the repair", async || {
        realm.operator.process().output().contains("spoilt data of a user removed from Redis")
    })
    .await;
    // Otherwise it is half a minute.
    assert!(withdrawn.elapsed() < Duration::from_secs(10), "{:?}", withdrawn.elapsed());
    let sidecar = realm.cluster.sidecar().await;
    sidecar.wait_accepted("alice", &realm.cluster.seed("alice")).await;
}

#[tokio::test]
async fn a_realm_that_is_deleted_while_no_operator_runs_gets_new_keys() {
    let realm = Allowing::start(&["left"], 1).await;
    let url = realm.cluster.credentials_in(&realm.names[0], "redis-url").unwrap();
    let _ = realm.operator.process().kill();
    let _ = realm.cluster.kubectl(&["delete", "tfr", "default"]);
    let kubeconfig = realm.proxy.kubeconfig(&realm.cluster.server, &realm.cluster.kubeconfig);
    let _again = operator(&realm.cluster, &kubeconfig, 1).start().await;
    eventually(BOUND * 2, "the next generation", async || {
        let stored = realm.stored();
        if stored["generation"] == 2 { Ok(()) } else { Err(stored.to_string()) }
    })
    .await;
    assert!(realm.given().is_empty() && !may_log_in(&url).await);
}
