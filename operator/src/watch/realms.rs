//! The watches that every replica has: of realms, and of namespaces by their metadata. Enters: both
//! as they come and go. Leaves: [`Policies`] up to date.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;
use twofactor_api::TwoFactorRealm;

use super::{Events, Synced, events, watch};
use crate::state::realm_policies::Policies;
use crate::state::watched_namespaces::WatchedNamespaces;

/// Keeps up with namespaces and their labels until it is told to stop.
pub async fn namespaces(
    client: Client,
    policies: Arc<Policies>,
    synced: Synced,
    stop: CancellationToken,
) {
    let api = Api::<PartialObjectMeta<Namespace>>::all(client);
    let mut events = std::pin::pin!(events(api, watcher::Config::default()));
    let mut listed = HashSet::new();
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(namespace) => {
                listed.insert(namespace.name_any());
                seen(&policies, &namespace);
            }
            Event::InitDone => {
                for name in policies.namespaces().difference(&listed) {
                    policies.namespace_deleted(name);
                }
                synced.set();
            }
            Event::Apply(namespace) => seen(&policies, &namespace),
            Event::Delete(namespace) => policies.namespace_deleted(&namespace.name_any()),
        }
    }
}

fn seen(policies: &Policies, namespace: &PartialObjectMeta<Namespace>) {
    let ending = namespace.metadata.deletion_timestamp.is_some();
    let uid = namespace.uid().unwrap_or_default();
    policies.namespace_applied(&namespace.name_any(), &uid, namespace.labels(), ending);
}

/// Keeps up with realms until it is told to stop. `unreadable` counts those that this version
/// cannot read.
pub async fn realms(
    client: Client,
    policies: Arc<Policies>,
    watched: WatchedNamespaces,
    unreadable: IntCounter,
    synced: Synced,
    stop: CancellationToken,
) {
    let mut events: Events<DeserializeGuard<TwoFactorRealm>> =
        watch(&client, &watched, &watcher::Config::default());
    let mut listed = vec![HashSet::new(); watched.lists()];
    let mut complete = HashSet::new();
    let apply = |object: DeserializeGuard<TwoFactorRealm>| match object.0 {
        Ok(realm) => policies.realm_applied(realm),
        // What was known of it stays.
        Err(invalid) => {
            let (namespace, name) = (invalid.metadata.namespace, invalid.metadata.name);
            tracing::error!(
                namespace,
                name,
                "a TwoFactorRealm cannot be read by this version, and is left as it is"
            );
            unreadable.inc();
        }
    };
    while let Some(Some((list, event))) = stop.run_until_cancelled(events.next()).await {
        match event {
            Event::Init => listed[list].clear(),
            Event::InitApply(object) => {
                listed[list].insert(reference(&object));
                apply(object);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut listed[list]);
                for (namespace, name) in policies.realm_names() {
                    let within = watched.contains(list, Some(&namespace));
                    if within && !listed.contains(&(namespace.clone(), name.clone())) {
                        policies.realm_deleted(&namespace, &name);
                    }
                }
                complete.insert(list);
                if complete.len() == watched.lists() {
                    synced.set();
                }
            }
            Event::Apply(object) => apply(object),
            Event::Delete(object) => {
                let (namespace, name) = reference(&object);
                policies.realm_deleted(&namespace, &name);
            }
        }
    }
}

fn reference(object: &DeserializeGuard<TwoFactorRealm>) -> (String, String) {
    let metadata = object.meta();
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
