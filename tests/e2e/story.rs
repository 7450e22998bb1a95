//! Tests the way from an empty cluster to a verified code, and which namespaces are allowed.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::kubernetes::finish;
use twofactor_tests::wait::eventually_blocking;

use crate::manifests::{self, SIDECAR};
use crate::release::{self, checkout};
use crate::scene::Scene;

/// The example's own namespaces.
const NAMESPACES: [&str; 3] = ["people", "kms", "mail"];
const STORY: Duration = Duration::from_mins(10);
/// Timeout for a pod to start after its namespace is allowed: the kubelet retries a missing Secret
/// after up to two minutes.
const ALLOWED: Duration = Duration::from_secs(150);

pub(crate) fn the_key_management_example_does_what_its_readme_shows(scene: &Scene<'_>) {
    for namespace in NAMESPACES {
        let there = scene.kubectl().try_run(&["get", "namespace", namespace]).is_ok();
        assert!(
            !there,
            "the namespace {namespace} exists already, and the story begins without it: remove it first"
        );
        scene.adopt(namespace);
    }
    let path = checkout().join("examples/key-management/README.md");
    let steps = steps(&std::fs::read_to_string(&path).expect("the story"));
    assert!(steps.len() > 5, "{} has only {} blocks of commands", path.display(), steps.len());

    let marked = steps
        .iter()
        .enumerate()
        .map(|(index, step)| format!("echo '{MARKER} {index}'\n{}", step.commands));
    let script = PREAMBLE.to_owned() + &marked.collect::<Vec<_>>().concat();
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(script).current_dir(checkout());
    let search = std::env::var("PATH").unwrap_or_default();
    bash.env("PATH", format!("{}:{search}", scene.kubectl().folder().display()));
    let said = finish(bash, "", STORY);
    assert!(said.success, "the story ended early: {said}");

    let parts: Vec<&str> = said.stdout.split(MARKER).skip(1).collect();
    assert_eq!(parts.len(), steps.len(), "{said}");
    for (part, step) in parts.iter().zip(&steps) {
        let mut lines = part.lines().map(comparable);
        for expected in step.shown.lines().filter(|line| !line.is_empty()) {
            let wanted = comparable(expected);
            assert!(
                lines.any(|line| line.contains(&wanted)),
                "after\n{}the story shows\n{expected}\nbut there was\n{part}{}",
                step.commands,
                said.stderr
            );
        }
    }
}

/// The first failure ends the script, and its background processes end with it.
const PREAMBLE: &str = "set -eo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n";
const MARKER: &str = "@@@ step";

/// A block of commands, and the output that the page shows after it.
struct Step {
    commands: String,
    shown: String,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    // Every second part is between two fences of three backticks.
    let mut follows_commands = false;
    for (index, part) in page.split("```").enumerate() {
        if index % 2 == 0 {
            // The shown output follows directly after the commands.
            follows_commands &= part.trim().is_empty();
        } else if let Some(commands) = part.strip_prefix("sh\n") {
            steps.push(Step { commands: commands.to_owned(), shown: String::new() });
            follows_commands = true;
        } else if let Some(step) = steps.last_mut().filter(|_| follows_commands) {
            part.clone_into(&mut step.shown);
            follows_commands = false;
        }
    }
    steps
}

/// Replaces digits, and runs of digits or spaces by one, because codes, times and columns differ
/// from run to run.
fn comparable(line: &str) -> String {
    let mut text = String::new();
    for character in line.trim().chars() {
        let same = if character.is_ascii_digit() { '#' } else { character };
        if !(text.ends_with(same) && (same == '#' || same == ' ')) {
            text.push(same);
        }
    }
    text
}

pub(crate) fn the_charts_own_test_passes(_: &Scene<'_>) {
    let said = release::test();
    assert!(said.success, "{said}");
    let text = said.to_string();
    for finding in [
        "one of 2 replicas of the controller leads",
        "Redis answers the leader",
        "trusts 2 replicas of the webhook",
        "a user becomes ready",
        "the webhook gives a labelled pod its sidecar",
        "the pod verifies a code",
        "everything is removed again",
    ] {
        assert!(text.contains(finding), "{finding}: {text}");
    }
}

pub(crate) fn a_pod_without_the_label_is_not_changed(scene: &Scene<'_>) {
    let namespace = scene.namespace("plain");
    let mut declined = manifests::client(&namespace, "declined");
    declined["metadata"]["labels"][manifests::INJECT] = json!("false");
    for (name, pod) in
        [("unlabelled", manifests::client(&namespace, "unlabelled")), ("declined", declined)]
    {
        scene.start(&pod);
        let made = scene.kubectl().get(&["pod", name, "--namespace", &namespace]);
        assert_eq!(made["spec"]["initContainers"], Value::Null, "{name} has got a container");
        assert_eq!(made["spec"]["containers"].as_array().map(Vec::len), Some(1));
        assert!(!made["metadata"]["annotations"].to_string().contains("twofactor"), "{made}");
        let volumes = made["spec"]["volumes"].to_string();
        assert!(!volumes.contains("twofactor"), "{volumes}");
        assert_eq!(
            scene.generate(&namespace, name, "alice").status,
            0,
            "a sidecar answers in {name}"
        );
    }
}

