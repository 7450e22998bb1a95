//! Tests decisions about many pods, and what holds for every pod that gets the sidecar.

use json_patch::Patch;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};
use twofactor_api::labels::{
    CREDENTIALS_VOLUME, INJECT_LABEL, INJECTED_ANNOTATION, INJECTED_IMAGE_ANNOTATION,
    REALM_ANNOTATION, SIDECAR_CONTAINER,
};

use super::defaults::SidecarDefaults;
use super::mesh::{MeshKind, Position};
use super::pod::{Decision, Injection, debug, inject};
use super::reason::Reason;
use super::samples::{defaults, options, pod, review};
use super::{annotations, review as reviews};
use crate::state::realm_policies::NamespaceAccess;

/// `people` and `other` allow `kms`, `shut` does not, and there are no other realms.
fn access(realm: &str, namespace: &str) -> NamespaceAccess {
    match realm {
        _ if realm == namespace => NamespaceAccess::Allowed,
        "people" | "other" => NamespaceAccess::Allowed,
        "shut" => NamespaceAccess::NotAllowed,
        _ => NamespaceAccess::NoSuchNamespace,
    }
}

fn typed(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).unwrap()
}

fn decide(pod: &Value) -> Decision {
    inject(&typed(pod), "kms", &defaults(), &access, &|_| Vec::new())
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod();
    change(&mut pod);
    pod
}

fn annotated(pairs: &[(&str, &str)]) -> Value {
    with(|pod| pod["metadata"]["annotations"] = json!(super::samples::annotations(pairs)))
}

fn injected_with(pod: &Value, defaults: &SidecarDefaults) -> (Value, Injection) {
    let Decision::Inject(injection) =
        inject(&typed(pod), "kms", defaults, &access, &|_| Vec::new())
    else {
        panic!("it is not injected: {:?}", decide(pod));
    };
    let patch: Patch = serde_json::from_value(injection.patch.clone()).unwrap();
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    (patched, injection)
}

fn injected(pod: &Value) -> Value {
    injected_with(pod, &defaults()).0
}

fn sidecar(pod: &Value) -> &Value {
    &pod["spec"]["initContainers"][0]
}

fn variable<'a>(pod: &'a Value, name: &str) -> &'a str {
    let variables = sidecar(pod)["env"].as_array().unwrap();
    variables.iter().find(|variable| variable["name"] == name).unwrap()["value"].as_str().unwrap()
}

#[track_caller]
fn refused(pod: &Value, reason: Reason, words: &[&str]) {
    let Decision::Refuse(refusal) = decide(pod) else {
        panic!("it is not refused for {reason:?}: {:?}", decide(pod));
    };
    assert_eq!(refusal.reason, reason, "{}", refusal.sentence);
    for word in words {
        assert!(refusal.sentence.contains(word), "{word:?} is not in: {}", refusal.sentence);
    }
}

#[track_caller]
fn skipped(pod: &Value, reason: Reason) {
    let decision = decide(pod);
    assert!(matches!(decision, Decision::Skip { .. }), "{decision:?}");
    assert_eq!(decision.reason(), reason);
}

#[test]
fn only_the_label_true_asks_and_only_the_two_values_are_known() {
    let label = |value: &str| with(|pod| pod["metadata"]["labels"][INJECT_LABEL] = value.into());
    assert!(matches!(decide(&label("true")), Decision::Inject(_)));
    skipped(&label("false"), Reason::SwitchedOff);
    skipped(&with(|pod| pod["metadata"]["labels"] = json!({})), Reason::NotAsked);
    skipped(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}), Reason::NotAsked);
    for value in ["", "True", "yes", "enabled", " true", "1"] {
        refused(
            &label(value),
            Reason::Label,
            &[INJECT_LABEL, "\"true\" or \"false\"", &format!("{value:?}")],
        );
    }
}

#[test]
fn a_pod_whose_label_says_false_is_never_checked() {
    let mut pod = with(|pod| pod["metadata"]["labels"][INJECT_LABEL] = "false".into());
    pod["spec"]["hostNetwork"] = true.into();
    pod["metadata"]["annotations"] = json!({annotations::PORT_ANNOTATION: "none"});
    skipped(&pod, Reason::SwitchedOff);
}

