//! The container and the volume that a pod gets. Enters: settings. Leaves: JSON, as it will stand
//! in the pod.

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Map, Value, json};
use twofactor_api::labels::{
    CREDENTIALS_PATH, CREDENTIALS_VOLUME, SIDECAR_ADMIN_PORT, SIDECAR_CONTAINER, credentials_name,
};

use super::annotations::Settings;
use super::defaults::SidecarDefaults;

/// User and group of the images.
const USER: i64 = 65532;

/// The sidecar's container, an init container that goes on beside the others.
#[must_use]
pub fn container(spec: &PodSpec, settings: &Settings, defaults: &SidecarDefaults) -> Value {
    let mut container = json!({
        "name": SIDECAR_CONTAINER,
        "image": settings.image,
        // A native sidecar: up before the app starts, ended after it, and no Job waits for it.
        "restartPolicy": "Always",
        "args": ["serve"],
        "env": [
            {"name": "TWOFACTOR_PORT", "value": settings.port.to_string()},
            {"name": "TWOFACTOR_ADMIN_LISTEN", "value": format!("*:{}", settings.admin_port)},
            {"name": "TWOFACTOR_LOG", "value": settings.log},
            {"name": "TWOFACTOR_LOG_FORMAT", "value": defaults.log_format},
        ],
        // The API's port is not declared: NetworkPolicies and Services made from declared ports
        // would open it.
        "ports": [{"name": SIDECAR_ADMIN_PORT, "containerPort": settings.admin_port, "protocol": "TCP"}],
        "volumeMounts": [{"name": CREDENTIALS_VOLUME, "mountPath": CREDENTIALS_PATH, "readOnly": true}],
        "startupProbe": probe(settings.admin_port, 1, 60),
        "livenessProbe": probe(settings.admin_port, 10, 3),
        // No readiness probe: it would take the app out of its Service whenever Redis is away.
        "resources": {
            "requests": {"cpu": settings.cpu.request.as_str(), "memory": settings.memory.request.as_str()},
            "limits": {"cpu": settings.cpu.limit.as_str(), "memory": settings.memory.limit.as_str()},
        },
        "securityContext": security_context(spec),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(policy) = defaults.image_pull_policy {
        container["imagePullPolicy"] = policy.into();
    }
    container
}

/// Means "it listens". A port's number, since a name could be changed by another webhook.
fn probe(port: u16, period_seconds: u32, failure_threshold: u32) -> Value {
    json!({
        "httpGet": {"path": "/livez", "port": port},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 2,
        "failureThreshold": failure_threshold,
    })
}

/// What the level "restricted" of the Pod Security Standards asks for.
fn security_context(spec: &PodSpec) -> Value {
    let mut context = json!({
        "runAsNonRoot": true,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    // The image names a user, and a user that the pod names instead is as good (OpenShift gives
    // each namespace its own range). Only root would stop the sidecar from starting. Its group is
    // set too: with a user that is named here, the image's group no longer counts, and it would be
    // root's.
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    if of_pod == Some(0) {
        context["runAsUser"] = USER.into();
        context["runAsGroup"] = USER.into();
    }
    context
}

/// The volume with the credentials.
#[must_use]
pub fn volume(realm: &str) -> Value {
    json!({
        "name": CREDENTIALS_VOLUME,
        "secret": {
            "secretName": credentials_name(realm),
            // Without it the sidecar could do nothing: the pod waits for it.
            "optional": false,
            // Readable by all, since the sidecar's user is not known beforehand; its container
            // alone mounts it.
            "defaultMode": 0o444,
        },
    })
}

/// The annotations that say what was done.
#[must_use]
pub fn annotations(realm: &str) -> Map<String, Value> {
    [
        (twofactor_api::labels::INJECTED_ANNOTATION.to_owned(), env!("CARGO_PKG_VERSION").into()),
        (twofactor_api::labels::REALM_ANNOTATION.to_owned(), realm.into()),
    ]
    .into_iter()
    .collect()
}
