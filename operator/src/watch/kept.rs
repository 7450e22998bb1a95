//! Reads an object without the metadata that no watch uses.
//!
//! Tenants write annotations, managed fields and finalizers, and a page of a list is in memory as a
//! whole. They are removed from each object before the next one is read.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher::Event;
use serde::{Deserialize, Deserializer};
use twofactor_api::labels;

/// An object with the metadata that watches use.
#[derive(Clone, Debug)]
pub(super) struct Kept<K>(K);

/// Returns the same event with the object itself.
pub(super) fn unwrap<K>(event: Event<Kept<K>>) -> Event<K> {
    match event {
        Event::Apply(Kept(object)) => Event::Apply(object),
        Event::Delete(Kept(object)) => Event::Delete(object),
        Event::Init => Event::Init,
        Event::InitApply(Kept(object)) => Event::InitApply(object),
        Event::InitDone => Event::InitDone,
    }
}

impl<'de, K: Resource + Deserialize<'de>> Deserialize<'de> for Kept<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = K::deserialize(deserializer)?;
        let metadata = object.meta_mut();
        metadata.managed_fields = None;
        metadata.finalizers = None;
        if let Some(annotations) = &mut metadata.annotations {
            annotations.retain(|name, _| name.split('/').next() == Some(labels::GROUP));
        }
        Ok(Self(object))
    }
}

impl<K: Resource> Resource for Kept<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    // Otherwise whole Secrets would be listed.
    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use kube::core::PartialObjectMeta;

    use super::*;

    #[test]
    fn what_is_watched_by_its_metadata_stays_so() {
        assert!(Kept::<PartialObjectMeta<Secret>>::metadata_api());
        assert!(!Kept::<Secret>::metadata_api());
    }

    #[test]
    fn only_the_projects_annotations_stay() {
        let object = serde_json::json!({
            "metadata": {
                "name": "alice",
                "finalizers": ["example.org/slow"],
                "annotations": { "example.org/note": "x", "twofactor.fountainai.io/rotate": "1" },
            },
        });
        let Kept(secret) = serde_json::from_value::<Kept<Secret>>(object).unwrap();
        let annotations = secret.metadata.annotations.unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["twofactor.fountainai.io/rotate"]);
        assert_eq!(
            (secret.metadata.name.as_deref(), secret.metadata.finalizers),
            (Some("alice"), None)
        );
    }
}
