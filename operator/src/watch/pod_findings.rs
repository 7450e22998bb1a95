//! Finds problems of pods that ask for the sidecar. From the pods' annotations and the realms'
//! allowed namespaces it makes findings with the texts of Events, and counts. No I/O.

use std::collections::{BTreeMap, HashMap, HashSet};

use twofactor_api::labels::{INJECTED_ANNOTATION, REALM_ANNOTATION, credentials_name};

use crate::k8s::events::Notice;
use crate::state::realm_policies::NamespaceAccess;

/// A pod that asks for the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod's UID.
    pub uid: String,
    /// The namespace whose users the pod verifies.
    pub realm: String,
    /// The version of the operator that added the sidecar; nothing if the pod has no sidecar.
    pub injected: Option<String>,
    /// Whether the pod is being deleted. Until it is gone it may need its credentials.
    pub ending: bool,
}

/// A problem of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodProblem {
    /// The pod runs without the sidecar.
    NotInjected,
    /// The pod waits for credentials that its realm does not give to its namespace.
    NamespaceNotAllowed,
    /// The pod waits for the first user of its own namespace, or its author has forgotten to name
    /// another namespace.
    NoUsers,
}

/// A problem that was found at one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFinding {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod.
    pub pod: Pod,
    /// The problem.
    pub problem: PodProblem,
    /// The Event about it.
    pub notice: Notice,
}

/// Numbers of pods of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods without the sidecar.
    pub not_injected: usize,
    /// Pods that wait for credentials.
    pub waiting: usize,
    /// Pods with a sidecar of another version, by realm.
    pub outdated: HashMap<String, usize>,
}

/// All pods that ask for the sidecar.
#[derive(Debug, Default)]
pub struct Pods {
    /// By namespace and name.
    pods: HashMap<(String, String), Pod>,
    /// Problems that were reported already, by UID.
    reported: HashSet<(String, PodProblem)>,
}

impl Pod {
    /// Makes a pod in `namespace` from its annotations.
    #[must_use]
    pub fn of(namespace: &str, uid: String, annotations: &BTreeMap<String, String>) -> Self {
        let realm =
            annotations.get(REALM_ANNOTATION).cloned().unwrap_or_else(|| namespace.to_owned());
        Self { uid, realm, injected: annotations.get(INJECTED_ANNOTATION).cloned(), ending: false }
    }
}

impl Pods {
    /// Records a pod that was created or changed. Returns what it was before.
    pub fn applied(&mut self, namespace: &str, name: &str, pod: Pod) -> Option<Pod> {
        self.pods.insert((namespace.to_owned(), name.to_owned()), pod)
    }

    /// Records that a pod was deleted. Returns what it was.
    pub fn deleted(&mut self, namespace: &str, name: &str) -> Option<Pod> {
        let pod = self.pods.remove(&(namespace.to_owned(), name.to_owned()))?;
        self.reported.retain(|(uid, _)| *uid != pod.uid);
        Some(pod)
    }

    /// Evaluates all pods and returns the counts, and the problems that were not reported yet.
    /// `access` takes a realm and a namespace, `has_users` a realm, which a policy makes one too;
    /// `version` is the operator's.
    pub fn evaluate(
        &mut self,
        access: impl Fn(&str, &str) -> NamespaceAccess,
        has_users: impl Fn(&str) -> bool,
        version: &str,
    ) -> (Counts, Vec<PodFinding>) {
        let mut counts = Counts::default();
        let mut findings = Vec::new();
        for ((namespace, name), pod) in self.pods.iter().filter(|(_, pod)| !pod.ending) {
            let access = access(&pod.realm, namespace);
            let problem = match &pod.injected {
                None => {
                    counts.not_injected += 1;
                    PodProblem::NotInjected
                }
                Some(injected) => {
                    // Pods of other namespaces have no keys of the realm and hold nothing up.
                    if injected != version && access == NamespaceAccess::Allowed {
                        *counts.outdated.entry(pod.realm.clone()).or_default() += 1;
                    }
                    // Other realms' credentials exist before the realms have users.
                    let without_users = pod.realm == *namespace && !has_users(&pod.realm);
                    if access == NamespaceAccess::Allowed && !without_users {
                        // If the realm stops allowing the namespace, that is reported again.
                        self.reported.remove(&(pod.uid.clone(), PodProblem::NamespaceNotAllowed));
                        self.reported.remove(&(pod.uid.clone(), PodProblem::NoUsers));
                        continue;
                    }
                    counts.waiting += 1;
                    if access == NamespaceAccess::Allowed {
                        PodProblem::NoUsers
                    } else {
                        PodProblem::NamespaceNotAllowed
                    }
                }
            };
            if self.reported.insert((pod.uid.clone(), problem)) {
                findings.push(PodFinding {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    pod: pod.clone(),
                    problem,
                    notice: notice(namespace, pod, problem, access),
                });
            }
        }
        (counts, findings)
    }
}

