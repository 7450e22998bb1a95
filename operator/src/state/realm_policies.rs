//! Knows, in every replica, which namespaces each realm allows. The watches report realms and
//! namespaces to it, it answers without I/O, and it gives the leader the realms that have changed.
//!
//! The allowed namespaces are computed when something changes, not when they are looked up.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use tokio::sync::Notify;
use twofactor_api::validate::FieldError;
use twofactor_api::validate::realm::{RealmPolicy, validate};
use twofactor_api::{TwoFactorRealm, labels};

/// Whether services of a namespace may verify the users of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceAccess {
    /// The realm allows the namespace.
    Allowed,
    /// The realm does not allow the namespace.
    NotAllowed,
    /// The realm's namespace does not exist.
    NoSuchNamespace,
}

/// A `TwoFactorRealm` and the policy that it defines.
#[derive(Clone, Debug)]
pub struct KnownRealm {
    /// The object, as the watch last reported it.
    pub object: TwoFactorRealm,
    /// The policy, or why the object is invalid.
    pub policy: Result<RealmPolicy, Vec<FieldError>>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KnownNamespace {
    uid: String,
    labels: BTreeMap<String, String>,
    /// Whether the namespace is being deleted, so that nothing can be created in it.
    ending: bool,
}

/// All realms and namespaces, with the allowed namespaces of each realm.
#[derive(Debug, Default)]
pub struct Policies {
    state: Mutex<State>,
    changes: Notify,
}

#[derive(Debug, Default)]
struct State {
    namespaces: HashMap<String, KnownNamespace>,
    /// By namespace and name.
    realms: HashMap<String, BTreeMap<String, Arc<KnownRealm>>>,
    /// By realm, the namespaces that it allows, without its own.
    members: HashMap<String, BTreeSet<String>>,
    /// Realms that the leader has to reconcile.
    changed: HashSet<String>,
}

impl Policies {
    /// Whether services of `namespace` may verify the users of the namespace `realm`.
    pub fn access(&self, realm: &str, namespace: &str) -> NamespaceAccess {
        let state = self.state();
        if realm == namespace {
            NamespaceAccess::Allowed
        } else if !state.namespaces.contains_key(realm) {
            NamespaceAccess::NoSuchNamespace
        } else if state.members.get(realm).is_some_and(|members| members.contains(namespace)) {
            NamespaceAccess::Allowed
        } else {
            NamespaceAccess::NotAllowed
        }
    }

    /// The policy of a realm; nothing if there is no valid `TwoFactorRealm`.
    pub fn policy(&self, realm: &str) -> Option<RealmPolicy> {
        self.state().policy(realm).cloned()
    }

    /// Whether the realm has a valid `TwoFactorRealm`.
    pub fn has_policy(&self, realm: &str) -> bool {
        self.state().policy(realm).is_some()
    }

    /// The existing namespaces that a realm allows, including its own.
    pub fn namespaces_of(&self, realm: &str) -> BTreeSet<String> {
        let state = self.state();
        let mut namespaces = state.members.get(realm).cloned().unwrap_or_default();
        namespaces.insert(realm.to_owned());
        namespaces
    }

    /// The UID of a namespace, and whether it is being deleted.
    pub fn namespace(&self, name: &str) -> Option<(String, bool)> {
        self.state().namespaces.get(name).map(|namespace| (namespace.uid.clone(), namespace.ending))
    }

    /// Whether there is a namespace with this UID.
    pub fn has_namespace(&self, uid: &str) -> bool {
        self.state().namespaces.values().any(|namespace| namespace.uid == uid)
    }

