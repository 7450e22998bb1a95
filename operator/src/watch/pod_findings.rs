//! Pods that ask for the sidecar, and what is wrong with them. Enters: pods' labels and
//! annotations, and whom the realms let in. Leaves: what there is to tell of each, and counts. No
//! I/O.

use std::collections::{BTreeMap, HashMap, HashSet};

use twofactor_api::labels::{INJECTED_ANNOTATION, REALM_ANNOTATION, credentials_name};

use crate::k8s::events::Notice;
use crate::state::realm_policies::Access;

/// A pod that asks for the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// The namespace of the users whom it verifies.
    pub realm: String,
    /// The version of the operator that gave it the sidecar; nothing when it has none.
    pub injected: Option<String>,
}

/// What is wrong with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// It runs without the sidecar.
    NotInjected,
    /// It waits for credentials that it is not going to get.
    NotLetIn,
    /// It waits for the first user of its own namespace, or its author has forgotten to name
    /// another one.
    NoUsers,
}

/// What there is to tell about one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pod.
    pub pod: Pod,
    /// What is wrong.
    pub trouble: Trouble,
    /// In a sentence.
    pub notice: Notice,
}

/// How many pods there are of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods without the sidecar.
    pub not_injected: usize,
    /// Pods whose realm does not let them in.
    pub waiting: usize,
    /// Pods with a sidecar of another version, by realm.
    pub outdated: HashMap<String, usize>,
}

/// All of them, by namespace and name.
#[derive(Debug, Default)]
pub struct Pods {
    pods: HashMap<(String, String), Pod>,
    /// What was told already, by UID.
    told: HashSet<(String, Trouble)>,
}

impl Pod {
    /// A pod in `namespace`, by its annotations.
    #[must_use]
    pub fn of(namespace: &str, uid: String, annotations: &BTreeMap<String, String>) -> Self {
        let realm =
            annotations.get(REALM_ANNOTATION).cloned().unwrap_or_else(|| namespace.to_owned());
        Self { uid, realm, injected: annotations.get(INJECTED_ANNOTATION).cloned() }
    }
}

impl Pods {
    /// A pod is there. Tells whether it is news.
    pub fn seen(&mut self, namespace: &str, name: &str, pod: Pod) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        let news = self.pods.get(&key) != Some(&pod);
        self.pods.insert(key, pod);
        news
    }

    /// A pod is gone.
    pub fn gone(&mut self, namespace: &str, name: &str) {
        if let Some(pod) = self.pods.remove(&(namespace.to_owned(), name.to_owned())) {
            self.told.retain(|(uid, _)| *uid != pod.uid);
        }
    }

    /// The namespaces and names of all.
    #[must_use]
    pub fn names(&self) -> HashSet<(String, String)> {
        self.pods.keys().cloned().collect()
    }

    /// Looks at all pods: the counts, and what was not told yet. `lets_in` is asked with a realm
    /// and a namespace, `has_users` with a realm; `version` is the operator's.
    pub fn judge(
        &mut self,
        lets_in: impl Fn(&str, &str) -> Access,
        has_users: impl Fn(&str) -> bool,
        version: &str,
    ) -> (Counts, Vec<Finding>) {
        let mut counts = Counts::default();
        let mut findings = Vec::new();
        for ((namespace, name), pod) in &self.pods {
            let access = lets_in(&pod.realm, namespace);
            let trouble = match &pod.injected {
                None => {
                    counts.not_injected += 1;
                    Trouble::NotInjected
                }
                Some(injected) => {
                    if injected != version {
                        *counts.outdated.entry(pod.realm.clone()).or_default() += 1;
                    }
                    // Other realms' credentials are there before they have users.
                    let without_users = pod.realm == *namespace && !has_users(&pod.realm);
                    if access == Access::Granted && !without_users {
                        // It may be shut out once more, and that is news then.
                        self.told.remove(&(pod.uid.clone(), Trouble::NotLetIn));
                        self.told.remove(&(pod.uid.clone(), Trouble::NoUsers));
                        continue;
                    }
                    counts.waiting += 1;
                    if access == Access::Granted { Trouble::NoUsers } else { Trouble::NotLetIn }
                }
            };
            if self.told.insert((pod.uid.clone(), trouble)) {
                findings.push(Finding {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    pod: pod.clone(),
                    trouble,
                    notice: notice(namespace, pod, trouble, access),
                });
            }
        }
        (counts, findings)
    }
}

