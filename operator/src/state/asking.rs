//! Knows in which namespaces pods ask for the credentials of a realm, or have asked for them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::credentials::Target;

/// The number of pods that ask, by what they ask for. It is 0 for credentials that exist although
/// no pod asks for them any more.
#[derive(Debug, Default)]
pub struct AskingPods(Mutex<HashMap<Target, usize>>);

impl AskingPods {
    /// Records a pod that asks. Returns whether it is the only one.
    pub fn appeared(&self, target: &Target) -> bool {
        let mut targets = self.targets();
        let pods = targets.entry(target.clone()).or_default();
        *pods += 1;
        *pods == 1
    }

    /// Records that a pod asks no longer. Returns whether it was the only one.
    pub fn disappeared(&self, target: &Target) -> bool {
        let mut targets = self.targets();
        let Some(pods) = targets.get_mut(target) else { return false };
        *pods = pods.saturating_sub(1);
        *pods == 0
    }

    /// Records that credentials exist.
    pub fn found(&self, target: &Target) {
        self.targets().entry(target.clone()).or_default();
    }

    /// Records that no credentials exist.
    pub fn forget(&self, target: &Target) {
        let mut targets = self.targets();
        if targets.get(target) == Some(&0) {
            targets.remove(target);
        }
    }

    /// Whether a pod asks.
    pub fn has_pods(&self, target: &Target) -> bool {
        self.targets().get(target).is_some_and(|pods| *pods > 0)
    }

    /// Whether a pod asks, or has asked and the credentials still exist.
    pub fn is_asked(&self, target: &Target) -> bool {
        self.targets().contains_key(target)
    }

    fn targets(&self) -> MutexGuard<'_, HashMap<Target, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_asked_for_by_pods_and_afterwards_as_long_as_they_exist() {
        let pods = AskingPods::default();
        let target = Target { realm: "people".to_owned(), namespace: "kms".to_owned() };
        assert!(!pods.is_asked(&target) && !pods.disappeared(&target));
        assert!(pods.appeared(&target) && !pods.appeared(&target));
        assert!(!pods.disappeared(&target) && pods.has_pods(&target));
        pods.forget(&target);
        assert!(pods.is_asked(&target), "a pod still asks");
        assert!(pods.disappeared(&target) && !pods.has_pods(&target));
        assert!(pods.is_asked(&target), "the credentials may exist");
        pods.forget(&target);
        assert!(!pods.is_asked(&target));
        pods.found(&target);
        assert!(pods.is_asked(&target) && !pods.has_pods(&target));
        assert!(pods.appeared(&target), "the first pod after a restart of the operator");
    }
}
