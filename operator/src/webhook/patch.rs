//! Builds the JSON Patch (RFC 6902) that adds the sidecar to a pod. Its operations only add, so
//! that every other field of the pod stays, even one that this version does not know.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::mesh::Position;

/// What the patch adds to a pod.
#[derive(Clone, Debug)]
pub struct Additions {
    /// Annotations, which replace existing ones of the same name.
    pub annotations: Map<String, Value>,
    /// An init container.
    pub container: Value,
    /// Its place among the pod's own init containers.
    pub position: Position,
    /// A volume.
    pub volume: Value,
    /// Image pull Secrets, without those that the pod has already.
    pub image_pull_secrets: Vec<String>,
}

/// Builds the operations that make the additions.
#[must_use]
pub fn patch(pod: &Pod, additions: Additions) -> Value {
    let spec = pod.spec.as_ref();
    let mut operations = Vec::new();
    if pod.metadata.annotations.is_some() {
        for (key, value) in additions.annotations {
            operations.push(add(&["metadata", "annotations", &key], value));
        }
    } else {
        operations.push(add(&["metadata", "annotations"], additions.annotations));
    }
    if spec.is_some_and(|spec| spec.init_containers.is_some()) {
        let place = match additions.position {
            Position::First => "0",
            Position::Last => "-",
        };
        operations.push(add(&["spec", "initContainers", place], additions.container));
    } else {
        operations.push(add(&["spec", "initContainers"], json!([additions.container])));
    }
    let has_volumes = spec.is_some_and(|spec| spec.volumes.is_some());
    append(&mut operations, "volumes", has_volumes, [additions.volume]);
    let present = spec.and_then(|spec| spec.image_pull_secrets.as_deref());
    let missing = additions
        .image_pull_secrets
        .iter()
        .filter(|name| {
            !present.unwrap_or_default().iter().any(|reference| reference.name == **name)
        })
        .map(|name| json!({"name": name}));
    append(&mut operations, "imagePullSecrets", present.is_some(), missing);
    operations.into()
}

fn append(
    operations: &mut Vec<Value>,
    list: &str,
    mut exists: bool,
    values: impl IntoIterator<Item = Value>,
) {
    for value in values {
        if exists {
            operations.push(add(&["spec", list, "-"], value));
        } else {
            operations.push(add(&["spec", list], json!([value])));
            exists = true;
        }
    }
}

fn add(path: &[&str], value: impl Into<Value>) -> Value {
    let value = value.into();
    json!({"op": "add", "path": pointer(path), "value": value})
}

/// A JSON Pointer (RFC 6901).
fn pointer(path: &[&str]) -> String {
    let escaped = path.iter().map(|part| part.replace('~', "~0").replace('/', "~1"));
    [String::new()].into_iter().chain(escaped).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_and_tildes_in_keys_are_escaped() {
        assert_eq!(
            pointer(&["metadata", "annotations", "a.b/c~d"]),
            "/metadata/annotations/a.b~1c~0d"
        );
    }
}
