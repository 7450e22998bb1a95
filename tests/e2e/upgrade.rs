//! Tests that users survive an upgrade of the chart, and its removal and reinstallation.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::wait::eventually_blocking;

use crate::admission::creations_during;
use crate::load::{Load, now};
use crate::manifests;
use crate::release::{self, ADMISSION_LABEL, CONTROLLER_LABEL, CRDS, Chart, NAMESPACE};
use crate::scene::Scene;
use crate::{START, finally};

/// Objects that stay after an uninstallation, as the notes say.
const KEPT: [(&str, &str); 6] = [
    ("secret", "twofactor-master-key"),
    ("secret", "twofactor-keys"),
    ("secret", "twofactor-webhook-ca"),
    ("secret", "twofactor-redis"),
    ("secret", "twofactor-redis-certificate"),
    ("persistentvolumeclaim", "data-twofactor-redis-0"),
];
/// Timeout for a code to be accepted: some steps, because a code of a former one may be used.
const VERIFIED: Duration = Duration::from_mins(2);
/// Objects that are removed.
const NAMESPACED: &str = "deployments,statefulsets,services,serviceaccounts,configmaps,poddisruptionbudgets,networkpolicies,roles,rolebindings";
const CLUSTER_WIDE: &str = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings";

fn seeds(scene: &Scene<'_>, namespace: &str) -> BTreeMap<String, String> {
    let users = scene.kubectl().get(&["twofactorusers", "--namespace", namespace]);
    let names = users["items"]
        .as_array()
        .expect("users")
        .iter()
        .map(|user| user["metadata"]["name"].as_str().expect("a name"));
    names.map(|name| (name.to_owned(), scene.seed(namespace, name))).collect()
}

fn operators(scene: &Scene<'_>) -> Vec<Value> {
    let pods =
        |label| scene.kubectl().get(&["pods", "--selector", label, "--namespace", NAMESPACE]);
    let uids = |pods: Value| {
        let pods = pods["items"].as_array().expect("pods").clone();
        pods.into_iter().map(|mut pod| pod["metadata"]["uid"].take())
    };
    [CONTROLLER_LABEL, ADMISSION_LABEL].into_iter().flat_map(|label| uids(pods(label))).collect()
}

pub(crate) fn an_upgrade_keeps_seeds_and_fails_no_verify(scene: &Scene<'_>) {
    let load = Load::start(scene);
    let (before, old, restarts) = (seeds(scene, &load.people), operators(scene), load.restarts());
    let value = format!("operator.podAnnotations.upgraded=at-{}", now());
    release::install(&[&value]);
    eventually_blocking(START, "only new operators", || {
        let new = operators(scene);
        if new.iter().any(|uid| old.contains(uid)) || new.is_empty() {
            Err(format!("{new:?}"))
        } else {
            Ok(())
        }
    });
    load.wait_until_accepted_after(now());
    let (answers, _) = load.check(&[]);
    assert_eq!(seeds(scene, &load.people), before, "an upgrade changed a seed");
    assert_eq!(load.restarts(), restarts, "an upgrade restarted a service");
    scene.users(&load.people, &[("late", json!({ "deliveryMethod": "app" }))]);
    println!("          {answers} answers meanwhile, none failed");
}

/// Installs the previous release, upgrades it with an interruption, and rolls it back, under load.
/// Redis is not the chart's own, which an upgrade restarts.
pub(crate) fn an_upgrade_from_the_previous_release_and_back_fails_no_verify(scene: &Scene<'_>) {
    release::uninstall();
    finally(|| upgrade_and_back(scene), || installed(&Chart::present()));
}

fn installed(chart: &Chart) {
    let said = chart.upgrade();
    assert!(said.success, "helm upgrade failed: {said}");
}

fn upgrade_and_back(scene: &Scene<'_>) {
    let redis = scene.namespace("redis");
    scene.kubectl().apply(&manifests::redis_service(&redis));
    scene.start(&manifests::redis(&redis));
    let url = format!("redis://redis.{redis}.svc:6379");
    let (previous_chart, present_chart) =
        (Chart::previous().with_redis(&url), Chart::present().with_redis(&url));
    installed(&previous_chart);
    let previous = release::deployed_revision();
    let load = Load::start(scene);
    let (before, restarts) = (seeds(scene, &load.people), load.restarts());
    let created = creations_during(scene, || {
        // The previous release has no such Deployment, and helm waits for its pods.
        let get = ["get", release::CONTROLLER, "--namespace", NAMESPACE];
        let killed = present_chart.upgrade_unless(|| scene.kubectl().try_run(&get).is_ok());
        assert!(!killed.success, "helm was faster than its interruption: {killed}");
        load.wait_until_answered_after(now());
        // Helm itself refuses to go on, and says what is the matter.
        let refused = present_chart.upgrade();
        if !refused.success {
            let why = refused.to_string();
            assert!(why.contains("another operation"), "{why}");
            release::roll_back(&previous);
            installed(&present_chart);
        }
    });
    println!("          {created} creations during an interrupted upgrade");
    load.wait_until_accepted_after(now());
    assert_eq!(seeds(scene, &load.people), before, "the upgrade changed a seed");
    scene.users(&load.people, &[("late", json!({ "deliveryMethod": "app", "locale": "de" }))]);
    let app = "present";
    scene.start(&manifests::client_with_sidecar(&load.namespace, app, &load.people));
    verified(scene, &load, app, "late");

    let created = creations_during(scene, || release::roll_back(&previous));
    println!("          {created} creations during a rollback");
    load.wait_until_accepted_after(now());
    assert_eq!(seeds(scene, &load.people).len(), before.len() + 1, "the rollback lost a user");
    verified(scene, &load, app, "late");
    scene.users(&load.people, &[("later", json!({ "deliveryMethod": "app" }))]);
    let app = "previous";
    scene.start(&manifests::client_with_sidecar(&load.namespace, app, &load.people));
    verified(scene, &load, app, "later");

    let created = creations_during(scene, || installed(&present_chart));
    println!("          {created} creations during the next upgrade");
    load.wait_until_accepted_after(now());
    let after = seeds(scene, &load.people);
    assert!(before.iter().all(|(name, seed)| after.get(name) == Some(seed)), "a seed has changed");
    assert_eq!(load.restarts(), restarts, "a service was restarted");
    let (answers, _) = load.check(&[]);
    println!("          {answers} answers meanwhile, none failed");
}

