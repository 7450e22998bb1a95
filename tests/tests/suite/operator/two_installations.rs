//! Tests two installations in one cluster and one Redis, each for its own namespace of users: their
//! operators and their webhooks leave each other's users, Secrets and pods alone.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::scratch;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user};

/// An installation as the chart makes it.
struct Installation {
    cluster: Cluster,
    name: &'static str,
    /// Memory request of its sidecars, which tells them from those of the other.
    memory: &'static str,
    _admission: OperatorProcess,
}

impl Installation {
    async fn new(cluster: Cluster, name: &'static str, memory: &'static str) -> Self {
        let admission = cluster.webhook(name, &["--sidecar-memory-request", memory]).await;
        Self { cluster, name, memory, _admission: admission }
    }

    async fn controller(&self, redis_url: &str) -> OperatorProcess {
        self.cluster
            .operator()
            .args(["--installation", self.name])
            .env("REDIS_URL", redis_url)
            .start()
            .await
    }

    /// Memory requests of the sidecars of a new pod.
    fn sidecars(&self, namespace: &str, realm: Option<&str>) -> Result<Vec<String>, String> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "client", "namespace": namespace,
                "labels": { "twofactor.fountainai.io/inject": "true" }, "annotations": {},
            },
            "spec": { "containers": [{ "name": "app", "image": "app" }] },
        });
        if let Some(realm) = realm {
            pod["metadata"]["annotations"]["twofactor.fountainai.io/realm"] = json!(realm);
        }
        let folder = scratch::folder("pod");
        let path = folder.path().join("pod.json");
        fs::write(&path, pod.to_string()).unwrap();
        let create = ["create", "--dry-run=server", "-o", "json", "-f", path.to_str().unwrap()];
        let created = self.cluster.server.try_kubectl(&create)?;
        let created: Value = serde_json::from_str(&created).map_err(|error| error.to_string())?;
        let spec = &created["spec"];
        let containers = ["initContainers", "containers"].into_iter();
        let containers = containers.flat_map(|list| spec[list].as_array().into_iter().flatten());
        let memory = |container: &Value| {
            container["resources"]["requests"]["memory"].as_str().unwrap_or_default().to_owned()
        };
        Ok(containers.filter(|it| it["name"] == "twofactor-sidecar").map(memory).collect())
    }

    /// Identity and version of every Secret of the operator in the namespaces of this realm and in
    /// `caller`.
    fn secrets(&self, caller: &str) -> BTreeMap<String, (String, String)> {
        let realm = &self.cluster.namespace;
        let list = |namespace: &str, selector: &str| {
            let path = format!("/api/v1/namespaces/{namespace}/secrets?labelSelector={selector}");
            self.cluster.server.read(&path).unwrap()["items"].as_array().unwrap().clone()
        };
        let managed = "app.kubernetes.io/managed-by=twofactor-operator";
        let credentials = format!("twofactor.fountainai.io/credentials={realm}");
        let found = list(realm, managed).into_iter().chain(list(caller, &credentials));
        let text = |secret: &Value, field: &str| {
            secret["metadata"][field].as_str().unwrap_or_default().to_owned()
        };
        let entry = |secret: Value| {
            let name = format!("{}/{}", text(&secret, "namespace"), text(&secret, "name"));
            (name, (text(&secret, "uid"), text(&secret, "resourceVersion")))
        };
        found.map(entry).collect()
    }
}

fn realm(caller: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata: {{name: default}}\nspec: {{allowedNamespaces: {{names: [{caller}]}}}}\n---\n"
    )
}

#[tokio::test]
async fn two_installations_leave_each_others_pods_users_and_secrets_alone() {
    let first = Cluster::on_own_server(&[]).await;
    let second = first.beside().await;
    let caller = first.another_namespace("kms");
    let redis_url = first.redis.url();
    let first = Installation::new(first, "first-2fa", "21Mi").await;
    let second = Installation::new(second, "second-2fa", "22Mi").await;
    let both = [&first, &second];

    // Each pod gets one sidecar, of the installation of its realm.
    for one in both {
        let realm = one.cluster.namespace.as_str();
        for (namespace, named) in [(realm, None), (caller.as_str(), Some(realm))] {
            let what = format_args!("a pod in {namespace} for {named:?} to get a sidecar");
            eventually(BOUND, what, async || match one.sidecars(namespace, named)? {
                sidecars if sidecars == [one.memory] => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
    }
    for (namespace, realm) in [(&caller, None), (&caller, Some("nowhere"))] {
        assert_eq!(first.sidecars(namespace, realm), Ok(vec![]), "a realm of no installation");
    }

    let controller = first.controller(&redis_url).await;
    first.cluster.apply(&[app_user("alice"), realm(&caller)].concat());
    first.cluster.wait_ready("alice").await;
    let alice = first.cluster.sidecar_in(&caller).await;
    alice.wait_accepted("alice", &first.cluster.seed("alice")).await;
    let before = first.secrets(&caller);
    assert_eq!(before.len(), 2, "{before:?}");

    // Another installation comes, works, loses its users, restarts and goes.
    let other = second.controller(&redis_url).await;
    second.cluster.apply(&[app_user("alice"), app_user("bob"), realm(&caller)].concat());
    for user in ["alice", "bob"] {
        second.cluster.wait_ready(user).await;
    }
    let bob = second.cluster.sidecar_in(&caller).await;
    bob.wait_accepted("bob", &second.cluster.seed("bob")).await;
    assert_ne!(first.cluster.seed("alice"), second.cluster.seed("alice"));
    let _ = second.cluster.kubectl(&["delete", "tfu", "alice"]);
    other.process().stop();
    let restarted = second.controller(&redis_url).await;
    second.cluster.apply(&app_user("carol"));
    second.cluster.wait_ready("carol").await;
    // The second one may have the first one's logins and keys checked by now: both still answer.
    for (sidecar, username) in [(&alice, "alice"), (&bob, "bob")] {
        let reply = sidecar.api.verify(username, "000000").await;
        assert!([400, 401].contains(&reply.status), "{username}: {}", reply.body);
        let reply = sidecar.api.verify("unknown", "000000").await;
        assert_eq!(reply.status, 404, "{}", reply.body);
    }
    assert_eq!(bob.api.verify("carol", "000000").await.status, 401);
    assert_eq!(alice.api.verify("carol", "000000").await.status, 404);
    assert_eq!(
        first.secrets(&caller),
        before,
        "the second installation wrote a Secret of the first"
    );
    for (operator, realm) in
        [(&controller, &second.cluster.namespace), (&restarted, &first.cluster.namespace)]
    {
        let log = operator.process().output();
        assert!(!log.contains(realm.as_str()), "it knows the other's realm: {log}");
    }
}