#[test]
fn the_sidecar_is_a_native_one_with_everything_that_restricted_asks_for() {
    let pod = injected(&pod());
    let sidecar = sidecar(&pod);
    assert_eq!(
        *sidecar,
        json!({
            "name": "twofactor-sidecar",
            "image": "fountainai/twofactor-sidecar:0.1.0",
            "imagePullPolicy": "IfNotPresent",
            "restartPolicy": "Always",
            "args": ["serve"],
            "env": [
                {"name": "TWOFACTOR_PORT", "value": "8004"},
                {"name": "TWOFACTOR_ADMIN_LISTEN", "value": "*:18004"},
                {"name": "TWOFACTOR_LOG", "value": "info"},
                {"name": "TWOFACTOR_LOG_FORMAT", "value": "json"},
                {"name": "TWOFACTOR_TRUSTED_PROXIES", "value": "0"},
            ],
            "ports": [{"name": "twofactor-admin", "containerPort": 18004, "protocol": "TCP"}],
            "volumeMounts": [
                {"name": "twofactor-credentials", "mountPath": "/var/run/secrets/twofactor", "readOnly": true},
            ],
            "startupProbe": {
                "exec": {"command": ["/usr/local/bin/twofactor-sidecar", "probe", "livez"]},
                "periodSeconds": 1,
                "timeoutSeconds": 5,
                "failureThreshold": 60,
            },
            "livenessProbe": {
                "exec": {"command": ["/usr/local/bin/twofactor-sidecar", "probe", "livez"]},
                "periodSeconds": 60,
                "timeoutSeconds": 5,
                "failureThreshold": 2,
            },
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"},
                "limits": {"cpu": "500m", "memory": "64Mi"},
            },
            "securityContext": {
                "runAsNonRoot": true,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    );
    // No field is misspelt: the types know every one of them.
    let container: Container = serde_json::from_value(sidecar.clone()).unwrap();
    assert_eq!(serde_json::to_value(container).unwrap(), *sidecar);
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{
            "name": "twofactor-credentials",
            "secret": {"secretName": "twofactor-kms", "optional": false, "defaultMode": 0o444},
        }])
    );
    assert_eq!(
        pod["metadata"]["annotations"],
        json!({
            INJECTED_ANNOTATION: env!("CARGO_PKG_VERSION"),
            INJECTED_IMAGE_ANNOTATION: "fountainai/twofactor-sidecar:0.1.0",
            REALM_ANNOTATION: "kms",
        })
    );
    assert!(pod["spec"].get("imagePullSecrets").is_none());
}

#[test]
fn annotations_change_the_sidecar() {
    let pod = injected(&annotated(&[
        (REALM_ANNOTATION, "people"),
        (annotations::PORT_ANNOTATION, "9000"),
        (annotations::ADMIN_PORT_ANNOTATION, "9001"),
        (annotations::LOG_ANNOTATION, "debug"),
        (annotations::IMAGE_ANNOTATION, "mirror.example/sidecar:2"),
        (annotations::MEMORY_LIMIT_ANNOTATION, "128Mi"),
        ("else", "kept"),
    ]));
    assert_eq!(variable(&pod, "TWOFACTOR_PORT"), "9000");
    assert_eq!(variable(&pod, "TWOFACTOR_ADMIN_LISTEN"), "*:9001");
    assert_eq!(variable(&pod, "TWOFACTOR_LOG"), "debug");
    let sidecar = sidecar(&pod);
    assert_eq!(sidecar["image"], "mirror.example/sidecar:2");
    assert_eq!(sidecar["resources"]["limits"]["memory"], "128Mi");
    assert_eq!(sidecar["ports"][0]["containerPort"], 9001);
    assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], "twofactor-people");
    assert_eq!(pod["metadata"]["annotations"][REALM_ANNOTATION], "people");
    assert_eq!(pod["metadata"]["annotations"]["else"], "kept");
}

#[test]
fn a_pod_with_an_invalid_annotation_is_refused() {
    refused(
        &annotated(&[(annotations::PORT_ANNOTATION, "0")]),
        Reason::Annotation,
        &[annotations::PORT_ANNOTATION, "1 to 65535"],
    );
}