/// The same with the chart's own Redis, which both restart: the upgrade switches TLS on, and the
/// rollback off again.
pub(crate) fn an_upgrade_of_the_charts_redis_from_the_previous_release_and_back_is_a_short_outage(
    scene: &Scene<'_>,
) {
    release::uninstall();
    // The present release may have marked its volume as one that no client without TLS uses.
    let volume = ["delete", "persistentvolumeclaim", "data-twofactor-redis-0"];
    scene.kubectl().run(&[&volume[..], &["--namespace", NAMESPACE]].concat());
    finally(|| upgrade_own_redis(scene), || installed(&Chart::present()));
}

fn upgrade_own_redis(scene: &Scene<'_>) {
    installed(&Chart::previous());
    let previous = release::deployed_revision();
    let load = Load::start(scene);
    let (before, restarts) = (seeds(scene, &load.people), load.restarts());
    let restarted = |change: &dyn Fn()| {
        let from = now().saturating_sub(1);
        change();
        load.wait_until_accepted_after(now());
        (from, now())
    };
    let upgrade = restarted(&|| installed(&Chart::present()));
    let rollback = restarted(&|| release::roll_back(&previous));
    let (answers, refused) = load.check(&[upgrade, rollback]);
    assert_eq!(seeds(scene, &load.people), before, "a seed has changed");
    assert_eq!(load.restarts(), restarts, "a service was restarted");
    let value = format!("{} of {answers} answers were 503", refused.len());
    scene.world.figure("upgrade of the chart's Redis from the previous release and back", value);
}

/// Waits until the sidecar of a pod has accepted a code of a user.
fn verified(scene: &Scene<'_>, load: &Load<'_>, pod: &str, user: &str) {
    let seed = scene.seed(&load.people, user);
    let mut last_step = None;
    eventually_blocking(VERIFIED, format_args!("a code of {user} to be accepted by {pod}"), || {
        // The code of a step is accepted once.
        let step = now() / 30;
        if last_step.replace(step) == Some(step) {
            return Err("waiting for the next code".to_owned());
        }
        let code = scene.app_code(&load.namespace, pod, &seed);
        let reply = scene.verify(&load.namespace, pod, user, &code);
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    });
}

pub(crate) fn users_survive_an_uninstallation_and_verify_after_the_next_installation(
    scene: &Scene<'_>,
) {
    let load = Load::start(scene);
    let kubectl = scene.kubectl();
    let short_lived = scene.namespace("short-lived");
    scene.users(&short_lived, &[("carol", json!({ "deliveryMethod": "app" }))]);
    let before = seeds(scene, &load.people);
    let master_key = kubectl.get(&["secret", "twofactor-master-key", "--namespace", NAMESPACE]);
    let from = now().saturating_sub(1);

    let notes = release::notes();
    let said = release::uninstall();
    let without = || {
        for crd in CRDS {
            assert!(
                kubectl.try_run(&["get", "crd", crd]).is_ok(),
                "{crd} was removed; helm said: {said}"
            );
        }
        assert_eq!(
            seeds(scene, &load.people),
            before,
            "an uninstall changed users; helm said: {said}"
        );
        let kept = kubectl.get(&["secret", "twofactor-master-key", "--namespace", NAMESPACE]);
        assert_eq!(kept["data"], master_key["data"], "the master key has changed");
        for (kind, name) in KEPT {
            assert!(
                notes.contains(name),
                "the chart's notes do not say that {kind} {name} is kept:\n{notes}"
            );
            kubectl.run(&["get", kind, name, "--namespace", NAMESPACE]);
        }
        let gone = [(NAMESPACED, NAMESPACE), (CLUSTER_WIDE, "")];
        for (kinds, namespace) in gone {
            let left = kubectl.run(&["get", kinds, "--output=name", "--namespace", namespace]);
            let left: Vec<_> = left.lines().filter(|name| name.contains("/twofactor")).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }

        // Nothing waits for the removed operator.
        let said =
            kubectl.say_within(Duration::from_mins(1), &["delete", "namespace", &short_lived], "");
        assert!(said.success, "a namespace with users is not deleted without the operator: {said}");
        // A labelled pod is not blocked either, and has no sidecar.
        scene.start(&manifests::client_with_sidecar(&load.namespace, "without", &load.people));
        let pod = kubectl.get(&["pod", "without", "--namespace", &load.namespace]);
        assert_eq!(pod["spec"]["initContainers"], Value::Null, "{pod}");
    };
    finally(without, || release::install(&[]));
    let back = now();
    scene.wait_for_event(&load.namespace, "without", "sidecar");
    load.wait_until_accepted_after(back);
    load.check(&[(from, back + 60)]);
    assert_eq!(seeds(scene, &load.people), before, "coming back changed a seed");
}
