//! The watch of pods that ask for the sidecar, by their metadata. Enters: such pods as they come
//! and go, in every namespace. Leaves: Events on those with which something is wrong, and metrics.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod as CorePod};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;

use super::events;
use crate::state::Context;
use crate::watch::pod_findings::{Finding, Pod, Pods, Trouble};

/// How often to look at all of them, when something may have changed: many pods change at the same
/// time.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks after pods until it is told to stop. Begins when the lists are complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let selector = format!("{label},{label}!=false", label = labels::INJECT_LABEL);
    let api = Api::<PartialObjectMeta<CorePod>>::all(context.client.clone());
    // Those that have ended need nothing any more.
    let running = "status.phase!=Succeeded,status.phase!=Failed";
    let watched = watcher::Config::default().labels(&selector).fields(running);
    let mut events = std::pin::pin!(events(api, watched));
    let mut pods = Pods::default();
    let mut listed = HashSet::new();
    let mut listing = true;
    let mut period = tokio::time::interval(PERIOD);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
            _ = period.tick() => {
                // Half a list tells too little.
                if !listing {
                    look(&context, &mut pods);
                }
                continue;
            }
        };
        match event {
            None => return,
            Some(Event::Init) => {
                listed.clear();
                listing = true;
            }
            Some(Event::InitApply(pod)) => {
                listed.insert((pod.namespace().unwrap_or_default(), pod.name_any()));
                seen(&context, &mut pods, &pod);
            }
            Some(Event::InitDone) => {
                for (namespace, name) in pods.names().difference(&listed) {
                    pods.gone(namespace, name);
                }
                listed.clear();
                listing = false;
            }
            Some(Event::Apply(pod)) => seen(&context, &mut pods, &pod),
            Some(Event::Delete(pod)) => {
                pods.gone(&pod.namespace().unwrap_or_default(), &pod.name_any());
            }
        }
    }
}

fn seen(context: &Context, pods: &mut Pods, object: &PartialObjectMeta<CorePod>) {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let pod = Pod::of(&namespace, object.uid().unwrap_or_default(), object.annotations());
    // One that is about to go needs nothing; those of other realms are somebody else's to look
    // after.
    if object.metadata.deletion_timestamp.is_some() || !context.scopes.cover(&pod.realm) {
        pods.gone(&namespace, &name);
    } else {
        pods.seen(&namespace, &name, pod);
    }
}

fn look(context: &Context, pods: &mut Pods) {
    let lets_in = |realm: &str, namespace: &str| context.policies.lets_in(realm, namespace);
    let has_users = |realm: &str| context.index().has_users(realm);
    let (counts, findings) = pods.judge(lets_in, has_users, env!("CARGO_PKG_VERSION"));
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    context.metrics.pods_not_injected.set(number(counts.not_injected));
    context.metrics.pods_waiting.set(number(counts.waiting));
    *context.outdated.lock().unwrap_or_else(PoisonError::into_inner) = counts.outdated;
    for Finding { namespace, name, pod, trouble, notice } in findings {
        match trouble {
            Trouble::NotInjected => {
                tracing::warn!(
                    namespace,
                    pod = name,
                    "a pod asks for the sidecar and runs without it"
                );
            }
            Trouble::NoUsers => {
                tracing::warn!(
                    namespace,
                    pod = name,
                    "a pod waits: there are no users in its namespace"
                );
            }
            Trouble::NotLetIn => {
                let realm = pod.realm;
                tracing::warn!(
                    namespace,
                    pod = name,
                    realm,
                    "a pod waits: the realm does not let its namespace in"
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
        context.events.tell(&regarding, notice);
    }
}
