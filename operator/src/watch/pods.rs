//! Watches the metadata of pods that ask for the sidecar, in the namespaces of services. It has
//! credentials written where pods ask for them, emits Events for pods that have a problem, and sets
//! metrics.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod as CorePod};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;

use super::changes::{Change, Changes};
use super::{Synced, watch};
use crate::metrics::number;
use crate::state::credentials::Target;
use crate::state::{Context, Runtime};
use crate::watch::pod_findings::{Pod, PodFinding, PodProblem, Pods};

/// Interval between two evaluations of all pods. Many pods change at the same time, so an
/// evaluation for every change would be too many.
const PERIOD: Duration = Duration::from_secs(1);

/// Watches pods until `stop`. Sets `synced` when all are listed.
pub async fn run(context: Arc<Context>, synced: Synced, stop: CancellationToken) {
    let selector = format!("{label},{label}!=false", label = labels::INJECT_LABEL);
    // Pods that have ended need no check.
    let running = "status.phase!=Succeeded,status.phase!=Failed";
    let watched = watcher::Config::default().labels(&selector).fields(running);
    let Runtime { client, refused, .. } = &context.runtime;
    let events = watch(client, &context.services.within_reach, refused, &watched);
    let mut changes = Changes::new(events, reference);
    let mut pods = Pods::default();
    let mut period = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => match change {
                None => return,
                Some(Change::Applied(_, pod)) => applied(&context, &mut pods, &pod),
                Some(Change::Deleted((namespace, name))) => {
                    let old = pods.deleted(&namespace, &name);
                    asks(&context, &namespace, old.as_ref(), None);
                }
                Some(Change::Synced) => synced.set(),
            },
            // An incomplete list would give wrong counts.
            _ = period.tick() => if !changes.is_listing() {
                report(&context, &mut pods);
            },
        }
    }
}

fn reference(pod: &PartialObjectMeta<CorePod>) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

fn applied(context: &Context, pods: &mut Pods, object: &PartialObjectMeta<CorePod>) {
    let (namespace, name) = reference(object);
    let pod = Pod {
        ending: object.metadata.deletion_timestamp.is_some(),
        ..Pod::of(&namespace, object.uid().unwrap_or_default(), object.annotations())
    };
    // Another operator takes care of pods of other realms, and in excluded namespaces a pod gets
    // neither a sidecar nor credentials.
    let concerns_us = |pod: &Pod| {
        context.runtime.watched.includes(&pod.realm)
            && !context.services.excluded.contains(&namespace)
    };
    let pod = Some(pod).filter(concerns_us);
    let old = match pod.clone() {
        Some(pod) => pods.applied(&namespace, &name, pod),
        None => pods.deleted(&namespace, &name),
    };
    asks(context, &namespace, old.as_ref(), pod.as_ref());
}

/// Records that a pod of `namespace` changed from `old` to `new`.
fn asks(context: &Context, namespace: &str, old: Option<&Pod>, new: Option<&Pod>) {
    let target = |pod: &Pod| Target { realm: pod.realm.clone(), namespace: namespace.to_owned() };
    let (old, new) = (old.map(target), new.map(target));
    if old == new {
        return;
    }
    let services = &context.services;
    if let Some(new) = new
        && services.asking.appeared(&new)
    {
        services.credentials_queue.pods_changed(new);
    }
    if let Some(old) = old
        && services.asking.disappeared(&old)
    {
        services.credentials_queue.pods_changed(old);
    }
}

/// Sets the metrics, and emits an Event and a log line for each new problem.
fn report(context: &Context, pods: &mut Pods) {
    let access = |realm: &str, namespace: &str| context.realms.policies.access(realm, namespace);
    let has_users = |realm: &str| {
        context.realms.is_realm(realm)
            || context.users.usernames().has_users(realm)
            || context.runtime.refused.is_unlisted(realm)
    };
    let (counts, findings) = pods.evaluate(access, has_users, env!("CARGO_PKG_VERSION"));
    let metrics = &context.runtime.metrics;
    metrics.pods_not_injected.set(number(counts.not_injected));
    metrics.pods_waiting.set(number(counts.waiting));
    metrics.pods_outdated.set(number(counts.outdated.values().sum::<usize>()));
    *context.services.outdated_pods.lock().unwrap_or_else(PoisonError::into_inner) =
        counts.outdated;
    for PodFinding { namespace, name, pod, problem, notice } in findings {
        match problem {
            PodProblem::NotInjected => {
                tracing::warn!(
                    namespace,
                    pod = name,
                    "pod without sidecar found: it asks for one by its label"
                );
            }
            PodProblem::NoUsers => {
                tracing::warn!(
                    namespace,
                    pod = name,
                    "pod waiting for credentials: its namespace has no users"
                );
            }
            PodProblem::NamespaceNotAllowed => {
                let realm = pod.realm;
                tracing::warn!(
                    namespace,
                    pod = name,
                    realm,
                    "pod waiting for credentials: the realm does not allow its namespace"
                );
            }
        }
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace),
            name: Some(name),
            uid: Some(pod.uid),
            ..ObjectReference::default()
        };
        context.runtime.events.emit(&regarding, notice);
    }
}
