//! Knows what `LimitRanges` demand of each container, by namespace. Admission reads them, because
//! the API server refuses a pod for its sidecar in words that name no container.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use kube::ResourceExt;

/// Maximum number of `LimitRanges` of one namespace that are kept.
const KEPT: usize = 16;

/// A rule of a `LimitRange` for each container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerLimit {
    /// Name of the `LimitRange`.
    pub name: String,
    /// What it demands.
    pub item: LimitRangeItem,
}

/// The `LimitRanges` of all namespaces.
#[derive(Debug, Default)]
pub struct LimitRanges(Mutex<HashMap<String, BTreeMap<String, Vec<LimitRangeItem>>>>);

impl LimitRanges {
    /// Records a `LimitRange` that was created or changed.
    pub fn applied(&self, object: LimitRange) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let items = object.spec.into_iter().flat_map(|spec| spec.limits);
        let items: Vec<_> = items.filter(|item| item.type_ == "Container").collect();
        let mut all = self.all();
        let known = all.entry(namespace.clone()).or_default();
        if items.is_empty() {
            known.remove(&name);
        } else if known.len() < KEPT || known.contains_key(&name) {
            known.insert(name, items);
        }
        if known.is_empty() {
            all.remove(&namespace);
        }
    }

    /// Records that a `LimitRange` was deleted.
    pub fn deleted(&self, namespace: &str, name: &str) {
        let mut all = self.all();
        let Some(known) = all.get_mut(namespace) else { return };
        known.remove(name);
        if known.is_empty() {
            all.remove(namespace);
        }
    }

    /// The rules for containers of a namespace.
    pub fn of(&self, namespace: &str) -> Vec<ContainerLimit> {
        let all = self.all();
        let ranges = all.get(namespace).into_iter().flatten();
        let limit = |name: &String, item: &LimitRangeItem| ContainerLimit {
            name: name.clone(),
            item: item.clone(),
        };
        ranges.flat_map(|(name, items)| items.iter().map(move |item| limit(name, item))).collect()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<String, Vec<LimitRangeItem>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn range(name: &str, limits: &Value) -> LimitRange {
        let object = json!({ "metadata": { "name": name, "namespace": "kms" }, "spec": { "limits": limits } });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn only_rules_for_containers_are_kept_and_only_a_few_of_a_namespace() {
        let ranges = LimitRanges::default();
        let names = |namespace: &str| -> Vec<String> {
            ranges.of(namespace).into_iter().map(|limit| limit.name).collect()
        };
        let of_containers =
            json!([{ "type": "Container", "min": { "cpu": "50m" } }, { "type": "Pod" }]);
        ranges.applied(range("a", &of_containers));
        ranges.applied(range("b", &json!([{ "type": "PersistentVolumeClaim" }])));
        assert_eq!(names("kms"), ["a"]);
        assert!(names("other").is_empty());
        ranges.applied(range("a", &json!([{ "type": "Pod" }])));
        assert!(names("kms").is_empty() && ranges.all().is_empty());
        for number in 0..KEPT + 5 {
            ranges.applied(range(&format!("n{number}"), &of_containers));
        }
        assert_eq!(names("kms").len(), KEPT);
        ranges.deleted("kms", "n0");
        assert_eq!(names("kms").len(), KEPT - 1);
    }
}
