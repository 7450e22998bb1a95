//! Which namespaces each realm lets in: what every replica knows. Enters: realms and namespaces as
//! they come and go. Leaves: answers without any I/O, and for the leader the realms of which
//! something has changed.
//!
//! Whoever is let in is worked out when something changes, not when somebody asks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use tokio::sync::Notify;
use twofactor_api::validate::FieldError;
use twofactor_api::validate::realm::{RealmPolicy, validate};
use twofactor_api::{TwoFactorRealm, labels};

/// Whether services of a namespace may verify the users of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// They may.
    Granted,
    /// The realm does not let the namespace in.
    NotLetIn,
    /// There is no namespace of the realm's name.
    NoSuchNamespace,
}

/// A `TwoFactorRealm` and what it comes to.
#[derive(Clone, Debug)]
pub struct KnownRealm {
    /// The object, as last seen.
    pub object: TwoFactorRealm,
    /// What it says, or why it says nothing.
    pub policy: Result<RealmPolicy, Vec<FieldError>>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KnownNamespace {
    uid: String,
    labels: BTreeMap<String, String>,
    /// Whether it is being deleted, and takes nothing new.
    ending: bool,
}

/// All realms and namespaces.
#[derive(Debug, Default)]
pub struct Policies {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    namespaces: HashMap<String, KnownNamespace>,
    /// By namespace and name.
    realms: HashMap<String, BTreeMap<String, Arc<KnownRealm>>>,
    /// By realm, those that it lets in, without its own.
    members: HashMap<String, BTreeSet<String>>,
    /// Realms that the leader has to look at again.
    changed: HashSet<String>,
}

impl Policies {
    /// Whether services of `namespace` may verify the users of the namespace `realm`.
    #[must_use]
    pub fn lets_in(&self, realm: &str, namespace: &str) -> Access {
        let state = self.state();
        if realm == namespace {
            Access::Granted
        } else if !state.namespaces.contains_key(realm) {
            Access::NoSuchNamespace
        } else if state.members.get(realm).is_some_and(|members| members.contains(namespace)) {
            Access::Granted
        } else {
            Access::NotLetIn
        }
    }

    /// The names of the Secrets with credentials that there are, or can be, in a namespace: for its
    /// own users, and for those of each realm that lets it in. Sorted.
    #[must_use]
    pub fn credentials_names(&self, namespace: &str) -> Vec<String> {
        let state = self.state();
        let others = state.members.iter().filter(|(_, members)| members.contains(namespace));
        let mut names: Vec<String> =
            others.map(|(realm, _)| labels::credentials_name(realm)).collect();
        names.push(labels::credentials_name(namespace));
        names.sort();
        names
    }

    /// What a realm says; nothing when there is no `TwoFactorRealm` that says anything.
    #[must_use]
    pub fn policy(&self, realm: &str) -> Option<RealmPolicy> {
        self.state().policy(realm).cloned()
    }

    /// Whether there is a `TwoFactorRealm` that says something.
    #[must_use]
    pub fn has_policy(&self, realm: &str) -> bool {
        self.state().policy(realm).is_some()
    }

    /// The namespaces that a realm lets in, its own included. They exist.
    #[must_use]
    pub fn namespaces_of(&self, realm: &str) -> BTreeSet<String> {
        let state = self.state();
        let mut namespaces = state.members.get(realm).cloned().unwrap_or_default();
        namespaces.insert(realm.to_owned());
        namespaces
    }

    /// The UID of a namespace, and whether it is being deleted.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<(String, bool)> {
        self.state().namespaces.get(name).map(|namespace| (namespace.uid.clone(), namespace.ending))
    }

