//! Watches realms, and the metadata of namespaces, in every replica. It keeps [`Policies`] up to
//! date.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;
use twofactor_api::TwoFactorRealm;

use super::changes::{Change, Changes};
use super::{Synced, watch, watch_all};
use crate::state::realm_policies::Policies;
use crate::state::refused_watches::RefusedWatches;
use crate::state::watched_namespaces::WatchedNamespaces;

/// Watches namespaces and their labels until `stop`.
pub async fn namespaces(
    client: Client,
    policies: Arc<Policies>,
    refused: RefusedWatches,
    synced: Synced,
    stop: CancellationToken,
) {
    let events = watch_all(&client, watcher::Config::default());
    let mut changes = Changes::new(events, PartialObjectMeta::<Namespace>::name_any);
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        match change {
            Change::Applied(name, namespace) => {
                refused.namespace_deleted(&name, false);
                namespace_applied(&policies, &namespace);
            }
            Change::Deleted(name) => {
                refused.namespace_deleted(&name, true);
                policies.namespace_deleted(&name);
            }
            Change::Synced => synced.set(),
        }
    }
}

fn namespace_applied(policies: &Policies, namespace: &PartialObjectMeta<Namespace>) {
    let ending = namespace.metadata.deletion_timestamp.is_some();
    let uid = namespace.uid().unwrap_or_default();
    policies.namespace_applied(&namespace.name_any(), &uid, namespace.labels(), ending);
}

/// Watches realms until `stop`. `unreadable` counts the realms that this version cannot read.
pub async fn realms(
    client: Client,
    policies: Arc<Policies>,
    watched: WatchedNamespaces,
    refused: RefusedWatches,
    unreadable: IntCounter,
    synced: Synced,
    stop: CancellationToken,
) {
    let events = watch(&client, &watched, &refused, &watcher::Config::default());
    let mut changes = Changes::new(events, reference);
    let apply = |object: DeserializeGuard<TwoFactorRealm>| match object.0 {
        Ok(realm) => policies.realm_applied(realm),
        // The last readable state stays in use.
        Err(invalid) => {
            let (namespace, name) = (invalid.metadata.namespace, invalid.metadata.name);
            tracing::error!(
                namespace,
                name,
                "unreadable TwoFactorRealm ignored: its fields do not fit this version"
            );
            unreadable.inc();
        }
    };
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        match change {
            Change::Applied(_, object) => apply(object),
            Change::Deleted((namespace, name)) => policies.realm_deleted(&namespace, &name),
            Change::Synced => synced.set(),
        }
    }
}

fn reference(object: &DeserializeGuard<TwoFactorRealm>) -> (String, String) {
    let metadata = object.meta();
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
