//! Knows which watches of single namespaces the API server refuses, because the operator has no
//! rights there (403). The other namespaces go on.
//!
//! A namespace that could never be listed is left alone: nothing that belongs to it is removed from
//! Redis, because the operator does not know what should be there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};
use tokio::sync::Notify;
use twofactor_server::metrics::{Kind, Metric, Registrar};

use crate::metrics::number;

/// The refused watches. Copies share the same state.
#[derive(Clone, Debug, Default)]
pub struct RefusedWatches(Arc<Inner>);

/// A watch of a namespace: its resource, such as `secrets`, and its selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchId {
    pub resource: String,
    pub selector: String,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    recovered: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By namespace: whether the objects of each watch were listed before.
    refused: BTreeMap<String, BTreeMap<WatchId, bool>>,
    /// Namespaces that were deleted, with their roles.
    deleted: BTreeSet<String>,
    /// Namespaces that can be listed now for the first time, and have to be reconciled.
    recovered: BTreeSet<String>,
}

impl RefusedWatches {
    /// Records that a watch is refused, and whether its objects were listed before. Returns whether
    /// this is new for the resource.
    pub fn refuse(&self, namespace: &str, watch: &WatchId, was_listed: bool) -> bool {
        let mut state = self.state();
        let watches = state.refused.entry(namespace.to_owned()).or_default();
        let is_new = watches.keys().all(|known| known.resource != watch.resource);
        watches.insert(watch.clone(), was_listed);
        is_new
    }

    /// Records that the objects of a watch are listed. Returns whether it was the last one of its
    /// resource that was refused.
    pub fn allow(&self, namespace: &str, watch: &WatchId) -> bool {
        let mut state = self.state();
        let Some(watches) = state.refused.get_mut(namespace) else { return false };
        let Some(was_listed) = watches.remove(watch) else { return false };
        let is_listed = !watches.values().any(|was_listed| !was_listed);
        let is_last = watches.keys().all(|other| other.resource != watch.resource);
        if watches.is_empty() {
            state.refused.remove(namespace);
        }
        if !was_listed && is_listed {
            state.recovered.insert(namespace.to_owned());
            self.0.recovered.notify_one();
        }
        is_last
    }

    /// Whether a watch of the namespace is refused and its objects were never listed.
    pub fn is_unlisted(&self, namespace: &str) -> bool {
        let state = self.state();
        let watches = state.refused.get(namespace);
        watches.is_some_and(|watches| watches.values().any(|was_listed| !was_listed))
    }

    /// The resources of a namespace that the operator may not list.
    pub fn resources(&self, namespace: &str) -> Vec<String> {
        let state = self.state();
        let watches = state.refused.get(namespace).into_iter().flat_map(BTreeMap::keys);
        let mut resources: Vec<String> = watches.map(|watch| watch.resource.clone()).collect();
        // Watches of the same resource are neighbours.
        resources.dedup();
        resources
    }

    /// The number of namespaces in which each resource is refused.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let namespaces: Vec<String> = self.state().refused.keys().cloned().collect();
        let mut counts = BTreeMap::new();
        for resource in namespaces.iter().flat_map(|namespace| self.resources(namespace)) {
            *counts.entry(resource).or_default() += 1;
        }
        counts
    }

    /// Waits until namespaces can be listed that could not be before.
    pub async fn recovered(&self) -> BTreeSet<String> {
        loop {
            let recovered = std::mem::take(&mut self.state().recovered);
            if !recovered.is_empty() {
                return recovered;
            }
            self.0.recovered.notified().await;
        }
    }

    /// Records whether a namespace was deleted.
    pub fn namespace_deleted(&self, namespace: &str, is_deleted: bool) {
        let mut state = self.state();
        if is_deleted {
            state.deleted.insert(namespace.to_owned());
        } else {
            state.deleted.remove(namespace);
        }
    }

    /// Whether the namespace was deleted, and so every object in it.
    pub fn is_deleted(&self, namespace: &str) -> bool {
        self.state().deleted.contains(namespace)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows the refused watches, when Prometheus asks.
pub struct ForbiddenWatches {
    refused: RefusedWatches,
    gauge: IntGaugeVec,
}

impl ForbiddenWatches {
    const METRIC: Metric = Metric {
        name: "twofactor_watches_forbidden",
        kind: Kind::Gauge,
        labels: &["resource"],
        help: "Namespaces in which the API server does not let the operator list a resource, because it lacks the right.",
    };

    /// Shows the watches of `refused`.
    pub fn register(registrar: &mut Registrar, refused: RefusedWatches) -> prometheus::Result<()> {
        let Metric { name, labels, help, .. } = Self::METRIC;
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registrar.collector(Self::METRIC, Self { refused, gauge })
    }
}

impl Collector for ForbiddenWatches {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.reset();
        for (resource, namespaces) in self.refused.counts() {
            self.gauge.with_label_values(&[resource.as_str()]).set(number(namespaces));
        }
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(resource: &str, selector: &str) -> WatchId {
        WatchId { resource: resource.to_owned(), selector: selector.to_owned() }
    }

    #[test]
    fn a_namespace_is_unlisted_while_one_of_its_first_lists_is_refused() {
        let refused = RefusedWatches::default();
        let (secrets, users) = (watch("secrets", ""), watch("users", ""));
        assert!(refused.refuse("a", &secrets, false) && !refused.refuse("a", &secrets, false));
        assert!(!refused.refuse("a", &watch("secrets", "x"), false), "known of the resource");
        assert!(refused.refuse("a", &users, false) && refused.refuse("b", &users, true));
        assert_eq!((refused.is_unlisted("a"), refused.is_unlisted("b")), (true, false));
        assert_eq!(refused.resources("a"), ["secrets", "users"]);
        assert_eq!(refused.counts(), BTreeMap::from([("secrets".into(), 1), ("users".into(), 2)]));
        assert!(refused.allow("a", &users) && refused.is_unlisted("a"));
        assert!(!refused.allow("a", &secrets), "the other one is still refused");
        assert!(refused.allow("a", &watch("secrets", "x")) && !refused.is_unlisted("a"));
        assert!(!refused.allow("a", &secrets), "it is allowed already");
        assert_eq!(refused.resources("b"), ["users"]);
    }

    #[tokio::test]
    async fn a_namespace_recovers_once_when_everything_in_it_can_be_listed() {
        let refused = RefusedWatches::default();
        let [secrets, users, pods] = ["secrets", "users", "pods"].map(|name| watch(name, ""));
        for (watch, was_listed) in [(&secrets, false), (&users, false), (&pods, true)] {
            refused.refuse("a", watch, was_listed);
        }
        refused.allow("a", &secrets);
        refused.allow("a", &users);
        assert_eq!(refused.recovered().await, BTreeSet::from(["a".to_owned()]));
        refused.allow("a", &pods);
        assert!(refused.state().recovered.is_empty(), "nothing was missed for good");
    }
}
