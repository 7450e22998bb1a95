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

/// Tries to connect to each place that it reads, all at the same time, and prints those that it
/// reaches within three seconds, in which the first packet is sent twice.
const CONNECT: &str = r#"
while read -r host port; do
  (timeout 3 bash -c ": <>/dev/tcp/$host/$port" 2>/dev/null && echo "$host $port") &
done
wait
"#;

/// A pod, the places that it tries to reach, and those that the policies leave it.
struct Client<'a> {
    namespace: &'a str,
    pod: &'a str,
    all: Vec<&'a str>,
    allowed: Vec<&'a str>,
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
    let redis = format!("{} 6380", address(NAMESPACE, REDIS_LABEL));
    let controller = format!("{} 18005", address(NAMESPACE, CONTROLLER_LABEL));
    let admission = format!("{} 18005", address(NAMESPACE, ADMISSION_LABEL));
    let sidecar = format!("{} 18004", address(services, manifests::INJECT));
    let webhook = format!("twofactor-operator.{NAMESPACE}.svc 443");
    let all = [&redis, &controller, &admission, &sidecar, &webhook].map(String::as_str);
    let client = |namespace, pod, allowed: &[&str]| Client {
        namespace,
        pod,
        all: all.to_vec(),
        allowed: all.into_iter().filter(|place| allowed.contains(place)).collect(),
    };
    let clients = [
        client(outside, "stranger", &[&webhook]),
        client(outside, "copy", &[&webhook]),
        client(monitoring, "prometheus", &[&controller, &admission, &sidecar, &webhook]),
    ];

    // Without the enforcement all of them connect, so it is the policies that refuse below.
    for client in &clients {
        assert_eq!(reached(scene, client), client.all, "{}", client.pod);
    }
    scene.world.control_node(&["policies", "on"]);
    for client in &clients {
        eventually_blocking(KNOWN, "the policies to be enforced", || {
            let reached = reached(scene, client);
            if reached == client.allowed { Ok(()) } else { Err(format!("{reached:?}")) }
        });
    }

    // A restarted controller, new users and new pods get in.
    for workload in [release::CONTROLLER, release::ADMISSION] {
        scene.kubectl().run(&["rollout", "restart", workload, "--namespace", NAMESPACE]);
        scene.kubectl().wait_for_rollout(START, NAMESPACE, workload);
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

fn reached<'a>(scene: &Scene<'_>, client: &Client<'a>) -> Vec<&'a str> {
    let places = client.all.join("\n") + "\n";
    let said = scene.exec_with(client.namespace, client.pod, &["bash", "-c", CONNECT], &places);
    let said = said.stdout;
    client.all.iter().copied().filter(|place| said.lines().any(|line| line == *place)).collect()
}