#[test]
fn a_user_that_the_pod_names_is_kept_unless_it_is_root() {
    let run_as = |context: Value| {
        let pod = injected(&with(|pod| pod["spec"]["securityContext"] = context));
        sidecar(&pod)["securityContext"].clone()
    };
    for context in [
        json!({}),
        json!({"runAsUser": 1000, "runAsGroup": 0, "fsGroup": 0}),
        json!({"fsGroup": 2000}),
    ] {
        let of_sidecar = run_as(context);
        assert!(of_sidecar.get("runAsUser").is_none() && of_sidecar.get("runAsGroup").is_none());
    }
    for context in
        [json!({"runAsUser": 0}), json!({"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false})]
    {
        let of_sidecar = run_as(context);
        assert_eq!(
            (&of_sidecar["runAsUser"], &of_sidecar["runAsGroup"]),
            (&json!(65532), &json!(65532))
        );
        assert_eq!(of_sidecar["runAsNonRoot"], true);
    }
}

#[test]
fn a_pod_in_a_namespace_that_is_not_allowed_is_injected_with_a_warning() {
    let warnings = |realm: &str| {
        let (pod, injection) = injected_with(&annotated(&[(REALM_ANNOTATION, realm)]), &defaults());
        assert_eq!(sidecar(&pod)["name"], SIDECAR_CONTAINER);
        assert_eq!(injection.realm, realm);
        (injection.reason, injection.warnings)
    };
    assert_eq!(warnings("people"), (Reason::Allowed, vec![]));
    assert_eq!(warnings("kms"), (Reason::Allowed, vec![]));
    let (reason, shut) = warnings("shut");
    assert_eq!(reason, Reason::NamespaceNotAllowed);
    assert_eq!(
        shut,
        [
            "this pod will wait for the Secret twofactor-shut until the TwoFactorRealm `default` in the namespace \
          shut allows the namespace kms"
        ]
    );
    let (reason, missing) = warnings("missing");
    assert_eq!(reason, Reason::NoSuchNamespace);
    assert!(
        missing[0].contains("twofactor-missing")
            && missing[0].contains("there is no namespace missing")
    );
}

#[test]
fn pods_that_share_their_network_or_processes_are_refused() {
    let table = [
        ("hostNetwork", Reason::HostNetwork),
        ("hostPID", Reason::HostProcesses),
        ("shareProcessNamespace", Reason::SharedProcesses),
    ];
    for (field, reason) in table {
        let set = |value: bool| with(|pod| pod["spec"][field] = value.into());
        refused(&set(true), reason, &[&format!("spec.{field}: must be false")]);
        assert!(matches!(decide(&set(false)), Decision::Inject(_)));
    }
}

#[test]
fn pods_for_windows_are_refused() {
    let windows = with(|pod| pod["spec"]["os"] = json!({"name": "windows"}));
    refused(&windows, Reason::OperatingSystem, &["spec.os.name", "\"linux\"", "\"windows\""]);
    let selected = with(|pod| pod["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "windows"}));
    refused(&selected, Reason::OperatingSystem, &["spec.nodeSelector[kubernetes.io/os]"]);
    let linux = with(|pod| pod["spec"]["os"] = json!({"name": "linux"}));
    assert!(matches!(decide(&linux), Decision::Inject(_)));
}

#[test]
fn pods_that_only_nodes_of_windows_match_are_refused() {
    let os = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "kubernetes.io/os", "operator": operator, "values": values}]});
    let former = json!({"matchExpressions": [{"key": "beta.kubernetes.io/os", "operator": "In", "values": ["windows"]}]});
    let zone = json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]});
    let on = |terms: &[Value]| {
        with(|pod| {
            pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!({"nodeSelectorTerms": terms});
        })
    };
    for terms in [
        vec![os("In", &["windows"])],
        vec![os("NotIn", &["linux"]), former],
        vec![os("DoesNotExist", &[])],
    ] {
        let words = ["spec.affinity.nodeAffinity", "kubernetes.io/os: linux"];
        refused(&on(&terms), Reason::OperatingSystem, &words);
    }
    for terms in [
        vec![os("In", &["windows", "linux"])],
        vec![os("In", &["windows"]), zone.clone()],
        vec![os("NotIn", &["windows"])],
        vec![os("Exists", &[])],
        vec![zone],
        Vec::new(),
    ] {
        assert!(matches!(decide(&on(&terms)), Decision::Inject(_)), "{terms:?}");
    }
}

