//! Tests the webhook beside injectors of other projects, which a real API server calls before and
//! after it.

use serde_json::{Value, json};
use twofactor_tests::injector::{Change, Injector};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster};

const LABEL: &str = "twofactor.fountainai.io/inject";
const SIDECAR: &str = "twofactor-sidecar";

/// The webhook between two injectors: one that API servers call before it, and one after it.
struct Scene {
    cluster: Cluster,
    before: Injector,
    after: Injector,
    _admission: OperatorProcess,
}

impl Scene {
    async fn new(cluster: Cluster, args: &[&str]) -> Self {
        let (before, after) =
            tokio::join!(Injector::start(|_| Vec::new()), Injector::start(|_| Vec::new()));
        let name = format!("middle-{}", cluster.namespace);
        let admission = cluster.webhook(&name, args).await;
        for (injector, prefix) in [(&before, "a"), (&after, "z")] {
            let name = format!("{prefix}-{}", cluster.namespace);
            let configuration = injector.configuration(&name, &cluster.namespace);
            cluster.apply_anywhere(&configuration.to_string());
        }
        let scene = Self { cluster, before, after, _admission: admission };
        eventually(BOUND, "all three to be called", async || {
            let pod = scene.cluster.would_create(&labelled())?;
            let is_called = scene.before.calls() > 0 && scene.after.calls() > 0;
            if is_called && names(&pod, "initContainers") == [SIDECAR] {
                Ok(())
            } else {
                Err(pod.to_string())
            }
        })
        .await;
        scene
    }

    /// Lets the injectors change pods like this from now on.
    fn set(&self, before: Change, after: Change) -> &Self {
        self.before.set(before);
        self.after.set(after);
        self
    }

    #[track_caller]
    fn assert_refused(&self, sentence: &str) {
        let refusal = self.cluster.would_create(&labelled()).expect_err(sentence);
        assert!(refusal.contains(sentence), "{refusal}");
    }
}

fn pod(labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "client", "labels": labels },
        "spec": {
            "initContainers": [{ "name": "migrate", "image": "app" }],
            "containers": [{ "name": "app", "image": "app" }],
        },
    })
}

fn labelled() -> Value {
    let mut pod = pod(&json!({ LABEL: "true" }));
    pod["spec"].as_object_mut().unwrap().remove("initContainers");
    pod
}

/// The names in a list of the pod's spec, in order.
fn names(pod: &Value, list: &str) -> Vec<String> {
    let items = pod["spec"][list].as_array().into_iter().flatten();
    items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

fn named<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let mut items = pod["spec"][list].as_array().into_iter().flatten();
    items.find(|item| item["name"] == name).unwrap_or(&Value::Null)
}

fn nothing(_: &Value) -> Vec<Value> {
    Vec::new()
}

/// A mesh: an init container at the front, a proxy as a native sidecar behind it, a volume, a label
/// and an annotation. Like every injector, it does nothing where it has been.
fn mesh(pod: &Value) -> Vec<Value> {
    if !named(pod, "initContainers", "mesh-proxy").is_null() {
        return Vec::new();
    }
    let mut lists = Vec::new();
    for list in ["initContainers", "volumes"] {
        if pod["spec"][list].is_null() {
            lists.push(json!({ "op": "add", "path": format!("/spec/{list}"), "value": [] }));
        }
    }
    let proxy = json!({
        "name": "mesh-proxy", "image": "mesh:1", "restartPolicy": "Always",
        "volumeMounts": [{ "name": "mesh", "mountPath": "/mesh" }],
        "ports": [{ "containerPort": 15_001 }],
    });
    lists.extend([
        json!({ "op": "add", "path": "/spec/initContainers/0", "value": proxy }),
        json!({ "op": "add", "path": "/spec/initContainers/0",
            "value": { "name": "mesh-init", "image": "mesh:1" } }),
        json!({ "op": "add", "path": "/spec/volumes/0", "value": { "name": "mesh", "emptyDir": {} } }),
        json!({ "op": "add", "path": "/metadata/labels/mesh", "value": "on" }),
    ]);
    lists
}

