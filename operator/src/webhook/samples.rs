//! Holds sample pods and flags for the webhook's tests.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use twofactor_server::logging::Format;

use super::defaults::{SidecarDefaults, SidecarOptions};
use super::mesh::Position;

pub(super) fn options() -> SidecarOptions {
    SidecarOptions {
        image: "fountainai/twofactor-sidecar:0.1.0".to_owned(),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        image_pull_secrets: Vec::new(),
        cpu_request: "10m".to_owned(),
        cpu_limit: "500m".to_owned(),
        memory_request: "16Mi".to_owned(),
        memory_limit: "64Mi".to_owned(),
        log_format: Format::Json,
        position: Position::First,
        mesh: None,
        direct_ports: Vec::new(),
    }
}

pub(super) fn defaults() -> SidecarDefaults {
    SidecarDefaults::parse(options()).unwrap()
}

pub(super) fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A minimal pod that asks for the sidecar.
pub(super) fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "kms-", "labels": {"twofactor.fountainai.io/inject": "true"}},
        "spec": {"containers": [{"name": "app", "image": "kms:1"}]},
    })
}

/// A review of the creation of `object` in the namespace `kms`.
pub(super) fn review(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "operation": "CREATE",
            "namespace": "kms",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}