#[test]
fn ephemeral_containers_must_not_see_the_credentials_or_the_sidecars_processes() {
    let decide = |pod: &Value| debug(&typed(pod), "kms", &access);
    let debugged = |container: Value| {
        let mut pod = injected(&pod());
        pod["spec"]["ephemeralContainers"] = json!([{"name": "earlier", "image": "x"}, container]);
        pod
    };
    let mount = json!([{"name": CREDENTIALS_VOLUME, "mountPath": "/x"}]);
    let from = json!([{"secretRef": {"name": "twofactor-kms"}}]);
    for (container, words) in [
        (
            json!({"name": "debug", "image": "x", "volumeMounts": mount}),
            "only the sidecar may have",
        ),
        (json!({"name": "debug", "image": "x", "envFrom": from}), "only the sidecar may have"),
        (json!({"name": "debug", "image": "x", "targetContainerName": SIDECAR_CONTAINER}), "/proc"),
    ] {
        let Decision::Refuse(refusal) = decide(&debugged(container)) else { panic!("{words}") };
        assert_eq!(refusal.reason, Reason::CredentialsExposed);
        assert!(refusal.sentence.starts_with("spec.ephemeralContainers[\"debug\"]"));
        assert!(refusal.sentence.contains(words), "{}", refusal.sentence);
    }
    let harmless = json!({"name": "debug", "image": "x", "targetContainerName": "app"});
    assert!(matches!(decide(&debugged(harmless.clone())), Decision::Skip { .. }));
    let mut unlabelled = debugged(harmless);
    unlabelled["metadata"]["labels"] = json!({});
    assert_eq!(decide(&unlabelled).reason(), Reason::NotAsked);
}

#[test]
fn the_mirror_of_a_static_pod_is_refused() {
    refused(
        &annotated(&[("kubernetes.io/config.mirror", "abc")]),
        Reason::StaticPod,
        &["static pod"],
    );
}

#[test]
fn a_port_of_the_sidecar_must_not_be_another_containers() {
    for port in [8004, 18004] {
        let app = |ports: Value| with(|pod| pod["spec"]["containers"][0]["ports"] = ports);
        let containers = app(json!([{"containerPort": 80}, {"name": "x", "containerPort": port}]));
        let words =
            ["spec.containers[\"app\"]", &port.to_string(), "annotation twofactor.fountainai.io/"];
        refused(&containers, Reason::PortTaken, &words);
        let on_host = app(json!([{"containerPort": 80, "hostPort": port, "protocol": "TCP"}]));
        assert!(matches!(decide(&on_host), Decision::Inject(_)), "it leads to another port");
        let datagrams = app(json!([{"containerPort": port, "protocol": "UDP"}]));
        assert!(matches!(decide(&datagrams), Decision::Inject(_)));
        let init = with(|pod| {
            pod["spec"]["initContainers"] =
                json!([{"name": "init", "ports": [{"containerPort": port}]}]);
        });
        refused(&init, Reason::PortTaken, &["spec.initContainers[\"init\"]"]);
    }
    let moved = |annotation: &str| {
        let mut pod = annotated(&[(annotation, "9999")]);
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 9999}]);
        pod
    };
    refused(&moved(annotations::PORT_ANNOTATION), Reason::PortTaken, &["9999"]);
    refused(&moved(annotations::ADMIN_PORT_ANNOTATION), Reason::PortTaken, &["9999"]);
    let mut elsewhere = annotated(&[(annotations::PORT_ANNOTATION, "9999")]);
    elsewhere["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8004}]);
    assert!(matches!(decide(&elsewhere), Decision::Inject(_)));
}

