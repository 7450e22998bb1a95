//! Builds the manifests of the tests as JSON, which a test can change. Every pod satisfies the
//! restricted level.

use serde_json::{Value, json};

/// The images of `tests/cluster/images`.
pub(crate) const CLIENT_IMAGE: &str = "twofactor-test/client:dev";
const MAIL_IMAGE: &str = "twofactor-test/mail:dev";
/// Debian's Prometheus, at the paths of the official image.
pub(crate) const PROMETHEUS_IMAGE: &str = "twofactor-test/prometheus:dev";

const REDIS_IMAGE: &str = "docker.io/library/redis:7.2";

/// The container of a pod that is not the sidecar.
pub(crate) const APP: &str = "app";
/// The sidecar's container.
pub(crate) const SIDECAR: &str = "twofactor-sidecar";
/// Asks for the sidecar.
pub(crate) const INJECT: &str = "twofactor.fountainai.io/inject";
/// The namespace of the users to verify.
pub(crate) const REALM: &str = "twofactor.fountainai.io/realm";

/// A user.
pub(crate) fn user(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "twofactor.fountainai.io/v1alpha1",
        "kind": "TwoFactorUser",
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}

/// A realm that allows these namespaces, with its provider's settings in the Secret `delivery`.
pub(crate) fn realm(namespace: &str, allowed: &[&str], delivery: Option<&str>) -> Value {
    let mut realm = json!({
        "apiVersion": "twofactor.fountainai.io/v1alpha1",
        "kind": "TwoFactorRealm",
        "metadata": { "namespace": namespace, "name": "default" },
        "spec": { "allowedNamespaces": { "names": allowed } },
    });
    if let Some(name) = delivery {
        realm["spec"]["delivery"] = json!({ "secretRef": { "name": name } });
    }
    realm
}

/// A Secret.
pub(crate) fn secret(namespace: &str, name: &str, texts: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "namespace": namespace, "name": name },
        "stringData": texts,
    })
}

/// A pod that waits for commands, and exits at once on SIGTERM.
pub(crate) fn client(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": { "app": name }, "annotations": {} },
        "spec": pod_spec(CLIENT_IMAGE, &["bash", "-c", "trap exit TERM; sleep infinity & wait"]),
    })
}

/// [`client`], with the sidecar for the users of `realm`.
pub(crate) fn client_with_sidecar(namespace: &str, name: &str, realm: &str) -> Value {
    with_sidecar(client(namespace, name), realm)
}

/// The same pod, or pod template, with the sidecar.
pub(crate) fn with_sidecar(mut pod: Value, realm: &str) -> Value {
    pod["metadata"]["labels"][INJECT] = json!("true");
    pod["metadata"]["annotations"][REALM] = json!(realm);
    pod
}

/// The spec of a pod with one container.
pub(crate) fn pod_spec(image: &str, command: &[&str]) -> Value {
    json!({
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 1000,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [{
            "name": APP,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": command,
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        }],
    })
}

/// The mail server of the tests.
pub(crate) fn mail_server(namespace: &str) -> Value {
    let mut pod = client(namespace, "mail");
    pod["spec"] = pod_spec(MAIL_IMAGE, &[]);
    let container = &mut pod["spec"]["containers"][0];
    container["ports"] = json!([{ "name": "smtp", "containerPort": 1025 }, { "name": "http", "containerPort": 8025 }]);
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/state", "port": "http" }, "periodSeconds": 1 });
    pod
}

/// Its Service.
pub(crate) fn mail_service(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": "mail" },
        "spec": {
            "selector": { "app": "mail" },
            "ports": [
                { "name": "smtp", "port": 1025, "targetPort": "smtp" },
                { "name": "http", "port": 8025, "targetPort": "http" },
            ],
        },
    })
}

/// A Redis without a password, apart from the chart's own.
pub(crate) fn redis(namespace: &str) -> Value {
    let mut pod = client(namespace, "redis");
    let command = ["redis-server", "--save", "", "--protected-mode", "no", "--dir", "/tmp"];
    pod["spec"] = pod_spec(REDIS_IMAGE, &command);
    let container = &mut pod["spec"]["containers"][0];
    container["ports"] = json!([{ "name": "redis", "containerPort": 6379 }]);
    container["readinessProbe"] = json!({ "tcpSocket": { "port": "redis" }, "periodSeconds": 1 });
    pod
}

/// Its Service.
pub(crate) fn redis_service(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": "redis" },
        "spec": { "selector": { "app": "redis" }, "ports": [{ "port": 6379, "targetPort": "redis" }] },
    })
}

/// A Job that runs a shell script beside the sidecar.
pub(crate) fn job_with_sidecar(namespace: &str, name: &str, realm: &str, script: &str) -> Value {
    let mut spec = pod_spec(CLIENT_IMAGE, &["bash", "-c", script]);
    spec["restartPolicy"] = json!("Never");
    let template = with_sidecar(
        json!({ "metadata": { "labels": {}, "annotations": {} }, "spec": spec }),
        realm,
    );
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "backoffLimit": 0, "template": template },
    })
}