    /// Every `TwoFactorRealm`.
    pub fn realms(&self) -> Vec<Arc<KnownRealm>> {
        self.state().realms.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The namespaces with a valid `TwoFactorRealm`.
    pub fn namespaces_with_policy(&self) -> Vec<String> {
        let state = self.state();
        state.realms.keys().filter(|realm| state.policy(realm).is_some()).cloned().collect()
    }

    /// Waits until there are changes to take. Only one task may wait: the leader's.
    pub async fn changed(&self) {
        self.changes.notified().await;
    }

    /// Takes the realms whose policy or allowed namespaces have changed since the last call.
    pub fn take_changes(&self) -> HashSet<String> {
        std::mem::take(&mut self.state().changed)
    }

    /// Records a namespace that was created or changed.
    pub fn namespace_applied(
        &self,
        name: &str,
        uid: &str,
        labels: &BTreeMap<String, String>,
        ending: bool,
    ) {
        let mut state = self.state();
        let namespace = KnownNamespace { uid: uid.to_owned(), labels: labels.clone(), ending };
        let old = state.namespaces.get(name);
        if old == Some(&namespace) {
            return;
        }
        // Another namespace of the same name has another login.
        let renewed = old.is_none_or(|old| old.uid != uid);
        state.namespaces.insert(name.to_owned(), namespace);
        state.recompute_namespace(name, renewed);
        self.notify_leader(&state);
    }

    /// Records that a namespace was deleted.
    pub fn namespace_deleted(&self, name: &str) {
        let mut state = self.state();
        state.namespaces.remove(name);
        state.recompute_namespace(name, true);
        self.notify_leader(&state);
    }

    /// Records a `TwoFactorRealm` that was created or changed.
    pub fn realm_applied(&self, object: TwoFactorRealm) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let known = KnownRealm { policy: validate(&object), object };
        let mut state = self.state();
        let realms = state.realms.entry(namespace.clone()).or_default();
        let changed = realms.get(&name).is_none_or(|old| old.policy != known.policy);
        let is_default = name == labels::REALM_NAME;
        realms.insert(name, Arc::new(known));
        if changed && is_default {
            state.recompute_realm(&namespace);
        }
        self.notify_leader(&state);
    }

    /// Records that a `TwoFactorRealm` was deleted.
    pub fn realm_deleted(&self, namespace: &str, name: &str) {
        let mut state = self.state();
        let Some(realms) = state.realms.get_mut(namespace) else { return };
        realms.remove(name);
        if realms.is_empty() {
            state.realms.remove(namespace);
        }
        if name == labels::REALM_NAME {
            state.recompute_realm(namespace);
        }
        self.notify_leader(&state);
    }