#[test]
fn a_probe_of_the_apis_port_means_that_the_container_listens_there() {
    let probes = [
        json!({"readinessProbe": {"httpGet": {"path": "/", "port": 8004}}}),
        json!({"livenessProbe": {"tcpSocket": {"port": 8004}}}),
        json!({"startupProbe": {"grpc": {"port": 8004}}}),
        json!({"lifecycle": {"postStart": {"httpGet": {"path": "/", "port": 8004}}}}),
    ];
    let app = |probe: &Value| {
        with(|pod| {
            let container = pod["spec"]["containers"][0].as_object_mut().unwrap();
            container.extend(probe.as_object().unwrap().clone());
        })
    };
    for probe in probes {
        refused(&app(&probe), Reason::PortTaken, &["a probe or lifecycle hook uses port 8004"]);
    }
    for probe in [
        // An author may want the pod's readiness to depend on the sidecar's.
        json!({"readinessProbe": {"httpGet": {"path": "/readyz", "port": 18004}}}),
        json!({"readinessProbe": {"httpGet": {"path": "/", "port": 8004, "host": "example.org"}}}),
        json!({"readinessProbe": {"exec": {"command": ["true"]}}}),
    ] {
        assert!(matches!(decide(&app(&probe)), Decision::Inject(_)), "{probe}");
    }
}

#[test]
fn a_container_or_volume_that_only_has_the_name_is_refused() {
    for list in ["containers", "initContainers"] {
        let pod =
            with(|pod| pod["spec"][list] = json!([{"name": SIDECAR_CONTAINER, "image": "mine"}]));
        refused(&pod, Reason::ContainerNameTaken, &[list, SIDECAR_CONTAINER, "another"]);
    }
    let mut forged = annotated(&[(INJECTED_ANNOTATION, "0.1.0")]);
    forged["spec"]["initContainers"] =
        json!([{"name": SIDECAR_CONTAINER, "restartPolicy": "Always"}]);
    refused(&forged, Reason::ContainerNameTaken, &[SIDECAR_CONTAINER]);
    let mut twice = injected(&pod());
    twice["spec"]["containers"][0]["name"] = SIDECAR_CONTAINER.into();
    refused(&twice, Reason::ContainerNameTaken, &["spec.containers"]);
    let mut unsigned = injected(&pod());
    unsigned["metadata"]["annotations"] = json!({});
    refused(&unsigned, Reason::ContainerNameTaken, &["spec.initContainers"]);
    let volume =
        with(|pod| pod["spec"]["volumes"] = json!([{"name": CREDENTIALS_VOLUME, "emptyDir": {}}]));
    refused(&volume, Reason::VolumeNameTaken, &["spec.volumes[\"twofactor-credentials\"]"]);
    let mut replaced = injected(&pod());
    replaced["spec"]["volumes"][0] = json!({"name": CREDENTIALS_VOLUME, "emptyDir": {}});
    refused(&replaced, Reason::VolumeNameTaken, &["must be the Secret twofactor-kms"]);
    let mut another_realm = injected(&pod());
    another_realm["metadata"]["annotations"][REALM_ANNOTATION] = "people".into();
    refused(&another_realm, Reason::VolumeNameTaken, &["must be the Secret twofactor-people"]);
}

/// Ways to show the Secret `name` to a container: fields of the container, and a volume.
fn ways_to_see(name: &str) -> Vec<(Value, Value)> {
    let mount = json!({"volumeMounts": [{"name": "mine", "mountPath": "/mine"}]});
    vec![
        (mount.clone(), json!([{"name": "mine", "secret": {"secretName": name}}])),
        (
            mount,
            json!([{"name": "mine", "projected": {"sources": [
                {"configMap": {"name": "x"}}, {"secret": {"name": name, "items": [{"key": "realm-key", "path": "a"}]}},
            ]}}]),
        ),
        (
            json!({"envFrom": [{"configMapRef": {"name": "x"}}, {"secretRef": {"name": name}}]}),
            json!([]),
        ),
        (
            json!({"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": name, "key": "realm-key"}}}]}),
            json!([]),
        ),
    ]
}

fn seeing(list: &str, (fields, volumes): &(Value, Value)) -> Value {
    with(|pod| {
        let mut container = json!({"name": "curious", "image": "x"});
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let containers = pod["spec"].as_object_mut().unwrap().entry(list).or_insert(json!([]));
        containers.as_array_mut().unwrap().push(container);
        pod["spec"]["volumes"] = volumes.clone();
    })
}

