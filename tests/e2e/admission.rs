//! Tests which pods the webhook admits and refuses, and what happens while it is unavailable.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::wait::eventually_blocking;

use crate::manifests::{self, INJECT, SIDECAR};
use crate::release::{self, ADMISSION, ADMISSION_LABEL, CONTROLLER, CONTROLLER_LABEL, NAMESPACE};
use crate::scene::{Scene, decoded};
use crate::{START, finally};

/// Timeout for the replacement of an authority, including its grace times.
const ROTATION: Duration = Duration::from_mins(6);
/// Memory with which a controller starts, and that is not enough for its work.
const TOO_LITTLE: &str = "4500Ki";
/// Number of creations that have to succeed after the disturbance, because certificates still
/// change for a moment.
const CREATIONS_AFTER: u32 = 100;

pub(crate) fn the_restricted_level_admits_pods_with_the_sidecar(scene: &Scene<'_>) {
    let namespace = scene.restricted_namespace("restricted");
    scene.users(&namespace, &[("carol", json!({ "deliveryMethod": "app" }))]);
    scene.start(&manifests::client_with_sidecar(&namespace, "service", &namespace));
    let pod = scene.kubectl().get(&["pod", "service", "--namespace", &namespace]);
    let sidecar = &pod["spec"]["initContainers"][0];
    assert_eq!(
        (&sidecar["name"], &sidecar["restartPolicy"]),
        (&json!(SIDECAR), &json!("Always")),
        "{sidecar}"
    );
    for (list, name) in
        [("requests", "cpu"), ("requests", "memory"), ("limits", "cpu"), ("limits", "memory")]
    {
        assert!(sidecar["resources"][list][name].is_string(), "no {list} of {name}: {sidecar}");
    }
    let reply = scene.verify(&namespace, "service", "carol", "000000");
    assert!([401, 503].contains(&reply.status), "{reply:?}");
}

/// A change that makes a valid pod invalid.
type Change<'a> = &'a dyn Fn(&mut Value);