/// An agent: an init container in front of all, and one beside the app.
fn agent(pod: &Value) -> Vec<Value> {
    if !named(pod, "containers", "agent").is_null() {
        return Vec::new();
    }
    let fetch = json!({ "name": "agent-init", "image": "agent:1" });
    vec![
        json!({ "op": "add", "path": "/spec/initContainers/0", "value": fetch }),
        json!({ "op": "add", "path": "/spec/containers/0",
            "value": { "name": "agent", "image": "agent:1", "ports": [{ "containerPort": 9000 }] } }),
    ]
}

async fn assert_one_sidecar_between_injectors(args: &[&str], order: [&str; 5]) {
    let scene = Scene::new(Cluster::on_own_server(&[]).await, args).await;
    scene.set(mesh, agent);
    let (mesh_calls, agent_calls) = (scene.before.calls(), scene.after.calls());
    let created = scene.cluster.would_create(&pod(&json!({ LABEL: "true" }))).unwrap();
    assert_eq!(names(&created, "initContainers"), order, "{created}");
    assert_eq!(names(&created, "containers"), ["agent", "app"]);
    assert_eq!(created["metadata"]["labels"]["mesh"], "on");
    let proxy = named(&created, "initContainers", "mesh-proxy");
    assert_eq!((&proxy["image"], &proxy["restartPolicy"]), (&json!("mesh:1"), &json!("Always")));
    assert_eq!(proxy["volumeMounts"][0], json!({ "name": "mesh", "mountPath": "/mesh" }));
    let mut volumes = names(&created, "volumes");
    volumes.sort();
    assert_eq!(volumes, ["mesh", "twofactor-credentials"]);
    // The API server calls an injector again if a later one has changed the pod.
    assert_eq!(scene.before.calls() - mesh_calls, 2);
    assert!(scene.after.calls() > agent_calls);

    // A pod that is already as it should be, such as one restored from a backup, stays as it is.
    let mut again = created.clone();
    again["metadata"] = json!({
        "name": "again", "labels": created["metadata"]["labels"],
        "annotations": created["metadata"]["annotations"],
    });
    again.as_object_mut().unwrap().remove("status");
    let again = scene.cluster.would_create(&again).unwrap();
    assert_eq!(again["spec"], created["spec"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_three_injectors_has_one_sidecar_before_those_of_an_earlier_injector() {
    let order = ["agent-init", SIDECAR, "mesh-init", "mesh-proxy", "migrate"];
    assert_one_sidecar_between_injectors(&[], order).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_three_injectors_has_one_sidecar_behind_those_of_an_earlier_injector_if_asked() {
    let order = ["agent-init", "mesh-init", "mesh-proxy", "migrate", SIDECAR];
    assert_one_sidecar_between_injectors(&["--sidecar-position", "last"], order).await;
}

/// An injector with a container of the sidecar's name.
fn namesake(pod: &Value) -> Vec<Value> {
    let is_there = |list| !named(pod, list, SIDECAR).is_null();
    let value = json!({ "name": SIDECAR, "image": "other:1" });
    if is_there("containers") {
        return Vec::new();
    }
    if pod["spec"]["initContainers"].is_null() {
        return vec![
            json!({ "op": "add", "path": "/spec/initContainers", "value": [value] }),
            json!({ "op": "add", "path": "/metadata/labels/seen", "value": "yes" }),
        ];
    }
    // The API server would refuse two of the same list itself.
    if is_there("initContainers") && pod["metadata"]["labels"]["seen"].is_null() {
        return vec![json!({ "op": "add", "path": "/spec/containers/0", "value": value })];
    }
    Vec::new()
}

/// The index of the sidecar among the init containers.
fn index(pod: &Value) -> Option<usize> {
    names(pod, "initContainers").iter().position(|name| name == SIDECAR)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_injector_does_to_the_sidecar_is_borne_or_refused_with_a_sentence() {
    let scene = Scene::new(Cluster::on_own_server(&[]).await, &[]).await;

    // A container of the sidecar's name, before it and after it.
    let taken = "is the name of the sidecar; give your own container another name";
    scene.set(namesake, nothing).assert_refused(taken);
    scene.set(nothing, namesake).assert_refused(taken);

    // A container that listens on the sidecar's port.
    let listens: Change = |pod| {
        let value = json!({ "name": "greedy", "image": "a", "ports": [{ "containerPort": 8004 }] });
        let is_there = !named(pod, "containers", "greedy").is_null();
        let add = json!({ "op": "add", "path": "/spec/containers/-", "value": value });
        if is_there { Vec::new() } else { vec![add] }
    };
    let port = "a containerPort is port 8004, which the sidecar uses for its API";
    scene.set(listens, nothing).assert_refused(port);
    scene.set(nothing, listens).assert_refused(port);

    // A container that reads the credentials.
    let reads: Change = |pod| {
        let mount = json!({ "name": "twofactor-credentials", "mountPath": "/stolen" });
        let value = json!({ "name": "thief", "image": "a", "volumeMounts": [mount] });
        let is_there = !named(pod, "containers", "thief").is_null();
        let add = json!({ "op": "add", "path": "/spec/containers/-", "value": value });
        if is_there { Vec::new() } else { vec![add] }
    };
    scene.set(nothing, reads).assert_refused("spec.containers[\"thief\"]");

    // Another realm, after the sidecar has got the volume of the first one.
    let realm: Change = |_| {
        let path = "/metadata/annotations/twofactor.fountainai.io~1realm";
        vec![json!({ "op": "add", "path": path, "value": "elsewhere" })]
    };
    scene.set(nothing, realm).assert_refused("must be the Secret twofactor-elsewhere");

    // The sidecar taken away, with its volume left behind.
    let removes: Change = |pod| {
        let remove =
            |index| json!({ "op": "remove", "path": format!("/spec/initContainers/{index}") });
        index(pod).map(remove).into_iter().collect()
    };
    scene.set(nothing, removes).assert_refused("is the name of the sidecar's volume");

    // Another image, as a mirror of a registry writes it, and another place are left alone.
    let mirrors: Change = |pod| {
        let Some(index) = index(pod) else { return Vec::new() };
        let path = format!("/spec/initContainers/{index}/image");
        let image = json!({ "op": "replace", "path": path, "value": "mirror/sidecar:test" });
        let first = json!({ "name": "first", "image": "a" });
        let add = json!({ "op": "add", "path": "/spec/initContainers/0", "value": first });
        let is_there = !named(pod, "initContainers", "first").is_null();
        if is_there { vec![image] } else { vec![image, add] }
    };
    let created = scene.set(nothing, mirrors).cluster.would_create(&labelled()).unwrap();
    assert_eq!(names(&created, "initContainers"), ["first", SIDECAR]);
    let image = &named(&created, "initContainers", SIDECAR)["image"];
    assert_eq!(image, "mirror/sidecar:test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_counts_if_the_injector_that_writes_it_is_called_before_the_webhook() {
    let scene = Scene::new(Cluster::on_own_server(&[]).await, &[]).await;
    let labels: Change = |_| {
        let path = "/metadata/labels/twofactor.fountainai.io~1inject";
        vec![json!({ "op": "add", "path": path, "value": "true" })]
    };
    let unlabelled = pod(&json!({ "app": "client" }));
    let created = scene.set(labels, nothing).cluster.would_create(&unlabelled).unwrap();
    assert_eq!(names(&created, "initContainers"), [SIDECAR, "migrate"]);
    // The API server calls again only what it has called before.
    let created = scene.set(nothing, labels).cluster.would_create(&unlabelled).unwrap();
    assert_eq!(created["metadata"]["labels"][LABEL], "true");
    assert_eq!(names(&created, "initContainers"), ["migrate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutating_admission_policy_is_an_injector_too() {
    let scene = Scene::new(Cluster::on_own_server(&[]).await, &[]).await;
    let namespace = &scene.cluster.namespace;
    scene.cluster.apply_anywhere(&format!(
        "apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{name: agent}}
spec:
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}
    resourceRules:
      - {{apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [pods]}}
  matchConditions:
    - name: new
      expression: \"!object.spec.?initContainers.orValue([]).exists(it, it.name == 'of-policy')\"
  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration:
        expression: \"Object{{spec: Object.spec{{initContainers: [Object.spec.initContainers{{name: 'of-policy', image: 'a'}}]}}}}\"
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: agent}}
spec: {{policyName: agent}}
"
    ));
    scene.set(nothing, agent);
    eventually(BOUND, "the policy", async || {
        let found = names(&scene.cluster.would_create(&labelled())?, "initContainers");
        if found == ["agent-init", SIDECAR, "of-policy"] {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}