pub(crate) fn a_job_with_the_sidecar_completes(scene: &Scene<'_>) {
    let namespace = scene.restricted_namespace("jobs");
    scene.users(&namespace, &[("carol", json!({ "deliveryMethod": "app" }))]);
    let code = "$(oathtool --totp --base32 \"$SEED\")";
    let script = format!(
        "curl --fail-with-body --silent --show-error --json '{{\"username\":\"carol\",\"otp_code\":\"'\"{code}\"'\"}}' http://127.0.0.1:8004/auth/verify"
    );
    let mut job = manifests::job_with_sidecar(&namespace, "once", &namespace, &script);
    let seed = scene.seed(&namespace, "carol");
    job["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{ "name": "SEED", "value": seed }]);
    scene.create(&job);
    scene.kubectl().wait(
        Duration::from_mins(2),
        &["job/once", "--namespace", &namespace, "--for=condition=Complete"],
    );
    let log = scene.kubectl().run(&[
        "logs",
        "job/once",
        "--container",
        manifests::APP,
        "--namespace",
        &namespace,
    ]);
    assert!(log.contains("\"success\":true"), "{log}");
}

pub(crate) fn a_pod_in_a_namespace_that_is_not_allowed_waits_until_it_is_allowed(
    scene: &Scene<'_>,
) {
    let (people, other) = (scene.namespace("people"), scene.restricted_namespace("other"));
    scene.users(&people, &[("carol", json!({ "deliveryMethod": "app" }))]);
    scene.realm(&people, &[], None);

    let said = scene.create(&manifests::client_with_sidecar(&other, "waiting", &people));
    assert!(
        said.stderr.contains("Warning:") && said.stderr.contains(&people),
        "no warning was given: {said}"
    );
    scene.wait_for_event(&other, "waiting", &people);
    let pod = scene.kubectl().get(&["pod", "waiting", "--namespace", &other]);
    assert_eq!(pod["status"]["phase"], "Pending", "{pod}");

    scene.kubectl().apply(&manifests::realm(&people, &[&other], None));
    scene.kubectl().wait(ALLOWED, &["pod/waiting", "--namespace", &other, "--for=condition=Ready"]);
    let code = scene.app_code(&other, "waiting", &scene.seed(&people, "carol"));
    let reply =
        eventually_blocking(Duration::from_secs(10), "the sidecar to have its store", || {
            let reply = scene.verify(&other, "waiting", "carol", &code);
            if reply.status == 503 { Err(reply.body) } else { Ok(reply) }
        });
    assert_eq!(reply.status, 200, "{reply:?}");

    // After the namespace is removed, nothing is verified any more, without a restart.
    scene.kubectl().apply(&manifests::realm(&people, &[], None));
    eventually_blocking(Duration::from_secs(30), "a withdrawn namespace to be refused", || {
        let reply = scene.verify(&other, "waiting", "carol", "000000");
        if reply.status == 503 { Ok(()) } else { Err(format!("{reply:?}")) }
    });
}

pub(crate) fn a_sidecar_of_another_realm_does_not_know_these_users(scene: &Scene<'_>) {
    let (people, other) = (scene.namespace("people"), scene.namespace("other"));
    scene.users(&people, &[("carol", json!({ "deliveryMethod": "app" }))]);
    scene.users(&other, &[("oscar", json!({ "deliveryMethod": "app" }))]);
    scene.start(&manifests::client_with_sidecar(&other, "service", &other));
    let own = scene.app_code(&other, "service", &scene.seed(&other, "oscar"));
    let reply =
        eventually_blocking(Duration::from_secs(10), "the sidecar to have its store", || {
            let reply = scene.verify(&other, "service", "oscar", &own);
            if reply.status == 503 { Err(reply.body) } else { Ok(reply) }
        });
    assert_eq!(reply.status, 200, "{reply:?}");
    let foreign = scene.app_code(&other, "service", &scene.seed(&people, "carol"));
    let reply = scene.verify(&other, "service", "carol", &foreign);
    assert_eq!(reply.status, 404, "{reply:?}");
}

pub(crate) fn a_code_mailed_for_one_namespace_does_not_verify_in_another(scene: &Scene<'_>) {
    let (people, asking, other) =
        (scene.restricted_namespace("people"), scene.namespace("asking"), scene.namespace("other"));
    scene.mail_server(&people);
    scene.users(&people, &[("alice", json!({ "email": "alice@example.test" }))]);
    scene.realm(&people, &[&asking, &other], Some("providers"));
    scene.start(&manifests::client_with_sidecar(&asking, "service", &people));
    scene.start(&manifests::client_with_sidecar(&other, "service", &people));

    let reply = eventually_blocking(Duration::from_secs(20), "a code to be sent", || {
        let reply = scene.generate(&asking, "service", "alice");
        if [400, 503].contains(&reply.status) { Err(reply.body) } else { Ok(reply) }
    });
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(!reply.body.contains("otp_code"), "the code is in the answer: {reply:?}");
    let code = scene.mailed_code(&people, "alice@example.test");
    let elsewhere =
        eventually_blocking(Duration::from_secs(10), "the other sidecar to have its store", || {
            let reply = scene.verify(&other, "service", "alice", &code);
            if reply.status == 503 { Err(reply.body) } else { Ok(reply) }
        });
    // The code is of the current or a past step; it must not be accepted in either case.
    assert!([400, 401].contains(&elsewhere.status), "{elsewhere:?}");
    let reply = scene.verify(&asking, "service", "alice", &code);
    assert_eq!((reply.status, reply.body.as_str()), (200, "{\"success\":true}"));
    assert_eq!(scene.verify(&asking, "service", "alice", &code).status, 400);
    let log =
        scene.kubectl().run(&["logs", "service", "--container", SIDECAR, "--namespace", &asking]);
    assert!(
        !log.contains(&code) && !log.contains("alice@example.test"),
        "the log contains a code or an address: {log}"
    );
}