    /// Every `TwoFactorRealm`.
    #[must_use]
    pub fn realms(&self) -> Vec<Arc<KnownRealm>> {
        self.state().realms.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The namespaces with a `TwoFactorRealm` that says something.
    #[must_use]
    pub fn namespaces_with_policy(&self) -> Vec<String> {
        let state = self.state();
        state.realms.keys().filter(|realm| state.policy(realm).is_some()).cloned().collect()
    }

    /// Waits until there are changes to take. For one at a time: the leader.
    pub async fn changed(&self) {
        self.news.notified().await;
    }

    /// The realms of which something has changed since this was last asked: what they say, or whom
    /// they let in.
    #[must_use]
    pub fn take_changes(&self) -> HashSet<String> {
        std::mem::take(&mut self.state().changed)
    }

    /// A namespace is there.
    pub fn namespace_seen(
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
        // Another one of the same name has another login.
        let renewed = old.is_none_or(|old| old.uid != uid);
        state.namespaces.insert(name.to_owned(), namespace);
        state.place(name, renewed);
        self.tell(&state);
    }

    /// A namespace is gone.
    pub fn namespace_gone(&self, name: &str) {
        let mut state = self.state();
        state.namespaces.remove(name);
        state.place(name, true);
        self.tell(&state);
    }

    /// The names of the namespaces that are known.
    #[must_use]
    pub fn namespaces(&self) -> HashSet<String> {
        self.state().namespaces.keys().cloned().collect()
    }

    /// A `TwoFactorRealm` is there.
    pub fn realm_seen(&self, object: TwoFactorRealm) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let known = KnownRealm { policy: validate(&object), object };
        let mut state = self.state();
        let realms = state.realms.entry(namespace.clone()).or_default();
        let changed = realms.get(&name).is_none_or(|old| old.policy != known.policy);
        let is_the_one = name == labels::REALM_NAME;
        realms.insert(name, Arc::new(known));
        if changed && is_the_one {
            state.decide(&namespace);
        }
        self.tell(&state);
    }

    /// A `TwoFactorRealm` is gone.
    pub fn realm_gone(&self, namespace: &str, name: &str) {
        let mut state = self.state();
        let Some(realms) = state.realms.get_mut(namespace) else { return };
        realms.remove(name);
        if realms.is_empty() {
            state.realms.remove(namespace);
        }
        if name == labels::REALM_NAME {
            state.decide(namespace);
        }
        self.tell(&state);
    }

    /// The namespaces and names of every `TwoFactorRealm`.
    #[must_use]
    pub fn realm_names(&self) -> HashSet<(String, String)> {
        let state = self.state();
        let names = |(namespace, realms): (&String, &BTreeMap<String, _>)| {
            realms.keys().map(|name| (namespace.clone(), name.clone())).collect::<Vec<_>>()
        };
        state.realms.iter().flat_map(names).collect()
    }