pub(crate) fn an_invalid_pod_is_refused_with_a_sentence_that_names_the_mistake(scene: &Scene<'_>) {
    let namespace = scene.namespace("wrong");
    let right = manifests::client_with_sidecar(&namespace, "service", &namespace);
    assert!(scene.kubectl().create_dry(&right).success, "a pod with nothing wrong is refused");
    let port = |port: u16| json!([{ "containerPort": port }]);
    let secret = format!("twofactor-{namespace}");
    let credentials = json!([{ "name": "mine", "secret": { "secretName": secret } }]);
    let mount = json!([{ "name": "mine", "mountPath": "/mine" }]);
    let cases: [(&str, Change<'_>); 11] = [
        (INJECT, &|pod| pod["metadata"]["labels"][INJECT] = json!("yes")),
        ("hostNetwork", &|pod| pod["spec"]["hostNetwork"] = json!(true)),
        ("hostPID", &|pod| pod["spec"]["hostPID"] = json!(true)),
        ("shareProcessNamespace", &|pod| pod["spec"]["shareProcessNamespace"] = json!(true)),
        ("8004", &|pod| pod["spec"]["containers"][0]["ports"] = port(8004)),
        ("18004", &|pod| pod["spec"]["containers"][0]["ports"] = port(18004)),
        (SIDECAR, &|pod| pod["spec"]["containers"][0]["name"] = json!(SIDECAR)),
        ("spec.resources.requests[cpu]", &|pod| {
            let request = json!({ "requests": { "cpu": "100m" } });
            pod["spec"]["containers"][0]["resources"] = request.clone();
            pod["spec"]["resources"] = request;
        }),
        ("credentials of a realm", &|pod| {
            pod["spec"]["volumes"] = credentials.clone();
            pod["spec"]["containers"][0]["volumeMounts"] = mount.clone();
        }),
        ("credentials of a realm", &|pod| {
            let key = json!({ "secretKeyRef": { "name": secret, "key": "redis-url" } });
            pod["spec"]["containers"][0]["env"] = json!([{ "name": "URL", "valueFrom": key }]);
        }),
        ("credentials of a realm", &|pod| {
            pod["spec"]["containers"][0]["envFrom"] = json!([{ "secretRef": { "name": secret } }]);
        }),
    ];
    for (word, change) in cases {
        let mut pod = right.clone();
        change(&mut pod);
        let said = scene.kubectl().create_dry(&pod);
        assert!(!said.success, "a pod with a wrong {word} is admitted");
        assert!(said.stderr.contains("denied the request"), "not refused by the webhook: {said}");
        let sentence = said.stderr.split("denied the request:").nth(1).unwrap_or_default();
        assert!(sentence.contains(word), "the sentence does not say {word}: {said}");
    }
}

pub(crate) fn while_the_webhook_is_down_only_labelled_pods_are_refused(scene: &Scene<'_>) {
    let namespace = scene.namespace("outage");
    let kubectl = scene.kubectl();
    scene.users(&namespace, &[("carol", json!({ "deliveryMethod": "app" }))]);
    let replicas = replicas(scene, ADMISSION);
    let labelled = manifests::client_with_sidecar(&namespace, "labelled", &namespace);

    kubectl.run(&["scale", ADMISSION, "--replicas=0", "--namespace", NAMESPACE]);
    let outage = || {
        kubectl.wait(
            START,
            &["pods", "--selector", ADMISSION_LABEL, "--for=delete", "--namespace", NAMESPACE],
        );
        let said =
            eventually_blocking(Duration::from_secs(30), "a labelled pod to be refused", || {
                let said = kubectl.create_dry(&labelled);
                if said.success { Err("it is admitted".to_owned()) } else { Ok(said) }
            });
        assert!(
            said.stderr.contains("failed calling webhook") && said.stderr.contains("twofactor"),
            "{said}"
        );
        scene.start(&manifests::client(&namespace, "unlabelled"));
    };
    finally(outage, || {
        kubectl.run(&["scale", ADMISSION, &replicas, "--namespace", NAMESPACE]);
        kubectl.wait_for_rollout(START, NAMESPACE, ADMISSION);
    });
    eventually_blocking(Duration::from_secs(30), "the labelled pod to be admitted", || {
        kubectl.create(&labelled).into_result().map(drop)
    });
    scene.wait_for_pod(&namespace, "labelled");
}

/// The roots that API servers trust for the webhook: whole PEM blocks.
fn trusted(scene: &Scene<'_>) -> Result<BTreeSet<String>, String> {
    let hook = scene.kubectl().try_get(&["mutatingwebhookconfiguration", "twofactor-operator"])?;
    let bundle =
        decoded(&hook["webhooks"][0]["clientConfig"]["caBundle"]).ok_or("the bundle is empty")?;
    let roots = bundle.split_inclusive("-----END CERTIFICATE-----").map(str::trim);
    Ok(roots.filter(|root| !root.is_empty()).map(str::to_owned).collect())
}

/// Waits until a new root is trusted, and then until none of the earlier ones is.
fn wait_for_rotation(scene: &Scene<'_>, before: &BTreeSet<String>) {
    for (what, is_done) in [
        (
            "another root to be trusted",
            (|now, before| !now.is_subset(before)) as fn(&BTreeSet<_>, &BTreeSet<_>) -> bool,
        ),
        ("the roots of before to be trusted no more", |now, before| now.is_disjoint(before)),
    ] {
        eventually_blocking(ROTATION, what, || {
            let now = trusted(scene)?;
            if is_done(&now, before) {
                Ok(())
            } else {
                Err(format!("{} of {} are new", now.difference(before).count(), now.len()))
            }
        });
    }
}

pub(crate) fn a_lost_ca_and_a_rotated_one_fail_no_creation(scene: &Scene<'_>) {
    let created = creations_during(scene, || {
        let short = || {
            // The chart's own values begin at an hour.
            release::install(&[
                "admission.env[0].name=TWOFACTOR_WEBHOOK_CA_LIFETIME",
                "admission.env[0].value=45s",
                "admission.env[1].name=TWOFACTOR_WEBHOOK_CERTIFICATE_LIFETIME",
                "admission.env[1].value=15s",
            ]);
            // The first loss creates a CA with a short lifetime, and the second pass waits until
            // that expires.
            for lose in [true, false] {
                let before = trusted(scene).expect("the webhook's bundle");
                if lose {
                    scene.kubectl().run(&[
                        "delete",
                        "secret",
                        "twofactor-webhook-ca",
                        "--namespace",
                        NAMESPACE,
                    ]);
                }
                wait_for_rotation(scene, &before);
            }
        };
        finally(short, || {
            release::install(&["admission.env=null"]);
        });
    });
    println!("          {created} creations while the CA was lost and replaced, and then rotated");
}

pub(crate) fn a_rolling_restart_fails_no_creation(scene: &Scene<'_>) {
    let kubectl = scene.kubectl();
    let created = creations_during(scene, || {
        for deployment in [ADMISSION, CONTROLLER] {
            kubectl.run(&["rollout", "restart", deployment, "--namespace", NAMESPACE]);
        }
        for deployment in [ADMISSION, CONTROLLER] {
            kubectl.wait_for_rollout(START, NAMESPACE, deployment);
        }
    });
    println!("          {created} creations while both programs were restarted");
}

/// The flag with which `kubectl scale` restores a Deployment.
fn replicas(scene: &Scene<'_>, deployment: &str) -> String {
    let deployment = scene.kubectl().get(&[deployment, "--namespace", NAMESPACE]);
    format!("--replicas={}", deployment["spec"]["replicas"])
}

/// Runs `disturb` while labelled pods are created, starts one of them meanwhile, runs `mend`, and
/// waits until the controller works again.
fn admitted_without_a_controller(
    scene: &Scene<'_>,
    what: &str,
    disturb: impl FnOnce(),
    mend: impl FnOnce(),
) {
    let namespace = scene.namespace("apart");
    scene.users(&namespace, &[("carol", json!({ "deliveryMethod": "app" }))]);
    // The credentials are there as soon as a pod has asked for them.
    scene.start(&manifests::client_with_sidecar(&namespace, "before", &namespace));
    let created = creations_during(scene, || {
        let meanwhile = || {
            disturb();
            scene.start(&manifests::client_with_sidecar(&namespace, "meanwhile", &namespace));
        };
        finally(meanwhile, mend);
    });
    println!("          {created} creations {what}");
    scene.kubectl().wait_for_rollout(START, NAMESPACE, CONTROLLER);
    scene.users(&namespace, &[("late", json!({ "deliveryMethod": "app" }))]);
}

pub(crate) fn a_stopped_controller_fails_no_creation(scene: &Scene<'_>) {
    let (kubectl, replicas) = (scene.kubectl(), replicas(scene, CONTROLLER));
    let scale = |replicas: &str| {
        let _ = kubectl.run(&["scale", CONTROLLER, replicas, "--namespace", NAMESPACE]);
    };
    let stop = || {
        scale("--replicas=0");
        wait_for_no_controller(scene);
    };
    admitted_without_a_controller(scene, "without a controller", stop, || scale(&replicas));
}

fn wait_for_no_controller(scene: &Scene<'_>) {
    let pods = ["pods", "--selector", CONTROLLER_LABEL, "--for=delete", "--namespace", NAMESPACE];
    scene.kubectl().wait(START, &pods);
}

pub(crate) fn an_emptied_redis_password_fails_no_creation(scene: &Scene<'_>) {
    let kubectl = scene.kubectl();
    let password = scene.secret(NAMESPACE, "twofactor-redis", "password");
    let set = |password: &str| {
        let patch = json!({ "stringData": { "password": password } }).to_string();
        let secret = ["secret", "twofactor-redis", "--namespace", NAMESPACE];
        let _ = kubectl.run(&[&["patch"], &secret[..], &["--patch", &patch]].concat());
    };
    let empty = || {
        set("");
        kubectl.run(&["rollout", "restart", CONTROLLER, "--namespace", NAMESPACE]);
        kubectl.wait_for_rollout(START, NAMESPACE, CONTROLLER);
        scene.wait_for_event(NAMESPACE, "twofactor-redis", "empty");
    };
    let what = "while the password of Redis was empty";
    admitted_without_a_controller(scene, what, empty, || set(&password));
}

pub(crate) fn a_controller_killed_for_memory_fails_no_creation(scene: &Scene<'_>) {
    let (kubectl, replicas) = (scene.kubectl(), replicas(scene, CONTROLLER));
    let mut deployment = kubectl.get(&[CONTROLLER, "--namespace", NAMESPACE]);
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    let (name, resources) = (container["name"].take(), container["resources"].take());
    let patch = |resources: &Value| {
        let container = json!({ "name": name, "resources": resources });
        let patch = json!({ "spec": { "template": { "spec": { "containers": [container] } } } })
            .to_string();
        kubectl.run(&["patch", CONTROLLER, "--patch", &patch, "--namespace", NAMESPACE]);
    };
    let scale = |replicas: &str| {
        let _ = kubectl.run(&["scale", CONTROLLER, replicas, "--namespace", NAMESPACE]);
    };
    let kill = || {
        // An old replica would stay until a new one is ready.
        scale("--replicas=0");
        wait_for_no_controller(scene);
        patch(&json!({ "limits": { "memory": TOO_LITTLE }, "requests": { "memory": TOO_LITTLE } }));
        scale(&replicas);
        // It starts, and is killed as soon as it has work.
        let namespace = scene.namespace("many");
        let app = json!({ "deliveryMethod": "app" });
        let users: Vec<Value> =
            (0..200).map(|n| manifests::user(&namespace, &format!("user{n}"), &app)).collect();
        kubectl.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": users }));
        eventually_blocking(START, "the controller to be killed for memory", || {
            let pods = ["pods", "--selector", CONTROLLER_LABEL, "--namespace", NAMESPACE];
            let pods = kubectl.try_get(&pods)?["items"].to_string();
            if pods.contains("OOMKilled") { Ok(()) } else { Err(pods) }
        });
    };
    admitted_without_a_controller(
        scene,
        "while the controller was killed for memory",
        kill,
        || {
            patch(&resources);
        },
    );
}

/// Creates labelled pods one after the other while `disturb` runs and for some time afterwards.
/// Panics if one is refused.
pub(crate) fn creations_during(scene: &Scene<'_>, disturb: impl FnOnce()) -> u32 {
    let namespace = scene.namespace("stream");
    let pod = manifests::client_with_sidecar(&namespace, "stream", &namespace);
    let (over, created) = (AtomicBool::new(false), AtomicU32::new(0));
    let refused = thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let mut refused = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let said = scene.kubectl().create_dry(&pod);
                if !said.success {
                    refused.push(said.to_string());
                }
                created.fetch_add(1, Ordering::Relaxed);
            }
            refused
        });
        let disturbed = || {
            disturb();
            let soon = created.load(Ordering::Relaxed) + CREATIONS_AFTER;
            eventually_blocking(START, "more creations", || {
                created.load(Ordering::Relaxed) >= soon
            });
        };
        finally(disturbed, || over.store(true, Ordering::Relaxed));
        stream.join().expect("the stream of creations")
    });
    let created = created.into_inner();
    assert!(
        refused.is_empty(),
        "{} of {created} creations failed:\n{}",
        refused.len(),
        refused.join("\n")
    );
    created
}
