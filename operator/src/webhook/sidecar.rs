//! Builds the container, the volume and the annotations that a pod gets, as JSON.

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Map, Value, json};
use twofactor_api::labels::{
    CREDENTIALS_PATH, CREDENTIALS_VOLUME, INJECTED_ANNOTATION, INJECTED_IMAGE_ANNOTATION,
    REALM_ANNOTATION, SIDECAR_ADMIN_PORT, SIDECAR_CONTAINER, credentials_name,
};

use super::annotations::Settings;
use super::defaults::SidecarDefaults;

/// The program in the project's images.
const PROGRAM: &str = "/usr/local/bin/twofactor-sidecar";
/// User and group of the project's images.
const USER: i64 = 65532;

/// Builds the sidecar's container, an init container that keeps running beside the others.
#[must_use]
pub fn container(spec: &PodSpec, settings: &Settings, defaults: &SidecarDefaults) -> Value {
    let mut container = json!({
        "name": SIDECAR_CONTAINER,
        "image": settings.image,
        // A native sidecar starts before the app and ends after it, and a Job does not wait for it.
        "restartPolicy": "Always",
        "args": ["serve"],
        "env": [
            {"name": "TWOFACTOR_PORT", "value": settings.port.to_string()},
            {"name": "TWOFACTOR_ADMIN_LISTEN", "value": format!("*:{}", settings.admin_port)},
            {"name": "TWOFACTOR_LOG", "value": settings.log},
            {"name": "TWOFACTOR_LOG_FORMAT", "value": defaults.log_format},
            {"name": "TWOFACTOR_TRUSTED_PROXIES", "value": settings.trusted_proxies.to_string()},
        ],
        // The API's port is not declared, because tools that make NetworkPolicies and Services from
        // declared ports would open it.
        "ports": [{"name": SIDECAR_ADMIN_PORT, "containerPort": settings.admin_port, "protocol": "TCP"}],
        "volumeMounts": [{"name": CREDENTIALS_VOLUME, "mountPath": CREDENTIALS_PATH, "readOnly": true}],
        "startupProbe": probe(1, 60),
        // Once a minute, because the container runtime takes some 20 ms of processor time to start
        // a command, which would otherwise be most of what a sidecar at rest takes.
        "livenessProbe": probe(60, 2),
        // No readiness probe, because it would remove the app from its Service whenever Redis is
        // unavailable.
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

/// Builds a probe that succeeds if the sidecar listens. The program asks itself over loopback,
/// because a neighbour could use up the connections of the port, and a mesh could redirect them.
fn probe(period_seconds: u32, failure_threshold: u32) -> Value {
    json!({
        "exec": {"command": [PROGRAM, "probe", "livez"]},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failure_threshold,
    })
}

/// Builds the security context that the level "restricted" of the Pod Security Standards demands.
fn security_context(spec: &PodSpec) -> Value {
    let mut context = json!({
        "runAsNonRoot": true,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    // The image names a user, and any user that the pod names instead works (OpenShift gives each
    // namespace its own range), except root, with which the sidecar could not start. The group is
    // set too, because with a user named here the image's group no longer applies, and the group
    // would be root's.
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    if of_pod == Some(0) {
        context["runAsUser"] = USER.into();
        context["runAsGroup"] = USER.into();
    }
    context
}

/// Builds the volume with the credentials.
#[must_use]
pub fn volume(realm: &str) -> Value {
    json!({
        "name": CREDENTIALS_VOLUME,
        "secret": {
            "secretName": credentials_name(realm),
            // The pod waits for the Secret, because the sidecar cannot work without it.
            "optional": false,
            // Readable by every user, because the sidecar's user is not known beforehand. Only the
            // sidecar's container mounts the volume.
            "defaultMode": 0o444,
        },
    })
}

/// Builds the annotations that record the injection. The image is recorded beside the operator's
/// version, because it can be of another one.
#[must_use]
pub fn annotations(settings: &Settings) -> Map<String, Value> {
    [
        (INJECTED_ANNOTATION.to_owned(), env!("CARGO_PKG_VERSION").into()),
        (INJECTED_IMAGE_ANNOTATION.to_owned(), settings.image.as_str().into()),
        (REALM_ANNOTATION.to_owned(), settings.realm.as_str().into()),
    ]
    .into_iter()
    .collect()
}
