//! Counts the pods of each namespace that ask for the credentials of a realm.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::credentials::Target;

/// Time for which credentials stay after the last pod that asked for them, so that a rollout or the
/// next Job finds them.
pub const LINGER: Duration = Duration::from_mins(10);

/// The pods that ask for credentials, by what they ask for.
#[derive(Debug, Default)]
pub struct AskingPods(Mutex<HashMap<Target, Asking>>);

#[derive(Debug, PartialEq, Eq)]
enum Asking {
    /// This number of pods asks.
    Pods(usize),
    /// None has asked since this moment.
    Idle(Instant),
    /// None has asked for longer than [`LINGER`].
    Expired,
}

impl AskingPods {
    /// Records a pod that asks. Returns whether it is the only one.
    pub fn appeared(&self, target: &Target) -> bool {
        let mut targets = self.targets();
        let asking = targets.entry(target.clone()).or_insert(Asking::Pods(0));
        let pods = if let Asking::Pods(pods) = asking { *pods } else { 0 };
        *asking = Asking::Pods(pods + 1);
        pods == 0
    }

    /// Records that a pod asks no longer.
    pub fn disappeared(&self, target: &Target, now: Instant) {
        if let Some(asking) = self.targets().get_mut(target)
            && let Asking::Pods(pods) = asking
        {
            *pods -= 1;
            if *pods == 0 {
                *asking = Asking::Idle(now);
            }
        }
    }

    /// Records that credentials exist, which stay for a while although no pod may ask for them.
    pub fn found(&self, target: &Target, now: Instant) {
        self.targets().entry(target.clone()).or_insert(Asking::Idle(now));
    }

    /// Whether a pod asks.
    pub fn has_pods(&self, target: &Target) -> bool {
        matches!(self.targets().get(target), Some(Asking::Pods(_)))
    }

    /// Whether a pod asks, or has asked a short while ago.
    pub fn is_asked(&self, target: &Target) -> bool {
        matches!(self.targets().get(target), Some(Asking::Pods(_) | Asking::Idle(_)))
    }

    /// Returns what no pod has asked for long enough. Each is returned once.
    pub fn take_expired(&self, now: Instant) -> Vec<Target> {
        let mut expired = Vec::new();
        for (target, asking) in self.targets().iter_mut() {
            if let Asking::Idle(since) = asking
                && now.saturating_duration_since(*since) >= LINGER
            {
                *asking = Asking::Expired;
                expired.push(target.clone());
            }
        }
        expired
    }

    /// Forgets what no pod asks for any more, because there are no credentials.
    pub fn forget(&self, target: &Target) {
        let mut targets = self.targets();
        if targets.get(target) == Some(&Asking::Expired) {
            targets.remove(target);
        }
    }

    fn targets(&self) -> MutexGuard<'_, HashMap<Target, Asking>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { realm: "people".to_owned(), namespace: "kms".to_owned() }
    }

    #[test]
    fn credentials_are_asked_for_until_a_while_after_the_last_pod() {
        let (pods, target, began) = (AskingPods::default(), target(), Instant::now());
        assert!(!pods.is_asked(&target));
        assert!(pods.appeared(&target) && !pods.appeared(&target));
        pods.disappeared(&target, began);
        assert!(pods.has_pods(&target));
        pods.disappeared(&target, began);
        assert!(!pods.has_pods(&target) && pods.is_asked(&target));
        let almost = (began + LINGER).checked_sub(Duration::from_secs(1)).unwrap();
        assert!(pods.take_expired(almost).is_empty());
        assert_eq!(pods.take_expired(began + LINGER), std::slice::from_ref(&target));
        assert!(pods.take_expired(began + LINGER).is_empty() && !pods.is_asked(&target));
        pods.forget(&target);
        assert!(pods.targets().is_empty());
    }

    #[test]
    fn a_pod_that_comes_in_time_keeps_credentials_that_were_found() {
        let (pods, target, began) = (AskingPods::default(), target(), Instant::now());
        pods.found(&target, began);
        assert!(pods.is_asked(&target) && !pods.has_pods(&target));
        assert!(pods.appeared(&target));
        pods.found(&target, began);
        pods.forget(&target);
        assert!(pods.take_expired(began + LINGER * 2).is_empty() && pods.has_pods(&target));
    }

    #[test]
    fn an_expired_target_is_asked_for_again_only_by_a_pod() {
        let (pods, target, began) = (AskingPods::default(), target(), Instant::now());
        pods.found(&target, began);
        let _ = pods.take_expired(began + LINGER);
        pods.found(&target, began + LINGER);
        assert!(!pods.is_asked(&target));
        assert!(pods.appeared(&target) && pods.is_asked(&target));
    }
}
