//! Tests pods whose connections a service mesh redirects from their first moment, as with a CNI
//! plugin. An init container before the sidecar forbids all TCP connections that leave the pod,
//! except to the ports in Istio's annotation; the proxy "starts" when the app lifts that.

use serde_json::{Value, json};
use twofactor_tests::wait::eventually_blocking;

use crate::START;
use crate::manifests::{self, CLIENT_IMAGE, SIDECAR};
use crate::scene::Scene;

const PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Forbids what a mesh would redirect. Loopback is routed before these rules apply.
const REDIRECT: &str =
    "for port in ${PORTS//,/ }; do ip rule add priority 100 ipproto 6 dport $port lookup main; done
ip rule add priority 200 ipproto 6 prohibit";
/// What the start of the proxy changes.
const PROXY: [&str; 5] = ["ip", "rule", "del", "priority", "200"];

/// A pod with the sidecar, in a mesh that leaves these ports alone.
fn meshed(scene: &Scene<'_>, namespace: &str, name: &str, realm: &str, ports: &str) {
    let mut pod = manifests::client_with_sidecar(namespace, name, realm);
    pod["metadata"]["annotations"][PORTS] = json!(ports);
    let root =
        json!({ "runAsUser": 0, "runAsNonRoot": false, "capabilities": { "add": ["NET_ADMIN"] } });
    pod["spec"]["containers"][0]["securityContext"] = root.clone();
    // A CNI plugin acts before every init container, which only a pod that is injected already can
    // show.
    let args = ["create", "--dry-run=server", "--output=json", "--filename=-"];
    let said = scene.kubectl().say(&args, &pod.to_string()).into_result().expect("a pod");
    let injected: Value = serde_json::from_str(&said).expect("a pod in JSON");
    pod["spec"] = injected["spec"].clone();
    for field in ["labels", "annotations"] {
        pod["metadata"][field] = injected["metadata"][field].clone();
    }
    let init = pod["spec"]["initContainers"].as_array_mut().expect("the sidecar");
    let redirect = json!({
        "name": "mesh", "image": CLIENT_IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["bash", "-c", REDIRECT], "env": [{ "name": "PORTS", "value": ports }],
        "securityContext": root,
    });
    init.insert(0, redirect);
    scene.start(&pod);
}

fn restarts(scene: &Scene<'_>, namespace: &str, pod: &str) -> u64 {
    let pod = scene.kubectl().get(&["pod", pod, "--namespace", namespace]);
    let statuses = pod["status"]["initContainerStatuses"].as_array().expect("statuses");
    let sidecar = statuses.iter().find(|status| status["name"] == SIDECAR).expect("the sidecar");
    sidecar["restartCount"].as_u64().expect("a number")
}

pub(crate) fn a_mesh_delays_the_first_verify_and_restarts_no_sidecar(scene: &Scene<'_>) {
    let (people, services) = (scene.namespace("people"), scene.namespace("meshed"));
    let app = json!({ "deliveryMethod": "app" });
    scene.users(&people, &[("alice", app.clone()), ("bob", app)]);
    scene.realm(&people, &[&services], None);

    meshed(scene, &services, "excluded", &people, "6379,6380");
    let code = scene.app_code(&services, "excluded", &scene.seed(&people, "alice"));
    let reply = scene.verify(&services, "excluded", "alice", &code);
    assert_eq!(reply.status, 200, "{reply:?}");

    meshed(scene, &services, "redirected", &people, "");
    let code = || scene.app_code(&services, "redirected", &scene.seed(&people, "bob"));
    let reply = scene.verify(&services, "redirected", "bob", &code());
    assert_eq!(reply.status, 503, "nothing is redirected: {reply:?}");
    scene.exec(&services, "redirected", &PROXY).into_result().expect("the proxy's start");
    eventually_blocking(START, "an accepted code", || {
        let reply = scene.verify(&services, "redirected", "bob", &code());
        if reply.status == 200 { Ok(()) } else { Err(format!("{reply:?}")) }
    });
    for pod in ["excluded", "redirected"] {
        assert_eq!(restarts(scene, &services, pod), 0, "the sidecar of {pod} was restarted");
    }
}