    fn tell(&self, state: &State) {
        if !state.changed.is_empty() {
            self.news.notify_one();
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

    /// Works out whom a realm lets in.
    fn decide(&mut self, realm: &str) {
        let members: BTreeSet<String> = match self.policy(realm) {
            Some(policy) => {
                let others = self.namespaces.iter().filter(|(name, _)| *name != realm);
                others
                    .filter(|(name, namespace)| policy.lets_in(name, &namespace.labels))
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

    /// Works out who lets a namespace in. `renewed`: also where that stays as it is, something has
    /// changed.
    fn place(&mut self, name: &str, renewed: bool) {
        let namespace = self.namespaces.get(name);
        let deciding = |realm: &&String| realm.as_str() != name && self.policy(realm).is_some();
        let realms: Vec<(String, bool)> = self
            .realms
            .keys()
            .filter(deciding)
            .map(|realm| {
                let policy = self.policy(realm);
                let lets_in = policy
                    .zip(namespace)
                    .is_some_and(|(policy, namespace)| policy.lets_in(name, &namespace.labels));
                (realm.clone(), lets_in)
            })
            .collect();
        for (realm, lets_in) in realms {
            let members = self.members.entry(realm.clone()).or_default();
            let changed =
                if lets_in { members.insert(name.to_owned()) } else { members.remove(name) };
            if members.is_empty() {
                self.members.remove(&realm);
            }
            if changed || (renewed && lets_in) {
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
        policies.namespace_seen(name, &format!("uid-{name}"), &labels, false);
    }

    fn changes(policies: &Policies) -> Vec<String> {
        let mut changes: Vec<String> = policies.take_changes().into_iter().collect();
        changes.sort();
        changes
    }

    #[test]
    fn without_a_realm_only_the_own_namespace_is_let_in() {
        let policies = Policies::default();
        assert_eq!(policies.lets_in("people", "people"), Access::Granted);
        assert_eq!(policies.lets_in("people", "kms"), Access::NoSuchNamespace);
        namespace(&policies, "people", None);
        assert_eq!(policies.lets_in("people", "kms"), Access::NotLetIn);
        assert_eq!(policies.credentials_names("kms"), ["twofactor-kms"]);
    }

    #[test]
    fn a_namespace_is_let_in_by_its_name_as_soon_as_there_is_one() {
        let policies = Policies::default();
        namespace(&policies, "people", None);
        policies.realm_seen(realm("people", json!({ "allowedNamespaces": { "names": ["kms"] } })));
        assert_eq!(policies.lets_in("people", "kms"), Access::NotLetIn);
        assert_eq!(changes(&policies), ["people"]);
        namespace(&policies, "kms", None);
        assert_eq!(policies.lets_in("people", "kms"), Access::Granted);
        assert_eq!(policies.credentials_names("kms"), ["twofactor-kms", "twofactor-people"]);
        assert_eq!(changes(&policies), ["kms", "people"]);
        policies.namespace_gone("kms");
        assert_eq!(policies.namespaces_of("people"), ["people".to_owned()].into());
        assert!(changes(&policies).contains(&"people".to_owned()));
    }

    #[test]
    fn labels_decide_when_they_come_and_when_they_go() {
        let policies = Policies::default();
        for name in ["people", "kms", "other"] {
            namespace(&policies, name, None);
        }
        let selector =
            json!({ "allowedNamespaces": { "selector": { "matchLabels": { "team": "a" } } } });
        policies.realm_seen(realm("people", selector));
        changes(&policies);
        namespace(&policies, "kms", Some("a"));
        assert_eq!(
            (policies.lets_in("people", "kms"), changes(&policies)),
            (Access::Granted, vec!["people".to_owned()])
        );
        namespace(&policies, "other", Some("b"));
        assert_eq!(
            (policies.lets_in("people", "other"), changes(&policies)),
            (Access::NotLetIn, vec![])
        );
        namespace(&policies, "kms", Some("b"));
        assert_eq!(
            (policies.lets_in("people", "kms"), changes(&policies)),
            (Access::NotLetIn, vec!["people".to_owned()])
        );
    }

    #[test]
    fn another_namespace_of_the_same_name_is_a_change() {
        let policies = Policies::default();
        namespace(&policies, "people", None);
        namespace(&policies, "kms", None);
        policies.realm_seen(realm("people", json!({ "allowedNamespaces": { "names": ["kms"] } })));
        changes(&policies);
        policies.namespace_seen("kms", "another", &BTreeMap::new(), false);
        assert_eq!(changes(&policies), ["kms", "people"]);
        policies.namespace_seen("kms", "another", &BTreeMap::new(), false);
        assert!(changes(&policies).is_empty());
    }

    #[test]
    fn a_realm_that_is_not_valid_or_not_the_default_lets_nobody_in() {
        let policies = Policies::default();
        namespace(&policies, "people", None);
        namespace(&policies, "kms", None);
        let spec = json!({ "allowedNamespaces": { "names": ["kms"] } });
        let mut other = realm("people", spec.clone());
        other.metadata.name = Some("other".to_owned());
        policies.realm_seen(other);
        assert_eq!(policies.lets_in("people", "kms"), Access::NotLetIn);
        policies.realm_seen(realm("people", spec));
        assert_eq!(policies.lets_in("people", "kms"), Access::Granted);
        policies.realm_gone("people", "other");
        assert_eq!(policies.lets_in("people", "kms"), Access::Granted);
        let wrong = json!({ "issuer": "a:b", "allowedNamespaces": { "names": ["kms"] } });
        policies.realm_seen(realm("people", wrong));
        assert_eq!(policies.lets_in("people", "kms"), Access::NotLetIn);
        policies.realm_gone("people", "default");
        assert!(policies.realms().is_empty());
    }

    #[test]
    fn a_status_is_no_change() {
        let policies = Policies::default();
        let mut object = realm("people", json!({ "issuer": "A" }));
        policies.realm_seen(object.clone());
        assert_eq!(changes(&policies), ["people"]);
        object.status = Some(twofactor_api::realm::TwoFactorRealmStatus::default());
        policies.realm_seen(object);
        assert!(changes(&policies).is_empty());
        assert!(policies.realms()[0].object.status.is_some());
    }
}