    fn notify_leader(&self, state: &State) {
        if !state.changed.is_empty() {
            self.changes.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn policy(&self, realm: &str) -> Option<&RealmPolicy> {
        self.realms.get(realm)?.get(labels::REALM_NAME)?.policy.as_ref().ok()
    }

    /// Computes which namespaces a realm allows.
    fn recompute_realm(&mut self, realm: &str) {
        let members: BTreeSet<String> = match self.policy(realm) {
            Some(policy) => {
                let others = self.namespaces.iter().filter(|(name, _)| *name != realm);
                others
                    .filter(|(name, namespace)| policy.allows(name, &namespace.labels))
                    .map(|(name, _)| name.clone())
                    .collect()
            }
            None => BTreeSet::new(),
        };
        if members.is_empty() {
            self.members.remove(realm);
        } else {
            self.members.insert(realm.to_owned(), members);
        }
        self.changed.insert(realm.to_owned());
    }

    /// Computes which realms allow a namespace. If `renewed`, the realms that allow it count as
    /// changed even if they allowed it before, because another namespace now has the name.
    fn recompute_namespace(&mut self, name: &str, renewed: bool) {
        let namespace = self.namespaces.get(name);
        let with_policy = |realm: &&String| realm.as_str() != name && self.policy(realm).is_some();
        let realms: Vec<(String, bool)> = self
            .realms
            .keys()
            .filter(with_policy)
            .map(|realm| {
                let policy = self.policy(realm);
                let allowed = policy
                    .zip(namespace)
                    .is_some_and(|(policy, namespace)| policy.allows(name, &namespace.labels));
                (realm.clone(), allowed)
            })
            .collect();
        for (realm, allowed) in realms {
            let members = self.members.entry(realm.clone()).or_default();
            let changed =
                if allowed { members.insert(name.to_owned()) } else { members.remove(name) };
            if members.is_empty() {
                self.members.remove(&realm);
            }
            if changed || (renewed && allowed) {
                self.changed.insert(realm);
            }
        }
        if renewed {
            self.changed.insert(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn realm(namespace: &str, spec: Value) -> TwoFactorRealm {
        let mut realm = TwoFactorRealm::new("default", serde_json::from_value(spec).unwrap());
        realm.metadata.namespace = Some(namespace.to_owned());
        realm
    }

    fn namespace(policies: &Policies, name: &str, label: Option<&str>) {
        let labels = label.map(|value| ("team".to_owned(), value.to_owned())).into_iter().collect();
        policies.namespace_applied(name, &format!("uid-{name}"), &labels, false);
    }

    fn changes(policies: &Policies) -> Vec<String> {
        let mut changes: Vec<String> = policies.take_changes().into_iter().collect();
        changes.sort();
        changes
    }

    #[test]
    fn a_realm_without_an_object_allows_only_its_own_namespace() {
        let policies = Policies::default();
        assert_eq!(policies.access("people", "people"), NamespaceAccess::Allowed);
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::NoSuchNamespace);
        namespace(&policies, "people", None);
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::NotAllowed);
    }

    #[test]
    fn a_realm_allows_a_namespace_by_name_as_soon_as_it_exists() {
        let policies = Policies::default();
        namespace(&policies, "people", None);
        policies
            .realm_applied(realm("people", json!({ "allowedNamespaces": { "names": ["kms"] } })));
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::NotAllowed);
        assert_eq!(changes(&policies), ["people"]);
        namespace(&policies, "kms", None);
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::Allowed);
        assert_eq!(changes(&policies), ["kms", "people"]);
        policies.namespace_deleted("kms");
        assert_eq!(policies.namespaces_of("people"), ["people".to_owned()].into());
        assert!(changes(&policies).contains(&"people".to_owned()));
    }

    #[test]
    fn a_realm_allows_a_namespace_while_its_labels_match() {
        let policies = Policies::default();
        for name in ["people", "kms", "other"] {
            namespace(&policies, name, None);
        }
        let selector =
            json!({ "allowedNamespaces": { "selector": { "matchLabels": { "team": "a" } } } });
        policies.realm_applied(realm("people", selector));
        changes(&policies);
        namespace(&policies, "kms", Some("a"));
        assert_eq!(
            (policies.access("people", "kms"), changes(&policies)),
            (NamespaceAccess::Allowed, vec!["people".to_owned()])
        );
        namespace(&policies, "other", Some("b"));
        assert_eq!(
            (policies.access("people", "other"), changes(&policies)),
            (NamespaceAccess::NotAllowed, vec![])
        );
        namespace(&policies, "kms", Some("b"));
        assert_eq!(
            (policies.access("people", "kms"), changes(&policies)),
            (NamespaceAccess::NotAllowed, vec!["people".to_owned()])
        );
    }

    #[test]
    fn another_namespace_of_the_same_name_is_a_change() {
        let policies = Policies::default();
        namespace(&policies, "people", None);
        namespace(&policies, "kms", None);
        policies
            .realm_applied(realm("people", json!({ "allowedNamespaces": { "names": ["kms"] } })));
        changes(&policies);
        policies.namespace_applied("kms", "another", &BTreeMap::new(), false);
        assert_eq!(changes(&policies), ["kms", "people"]);
        policies.namespace_applied("kms", "another", &BTreeMap::new(), false);
        assert!(changes(&policies).is_empty());
    }

    #[test]
    fn a_realm_that_is_invalid_or_not_the_default_allows_no_other_namespace() {
        let policies = Policies::default();
        namespace(&policies, "people", None);
        namespace(&policies, "kms", None);
        let spec = json!({ "allowedNamespaces": { "names": ["kms"] } });
        let mut other = realm("people", spec.clone());
        other.metadata.name = Some("other".to_owned());
        policies.realm_applied(other);
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::NotAllowed);
        policies.realm_applied(realm("people", spec));
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::Allowed);
        policies.realm_deleted("people", "other");
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::Allowed);
        let invalid = json!({ "issuer": "a:b", "allowedNamespaces": { "names": ["kms"] } });
        policies.realm_applied(realm("people", invalid));
        assert_eq!(policies.access("people", "kms"), NamespaceAccess::NotAllowed);
        policies.realm_deleted("people", "default");
        assert!(policies.realms().is_empty());
    }

    #[test]
    fn a_changed_status_is_not_a_change_of_the_realm() {
        let policies = Policies::default();
        let mut object = realm("people", json!({ "issuer": "A" }));
        policies.realm_applied(object.clone());
        assert_eq!(changes(&policies), ["people"]);
        object.status = Some(twofactor_api::realm::TwoFactorRealmStatus::default());
        policies.realm_applied(object);
        assert!(changes(&policies).is_empty());
        assert!(policies.realms()[0].object.status.is_some());
    }
}