fn notice(namespace: &str, pod: &Pod, trouble: Trouble, access: Access) -> Notice {
    let realm = &pod.realm;
    match (trouble, access) {
        (Trouble::NotInjected, _) => Notice::warning(
            "NotInjected",
            "The pod asks for the two-factor sidecar by its label, but was created while the webhook was not installed, and runs \
             without it: delete the pod, so that it is created anew",
        ),
        (Trouble::NoUsers, _) => Notice::warning(
            "NoUsers",
            format!(
                "The pod is to verify the users of its own namespace, where there is no TwoFactorUser: create one, or name the namespace of \
                 the users with the annotation {REALM_ANNOTATION}"
            ),
        ),
        (Trouble::NotLetIn, Access::NoSuchNamespace) => Notice::warning(
            "NotLetIn",
            format!(
                "The pod's annotation {REALM_ANNOTATION} names the namespace {realm}, which does not exist: create it or change \
                 the annotation"
            ),
        ),
        (Trouble::NotLetIn, _) => Notice::warning(
            "NotLetIn",
            format!(
                "The namespace {realm} does not let the namespace {namespace} verify its users, so the Secret {} is missing here: \
                 add {namespace} to spec.allowedNamespaces of the TwoFactorRealm default in {realm}",
                credentials_name(realm)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, realm: Option<&str>, injected: Option<&str>) -> Pod {
        let annotations = [(REALM_ANNOTATION, realm), (INJECTED_ANNOTATION, injected)];
        let annotations = annotations
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        Pod::of("kms", uid.to_owned(), &annotations)
    }

    fn own_only(realm: &str, namespace: &str) -> Access {
        if realm == namespace { Access::Granted } else { Access::NotLetIn }
    }

    #[test]
    fn what_is_wrong_is_told_once_and_counted_as_long_as_it_is() {
        let mut pods = Pods::default();
        pods.seen("kms", "good", pod("1", None, Some("2")));
        pods.seen("kms", "old", pod("2", None, Some("1")));
        pods.seen("kms", "bare", pod("3", None, None));
        pods.seen("kms", "waiting", pod("4", Some("people"), Some("2")));
        let (counts, mut findings) = pods.judge(own_only, |_| true, "2");
        assert_eq!((counts.not_injected, counts.waiting), (1, 1));
        assert_eq!(counts.outdated, HashMap::from([("kms".to_owned(), 1)]));
        findings.sort_by(|a, b| a.name.cmp(&b.name));
        let told: Vec<_> = findings.iter().map(|it| (it.name.as_str(), it.notice.reason)).collect();
        assert_eq!(told, [("bare", "NotInjected"), ("waiting", "NotLetIn")]);
        assert!(findings[1].notice.note.contains("TwoFactorRealm default in people"));
        let (again, findings) = pods.judge(own_only, |_| true, "2");
        assert_eq!((again, findings.len()), (counts, 0));
        let (counts, _) = pods.judge(|_, _| Access::Granted, |_| true, "2");
        assert_eq!(counts.waiting, 0);
        assert_eq!(pods.judge(own_only, |_| true, "2").1.len(), 1, "shut out once more");
        pods.gone("kms", "bare");
        assert_eq!(pods.judge(own_only, |_| true, "2").0.not_injected, 0);
    }

    #[test]
    fn a_realm_without_a_namespace_is_told_as_such() {
        let mut pods = Pods::default();
        pods.seen("kms", "pod", pod("1", Some("peeple"), Some("1")));
        let (_, findings) = pods.judge(|_, _| Access::NoSuchNamespace, |_| true, "1");
        assert!(findings[0].notice.note.contains("peeple, which does not exist"));
    }

    #[test]
    fn a_pod_that_forgot_to_name_its_realm_is_told_that_there_are_no_users() {
        let mut pods = Pods::default();
        let annotations = BTreeMap::from([(INJECTED_ANNOTATION.to_owned(), "1".to_owned())]);
        pods.seen("kms", "service", Pod::of("kms", "1".to_owned(), &annotations));
        let (counts, findings) = pods.judge(|_, _| Access::Granted, |_| false, "1");
        assert_eq!((counts.waiting, findings[0].trouble), (1, Trouble::NoUsers));
        assert!(findings[0].notice.note.contains(REALM_ANNOTATION), "{findings:?}");
        assert_eq!(pods.judge(|_, _| Access::Granted, |_| true, "1").0.waiting, 0);
    }
}