fn notice(namespace: &str, pod: &Pod, problem: PodProblem, access: NamespaceAccess) -> Notice {
    let realm = &pod.realm;
    match (problem, access) {
        (PodProblem::NotInjected, _) => Notice::warning(
            "NotInjected",
            "The pod asks for the two-factor sidecar by its label, but was created while the webhook was not \
             installed, and runs without it: delete the pod, so that it is created again",
        ),
        (PodProblem::NoUsers, _) => Notice::warning(
            "NoUsers",
            format!(
                "The pod verifies the users of its own namespace, which has no TwoFactorUser: create one, or \
                 name the namespace of the users with the annotation {REALM_ANNOTATION}"
            ),
        ),
        (PodProblem::NamespaceNotAllowed, NamespaceAccess::NoSuchNamespace) => Notice::warning(
            "NamespaceNotAllowed",
            format!(
                "The pod's annotation {REALM_ANNOTATION} names the namespace {realm}, which does not exist: create \
                 it or change the annotation"
            ),
        ),
        (PodProblem::NamespaceNotAllowed, _) => Notice::warning(
            "NamespaceNotAllowed",
            format!(
                "The realm {realm} does not allow the namespace {namespace}, so the Secret {} does not exist \
                 here: add {namespace} to spec.allowedNamespaces of the TwoFactorRealm default in {realm}",
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

    fn own_only(realm: &str, namespace: &str) -> NamespaceAccess {
        if realm == namespace { NamespaceAccess::Allowed } else { NamespaceAccess::NotAllowed }
    }

    #[test]
    fn an_outdated_pod_of_a_namespace_that_is_not_allowed_does_not_count() {
        let mut pods = Pods::default();
        pods.applied("neighbour", "old", pod("1", Some("kms"), Some("1")));
        let (counts, _) = pods.evaluate(own_only, |_| true, "2");
        assert_eq!(counts.outdated, HashMap::new());
    }

    #[test]
    fn a_problem_is_reported_once_and_counted_while_it_lasts() {
        let mut pods = Pods::default();
        pods.applied("kms", "good", pod("1", None, Some("2")));
        pods.applied("kms", "old", pod("2", None, Some("1")));
        pods.applied("kms", "bare", pod("3", None, None));
        pods.applied("kms", "waiting", pod("4", Some("people"), Some("2")));
        let (counts, mut findings) = pods.evaluate(own_only, |_| true, "2");
        assert_eq!((counts.not_injected, counts.waiting), (1, 1));
        assert_eq!(counts.outdated, HashMap::from([("kms".to_owned(), 1)]));
        findings.sort_by(|a, b| a.name.cmp(&b.name));
        let reported: Vec<_> =
            findings.iter().map(|it| (it.name.as_str(), it.notice.reason)).collect();
        assert_eq!(reported, [("bare", "NotInjected"), ("waiting", "NamespaceNotAllowed")]);
        assert!(findings[1].notice.note.contains("TwoFactorRealm default in people"));
        let (again, findings) = pods.evaluate(own_only, |_| true, "2");
        assert_eq!((again, findings.len()), (counts, 0));
        let (counts, _) = pods.evaluate(|_, _| NamespaceAccess::Allowed, |_| true, "2");
        assert_eq!(counts.waiting, 0);
        assert_eq!(pods.evaluate(own_only, |_| true, "2").1.len(), 1, "not allowed again");
        pods.deleted("kms", "bare");
        assert_eq!(pods.evaluate(own_only, |_| true, "2").0.not_injected, 0);
    }

    #[test]
    fn a_pod_whose_realm_has_no_namespace_is_reported() {
        let mut pods = Pods::default();
        pods.applied("kms", "pod", pod("1", Some("peeple"), Some("1")));
        let (_, findings) = pods.evaluate(|_, _| NamespaceAccess::NoSuchNamespace, |_| true, "1");
        assert!(findings[0].notice.note.contains("peeple, which does not exist"));
    }

    #[test]
    fn a_pod_without_a_realm_annotation_in_a_namespace_without_users_is_reported() {
        let mut pods = Pods::default();
        let annotations = BTreeMap::from([(INJECTED_ANNOTATION.to_owned(), "1".to_owned())]);
        pods.applied("kms", "service", Pod::of("kms", "1".to_owned(), &annotations));
        let (counts, findings) = pods.evaluate(|_, _| NamespaceAccess::Allowed, |_| false, "1");
        assert_eq!((counts.waiting, findings[0].problem), (1, PodProblem::NoUsers));
        assert!(findings[0].notice.note.contains(REALM_ANNOTATION), "{findings:?}");
        assert_eq!(pods.evaluate(|_, _| NamespaceAccess::Allowed, |_| true, "1").0.waiting, 0);
    }
}