#[test]
fn another_container_must_not_see_the_credentials_in_any_way() {
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        // The credentials of its own realm, and of another realm that allows the namespace.
        for secret in ["twofactor-kms", "twofactor-other"] {
            for way in ways_to_see(secret) {
                refused(
                    &seeing(list, &way),
                    Reason::CredentialsExposed,
                    &[&format!("spec.{list}[\"curious\"]"), "only the sidecar may have"],
                );
            }
        }
        for way in ways_to_see("twofactor-settings") {
            let pod = seeing(list, &way);
            assert!(matches!(decide(&pod), Decision::Inject(_)), "{:?}", decide(&pod));
        }
        let dangling =
            json!({"volumeMounts": [{"name": CREDENTIALS_VOLUME, "mountPath": "/mine"}]});
        refused(
            &seeing(list, &(dangling, json!([]))),
            Reason::CredentialsExposed,
            &[CREDENTIALS_VOLUME],
        );
    }
}

#[test]
fn another_container_must_not_see_credentials_of_a_realm_that_may_allow_the_namespace_later() {
    for way in ways_to_see("twofactor-shut") {
        let mut pod = seeing("containers", &way);
        pod["metadata"]["annotations"] = json!({REALM_ANNOTATION: "shut"});
        refused(&pod, Reason::CredentialsExposed, &["curious"]);
    }
}

#[test]
fn a_volume_of_the_credentials_that_no_container_mounts_is_allowed() {
    let pod = with(|pod| {
        pod["spec"]["volumes"] =
            json!([{"name": "mine", "secret": {"secretName": "twofactor-kms"}}]);
    });
    assert!(matches!(decide(&pod), Decision::Inject(_)));
}

#[test]
fn a_later_webhook_cannot_mount_the_credentials_into_the_app() {
    let mut pod = injected(&pod());
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": CREDENTIALS_VOLUME, "mountPath": "/var/run/secrets/twofactor"}]);
    refused(&pod, Reason::CredentialsExposed, &["spec.containers[\"app\"]"]);
}

#[test]
fn a_second_call_changes_nothing_even_if_other_webhooks_changed_the_sidecar() {
    let mut pod = injected(&pod());
    skipped(&pod, Reason::AlreadyInjected);
    assert_eq!(decide(&pod).realm(), Some("kms"));
    let sidecar = pod["spec"]["initContainers"][0].as_object_mut().unwrap();
    sidecar["image"] = "mirror.example/twofactor-sidecar@sha256:0".into();
    sidecar["resources"]["limits"]["cpu"] = "2".into();
    sidecar["env"].as_array_mut().unwrap().push(json!({"name": "HTTP_PROXY", "value": "http://x"}));
    sidecar["volumeMounts"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({"name": "token", "mountPath": "/t"}));
    sidecar.remove("livenessProbe");
    pod["spec"]["initContainers"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({"name": "mesh", "image": "x"}));
    pod["metadata"]["annotations"][INJECTED_ANNOTATION] = "0.0.9".into();
    skipped(&pod, Reason::AlreadyInjected);
}

#[test]
fn a_pod_with_the_annotation_but_without_the_sidecar_is_injected() {
    let copied = annotated(&[(INJECTED_ANNOTATION, "0.0.1"), (REALM_ANNOTATION, "people")]);
    let pod = injected(&copied);
    assert_eq!(sidecar(&pod)["name"], SIDECAR_CONTAINER);
    assert_eq!(pod["metadata"]["annotations"][INJECTED_ANNOTATION], env!("CARGO_PKG_VERSION"));
}

#[test]
fn pull_secrets_are_added_to_those_of_the_pod_and_none_twice() {
    let mut options = options();
    options.image_pull_secrets = vec!["ours".to_owned(), "second".to_owned()];
    options.image_pull_policy = None;
    let defaults = SidecarDefaults::parse(options).unwrap();
    let (none, _) = injected_with(&pod(), &defaults);
    assert_eq!(none["spec"]["imagePullSecrets"], json!([{"name": "ours"}, {"name": "second"}]));
    assert!(sidecar(&none).get("imagePullPolicy").is_none());
    let some =
        with(|pod| pod["spec"]["imagePullSecrets"] = json!([{"name": "theirs"}, {"name": "ours"}]));
    let (some, _) = injected_with(&some, &defaults);
    let expected = json!([{"name": "theirs"}, {"name": "ours"}, {"name": "second"}]);
    assert_eq!(some["spec"]["imagePullSecrets"], expected);
}

