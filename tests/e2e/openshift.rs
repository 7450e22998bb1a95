//! Tests that everything runs under a user that the cluster chooses, as on `OpenShift`. Its
//! security context constraint `restricted-v2` gives each container the user of its namespace, and
//! refuses any other; two policies of this cluster do the same.

use serde_json::{Value, json};
use twofactor_tests::wait::eventually_blocking;

use crate::manifests;
use crate::release::{self, NAMESPACE};
use crate::scene::Scene;
use crate::{START, finally};

/// The user of every namespace; its group is root's, as the images do not know it.
const USER: u64 = 1_000_700_000;
/// Name of both policies.
const POLICY: &str = "twofactor-e2e-openshift";
/// Namespace of the chart's own test.
const TEST_NAMESPACE: &str = "twofactor-test";
const VOLUME: &str = "data-twofactor-redis-0";

pub(crate) fn operator_sidecar_and_redis_run_as_a_user_that_the_cluster_chooses(scene: &Scene<'_>) {
    let (people, services) = (scene.namespace("people"), scene.restricted_namespace("openshift"));
    // What Redis has written belongs to its user.
    release::uninstall();
    remove_volume(scene);
    constrain(scene, &[NAMESPACE, TEST_NAMESPACE, &services]);
    finally(
        || runs_as_chosen(scene, &people, &services),
        || {
            for kind in ["mutatingadmissionpolicybinding", "validatingadmissionpolicybinding"] {
                scene.kubectl().run(&["delete", kind, POLICY]);
            }
            if release::is_installed() {
                release::uninstall();
            }
            remove_volume(scene);
            eventually_blocking(
                START,
                "the API server to forget the policies",
                || match chosen_user(scene, &services) {
                    Ok(None) => Ok(()),
                    other => Err(format!("{other:?}")),
                },
            );
            release::install(&[]);
        },
    );
}

fn runs_as_chosen(scene: &Scene<'_>, people: &str, services: &str) {
    eventually_blocking(START, "the API server to use the policies", || {
        match chosen_user(scene, services) {
            Ok(Some(USER)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // The chart's own user of Redis is refused. The API server may use one policy before the other.
    let mut pod = pod_without_ids(services, "fixed");
    pod["spec"]["containers"][0]["securityContext"]["runAsUser"] = 999.into();
    eventually_blocking(START, "the API server to refuse another user", || {
        let said = scene.kubectl().create_dry(&pod);
        let is_refused = !said.success && said.to_string().contains(POLICY);
        if is_refused { Ok(()) } else { Err(said.to_string()) }
    });

    release::install(&["redis.user=null"]);
    scene.users(people, &[("alice", json!({ "deliveryMethod": "app" }))]);
    scene.realm(people, &[services], None);
    scene.start(&manifests::with_sidecar(pod_without_ids(services, "app"), people));
    let seed = scene.seed(people, "alice");
    eventually_blocking(START, "a code of alice to be accepted", || {
        let code = scene.app_code(services, "app", &seed);
        let reply = scene.verify(services, "app", "alice", &code);
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    });
    let said = release::test();
    assert!(said.success, "{said}");
    let mut containers = 0;
    for namespace in [NAMESPACE, services] {
        let pods = scene.kubectl().get(&["pods", "--namespace", namespace]);
        for pod in pods["items"].as_array().expect("pods") {
            for list in ["containers", "initContainers"] {
                for container in pod["spec"][list].as_array().into_iter().flatten() {
                    let user = &container["securityContext"]["runAsUser"];
                    assert_eq!(user.as_u64(), Some(USER), "{}", container["name"]);
                    containers += 1;
                }
            }
        }
    }
    // Two of the controller, two of admission, Redis, and a pod with the sidecar.
    assert!(containers >= 7, "{containers}");
    // The process itself, not only the manifest.
    let id = ["exec", "twofactor-redis-0", "--namespace", NAMESPACE, "--", "id"];
    let said = scene.kubectl().run(&id);
    assert!(said.contains(&format!("uid={USER} gid=0")), "{said}");
}

/// A pod as most people write it: without a user.
fn pod_without_ids(namespace: &str, name: &str) -> Value {
    let mut pod = manifests::client(namespace, name);
    pod["spec"]["securityContext"].as_object_mut().expect("an object").remove("runAsUser");
    pod
}

/// The user that a pod without one would get.
fn chosen_user(scene: &Scene<'_>, namespace: &str) -> Result<Option<u64>, String> {
    let args = ["create", "--dry-run=server", "--output=json", "--filename=-"];
    let pod = pod_without_ids(namespace, "any").to_string();
    let said = scene.kubectl().say(&args, &pod).into_result()?;
    let pod: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
    Ok(pod["spec"]["containers"][0]["securityContext"]["runAsUser"].as_u64())
}

fn remove_volume(scene: &Scene<'_>) {
    let claim = ["delete", "persistentvolumeclaim", VOLUME, "--namespace", NAMESPACE];
    scene.kubectl().run(&[&claim[..], &["--ignore-not-found"]].concat());
    if scene.world.control().is_some() {
        scene.world.control_node(&["volumes"]);
    }
}

/// Gives each container in these namespaces the user, and refuses any other.
fn constrain(scene: &Scene<'_>, namespaces: &[&str]) {
    let constraints = json!({
        "namespaceSelector": { "matchExpressions": [
            { "key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces },
        ] },
        "resourceRules": [
            { "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"] },
        ],
    });
    let containers = |list: &str| {
        format!(
            "object.spec.?{list}.orValue([]).map(c, Object.spec.{list}{{name: c.name, securityContext: \
             Object.spec.{list}.securityContext{{runAsUser: c.?securityContext.?runAsUser.orValue({USER})}}}})"
        )
    };
    let mutation = format!(
        "Object{{spec: Object.spec{{securityContext: Object.spec.securityContext{{fsGroup: {USER}}}, \
         containers: {}, initContainers: {}}}}}",
        containers("containers"),
        containers("initContainers")
    );
    let is_chosen = |list: &str| {
        format!(
            "object.spec.?{list}.orValue([]).all(c, c.?securityContext.?runAsUser.orValue({USER}) == {USER})"
        )
    };
    let refused = format!(
        "{} && {} && object.spec.?securityContext.?runAsUser.orValue({USER}) == {USER} && \
         object.spec.?securityContext.?fsGroup.orValue({USER}) == {USER}",
        is_chosen("containers"),
        is_chosen("initContainers")
    );
    let api_version = "admissionregistration.k8s.io/v1";
    for (kind, mut spec) in [
        (
            "MutatingAdmissionPolicy",
            json!({ "reinvocationPolicy": "IfNeeded", "mutations": [
                { "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": mutation } },
            ] }),
        ),
        (
            "ValidatingAdmissionPolicy",
            json!({ "validations": [
                { "expression": refused, "message": "OpenShift would refuse this user or group" },
            ] }),
        ),
    ] {
        spec["failurePolicy"] = "Fail".into();
        spec["matchConstraints"] = constraints.clone();
        let metadata = json!({ "name": POLICY });
        scene.apply_for_all(&json!({
            "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec,
        }));
        let mut binding = json!({ "policyName": POLICY });
        if kind == "ValidatingAdmissionPolicy" {
            binding["validationActions"] = json!(["Deny"]);
        }
        scene.apply_for_all(&json!({
            "apiVersion": api_version, "kind": format!("{kind}Binding"), "metadata": metadata,
            "spec": binding,
        }));
    }
}
