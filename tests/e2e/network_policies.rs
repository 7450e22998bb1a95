//! Tests that the chart's network policies, once they are enforced, allow connections of the pods
//! that they name and of no other, and that everything works under them.

use std::time::Duration;

use serde_json::json;
use twofactor_tests::wait::eventually_blocking;

use crate::manifests;
use crate::release::{self, ADMISSION_LABEL, CONTROLLER_LABEL, NAMESPACE, REDIS_LABEL};
use crate::scene::Scene;
use crate::{START, finally};

/// Timeout for the enforcement to know a pod or a policy.
const KNOWN: Duration = Duration::from_secs(20);

/// A pod that connects, and where to.
struct Attempt<'a> {
    namespace: &'a str,
    pod: &'a str,
    target: (String, u16),
}

pub(crate) fn the_charts_policies_allow_only_the_pods_that_they_name(scene: &Scene<'_>) {
    let (people, services) = (scene.namespace("people"), scene.namespace("services"));
    let (monitoring, outside) = (scene.namespace("monitoring"), scene.namespace("outside"));
    scene.users(&people, &[("alice", json!({ "deliveryMethod": "app" }))]);
    scene.realm(&people, &[&services], None);
    scene.start(&manifests::client_with_sidecar(&services, "before", &people));
    scene.start(&manifests::client(&monitoring, "prometheus"));
    scene.start(&manifests::client(&outside, "stranger"));
    // The labels that the policies name, in a namespace that they do not name.
    let mut copy = manifests::client(&outside, "copy");
    let (key, value) = CONTROLLER_LABEL.split_once('=').expect("a label");
    copy["metadata"]["labels"] = json!({ key: value, "app.kubernetes.io/component": "controller" });
    scene.start(&copy);

    finally(
        || {
            release::install(&[
                &format!("networkPolicy.sidecarNamespaces[0]={services}"),
                &format!(
                    r"networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.kubernetes\.io/metadata\.name={monitoring}"
                ),
            ]);
            enforced(scene, &people, &services, &monitoring, &outside);
        },
        || {
            scene.world.control_node(&["policies", "off"]);
            release::install(&[
                "networkPolicy.sidecarNamespaces=null",
                "networkPolicy.metricsFrom=null",
            ]);
        },
    );
}

fn enforced(scene: &Scene<'_>, people: &str, services: &str, monitoring: &str, outside: &str) {
    let address = |namespace: &str, label: &str| {
        let pods = scene.kubectl().get(&["pods", "--namespace", namespace, "--selector", label]);
        pods["items"][0]["status"]["podIP"].as_str().expect("an address").to_owned()
    };
    let redis = address(NAMESPACE, REDIS_LABEL);
    let controller = (address(NAMESPACE, CONTROLLER_LABEL), 18005);
    let admission = (address(NAMESPACE, ADMISSION_LABEL), 18005);
    let sidecar = (address(services, manifests::INJECT), 18004);
    let webhook = (format!("twofactor-operator.{NAMESPACE}.svc"), 443);
    let attempt =
        |namespace, pod, target: &(String, u16)| Attempt { namespace, pod, target: target.clone() };
    let mut refused = Vec::new();
    for pod in ["stranger", "copy"] {
        for target in [&(redis.clone(), 6380), &controller, &admission, &sidecar] {
            refused.push(attempt(outside, pod, target));
        }
    }
    refused.push(attempt(monitoring, "prometheus", &(redis, 6380)));
    let allowed = [
        attempt(monitoring, "prometheus", &controller),
        attempt(monitoring, "prometheus", &admission),
        attempt(monitoring, "prometheus", &sidecar),
        attempt(outside, "stranger", &webhook),
    ];

    // Without the enforcement all of them connect, so it is the policies that refuse below.
    for attempt in refused.iter().chain(&allowed) {
        assert!(connects(scene, attempt), "{} to {:?}", attempt.pod, attempt.target);
    }
    scene.world.control_node(&["policies", "on"]);
    for attempt in &refused {
        eventually_blocking(KNOWN, "a refused connection", || {
            if connects(scene, attempt) {
                Err(format!("{} reaches {:?}", attempt.pod, attempt.target))
            } else {
                Ok(())
            }
        });
    }
    for attempt in &allowed {
        assert!(connects(scene, attempt), "{} to {:?}", attempt.pod, attempt.target);
    }

    // A restarted controller, new users and new pods get in.
    for workload in [release::CONTROLLER, release::ADMISSION] {
        scene.kubectl().run(&["rollout", "restart", workload, "--namespace", NAMESPACE]);
        let status = ["rollout", "status", workload, "--namespace", NAMESPACE, "--timeout=120s"];
        let said = scene.kubectl().say_within(release::BOUND, &status, "");
        assert!(said.success, "{said}");
    }
    scene.users(people, &[("bob", json!({ "deliveryMethod": "app" }))]);
    scene.start(&manifests::client_with_sidecar(services, "after", people));
    for (pod, user) in [("before", "alice"), ("after", "bob")] {
        let seed = scene.seed(people, user);
        eventually_blocking(START, "a code to be accepted", || {
            let code = scene.app_code(services, pod, &seed);
            let reply = scene.verify(services, pod, user, &code);
            if reply.status == 200 { Ok(()) } else { Err(format!("{pod}: {}", reply.body)) }
        });
    }
    let said = release::test();
    assert!(said.success, "{said}");
}

/// Whether a connection begins within three seconds, in which its first packet is sent twice.
fn connects(scene: &Scene<'_>, attempt: &Attempt<'_>) -> bool {
    let (host, port) = &attempt.target;
    let open = format!(": <>/dev/tcp/{host}/{port}");
    scene.exec(attempt.namespace, attempt.pod, &["timeout", "3", "bash", "-c", &open]).success
}