#[test]
fn a_pod_without_a_spec_or_from_no_namespace_is_refused() {
    let mut pod = pod();
    assert!(matches!(
        inject(&typed(&pod), "", &defaults(), &access, &|_| Vec::new()),
        Decision::Refuse(_)
    ));
    pod.as_object_mut().unwrap().remove("spec");
    refused(&pod, Reason::Unreadable, &["spec: is missing"]);
}

#[test]
fn a_refusal_stays_short_and_on_one_line_for_every_pod() {
    let long = format!("{}\n\u{1b}[31m", "x".repeat(100_000));
    let pods = [
        with(|pod| pod["metadata"]["labels"][INJECT_LABEL] = long.clone().into()),
        annotated(&[(REALM_ANNOTATION, &long)]),
        with(|pod| {
            pod["spec"]["containers"] = json!([{"name": long, "ports": [{"containerPort": 8004}]}]);
        }),
        with(|pod| pod["spec"]["os"] = json!({"name": long})),
    ];
    for pod in pods {
        let Decision::Refuse(refusal) = decide(&pod) else { panic!("it is not refused") };
        assert!(refusal.sentence.len() < 400, "{}", refusal.sentence);
        assert!(!refusal.sentence.contains(char::is_control), "{}", refusal.sentence);
    }
}

/// Pseudorandom numbers, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % end
    }

    fn sometimes(&mut self) -> bool {
        self.below(2) == 0
    }

    fn one_of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

/// Makes a pod that asks for the sidecar, with lists that are present, empty or absent, and with
/// fields that no version knows.
fn some_pod(numbers: &mut Numbers) -> Value {
    let mut pod = pod();
    let annotations = [
        json!({}),
        json!({"a/b~c": "d"}),
        json!({REALM_ANNOTATION: "people", "x": "y"}),
        json!({REALM_ANNOTATION: "shut", INJECTED_ANNOTATION: "0"}),
        Value::Null,
    ];
    if numbers.sometimes() {
        pod["metadata"]["annotations"] = numbers.one_of(&annotations).clone();
    }
    let lists = [
        ("initContainers", json!({"name": "init", "image": "x", "fromTheFuture": {"a": [1]}})),
        ("volumes", json!({"name": "data", "emptyDir": {}, "newKind": {"b": null}})),
        ("imagePullSecrets", json!({"name": "theirs"})),
        ("containers", json!({"name": "second", "image": "y", "ports": [{"containerPort": 80}]})),
    ];
    for (list, item) in lists {
        match numbers.below(4) {
            0 if list != "containers" => pod["spec"][list] = json!([]),
            1 => pod["spec"][list] = json!([item]),
            2 if list != "containers" => pod["spec"][list] = Value::Null,
            _ => {}
        }
    }
    if numbers.sometimes() {
        pod["spec"]["securityContext"] = json!({"runAsUser": numbers.below(2), "unknown": true});
        pod["spec"]["laterField"] = json!({"deep": {"er": [1, 2, {"x": "y"}]}});
    }
    pod
}

/// Annotations of the webhook.
const OWN: [&str; 3] = [INJECTED_ANNOTATION, INJECTED_IMAGE_ANNOTATION, REALM_ANNOTATION];

