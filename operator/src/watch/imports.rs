//! Watches the metadata of Secrets that may be imported from, which their label says. If one
//! changes, the users that import from it are queued.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;

use super::changes::{Change, Changes};
use super::{Synced, watch};
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::state::{Context, Runtime};

/// Watches Secrets until `stop`. Sets `synced` when all are listed.
pub async fn run(
    context: Arc<Context>,
    watched: WatchedNamespaces,
    synced: Synced,
    stop: CancellationToken,
) {
    let selector = format!("{}={}", labels::IMPORT_LABEL, labels::IMPORT_ALLOWED);
    let configuration = watcher::Config::default().labels(&selector);
    let Runtime { client, refused, .. } = &context.runtime;
    let events = watch(client, &watched, refused, &configuration);
    let mut changes = Changes::new(events, reference);
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        let ((namespace, name), version) = match change {
            Change::Applied(secret, object) => (secret, object.resource_version()),
            Change::Deleted(secret) => (secret, None),
            Change::Synced => {
                synced.set();
                continue;
            }
        };
        for user in context.users.imports.offered(&namespace, &name, version.as_deref()) {
            context.users.queue.push(user);
        }
    }
}

fn reference(secret: &PartialObjectMeta<Secret>) -> (String, String) {
    (secret.namespace().unwrap_or_default(), secret.name_any())
}