#[test]
fn the_patch_of_every_pod_adds_the_sidecar_first_and_changes_nothing_else_and_is_idempotent() {
    let mut options = options();
    options.image_pull_secrets = vec!["ours".to_owned()];
    let defaults = SidecarDefaults::parse(options).unwrap();
    let mut numbers = Numbers(42);
    for _ in 0..2000 {
        let before = some_pod(&mut numbers);
        let (after, injection) = injected_with(&before, &defaults);
        let parsed = typed(&after);
        let init = parsed.spec.as_ref().unwrap().init_containers.as_ref().unwrap();
        assert_eq!(init[0].name, SIDECAR_CONTAINER);
        assert_eq!(parsed.metadata.annotations.unwrap()[REALM_ANNOTATION], injection.realm);
        skipped(&after, Reason::AlreadyInjected);

        // After the additions are removed, the rest is unchanged.
        let mut rest = after.clone();
        let mut expected = before.clone();
        rest["spec"]["initContainers"].as_array_mut().unwrap().remove(0);
        for list in ["volumes", "imagePullSecrets"] {
            rest["spec"][list].as_array_mut().unwrap().pop();
        }
        let annotations = rest["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.retain(|name, _| !OWN.contains(&name.as_str()));
        // A list that was absent is empty now.
        for list in ["initContainers", "volumes", "imagePullSecrets"] {
            if expected["spec"][list].is_null() {
                expected["spec"][list] = json!([]);
            }
        }
        if expected["metadata"]["annotations"].is_null() {
            expected["metadata"]["annotations"] = json!({});
        }
        let annotations = expected["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.retain(|name, _| !OWN.contains(&name.as_str()));
        assert_eq!(rest, expected);
    }
}

/// Makes a JSON value, at most `depth` deep.
fn some_json(numbers: &mut Numbers, depth: usize) -> Value {
    let keys = ["name", "spec", "metadata", "containers", "ports", "env", "x"];
    match numbers.below(if depth == 0 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => numbers.sometimes().into(),
        2 => json!(numbers.below(70_000)),
        3 => json!(*numbers.one_of(&["", "true", "Pod", "\u{0}", "twofactor-sidecar"])),
        4 => json!(-1.5e300),
        5 => (0..numbers.below(4)).map(|_| some_json(numbers, depth - 1)).collect(),
        _ => (0..numbers.below(4))
            .map(|_| ((*numbers.one_of(&keys)).to_owned(), some_json(numbers, depth - 1)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

/// Collects the JSON Pointers of all places in a value.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{here}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places(value, &format!("{here}/{index}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_json_body_is_answered_or_refused_without_a_panic() {
    let defaults = defaults();
    let whole = review(&injected(&pod()));
    let mut found = Vec::new();
    places(&whole, "", &mut found);
    let mut numbers = Numbers(7);
    let mut answered = 0;
    for _ in 0..5000 {
        let mut review = whole.clone();
        for _ in 0..=numbers.below(3) {
            let place = numbers.one_of(&found).clone();
            if let Some(value) = review.pointer_mut(&place) {
                *value = some_json(&mut numbers, 4);
            }
        }
        let mut body = review.to_string().into_bytes();
        if numbers.below(4) == 0 {
            let at = numbers.below(body.len());
            body[at] = u8::try_from(numbers.below(256)).unwrap();
        }
        if let Ok(request) = reviews::read(&body) {
            let decision = match &request.pod {
                Ok(pod) => inject(pod, &request.namespace, &defaults, &access, &|_| Vec::new()),
                Err(refusal) => Decision::Refuse(refusal.clone()),
            };
            let answer: Value =
                serde_json::from_str(&reviews::answer(&request.uid, &decision)).unwrap();
            assert_eq!(answer["response"]["uid"], json!(request.uid));
            answered += 1;
        }
    }
    assert!(answered > 1000, "{answered} of 5000 could be read at all");
}

#[test]
fn a_mesh_leaves_redis_alone_and_the_sidecar_starts_after_its_init_containers() {
    let mut options = options();
    (options.mesh, options.direct_ports) = (Some(MeshKind::Istio), vec![6379]);
    options.position = Position::Last;
    let defaults = SidecarDefaults::parse(options).unwrap();
    let name = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let meshed = with(|pod| {
        pod["metadata"]["annotations"] = json!({ name: "5432" });
        pod["spec"]["initContainers"] = json!([{ "name": "istio-init", "image": "proxy:1" }]);
    });
    let (patched, _) = injected_with(&meshed, &defaults);
    assert_eq!(patched["metadata"]["annotations"][name], "5432,6379");
    assert_eq!(patched["spec"]["initContainers"][0]["name"], "istio-init");
    assert_eq!(patched["spec"]["initContainers"][1]["name"], SIDECAR_CONTAINER);
    // A pod without annotations and init containers.
    let (patched, _) = injected_with(&pod(), &defaults);
    assert_eq!(patched["metadata"]["annotations"][name], "6379");
    assert_eq!(sidecar(&patched)["name"], SIDECAR_CONTAINER);
}
