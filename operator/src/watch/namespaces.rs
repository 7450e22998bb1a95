//! Watches the metadata of namespaces for the leader. It keeps the realms up to date, and schedules
//! the removal of everything that belonged to a deleted namespace.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;

use super::changes::{Change, Changes};
use super::{Synced, watch_all};
use crate::state::Context;
use crate::state::user_ref::user_ref;

/// Watches namespaces until `stop`.
pub async fn run(context: Arc<Context>, synced: Synced, stop: CancellationToken) {
    let events = watch_all(&context.runtime.client, watcher::Config::default());
    let mut changes = Changes::new(events, PartialObjectMeta::<Namespace>::name_any);
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        match change {
            Change::Applied(_, namespace) => applied(&context, &namespace),
            Change::Deleted(name) => deleted(&context, &name),
            Change::Synced => synced.set(),
        }
    }
}

fn applied(context: &Context, namespace: &PartialObjectMeta<Namespace>) {
    let name = namespace.name_any();
    if context.realms.registry.namespace_seen(&name, &namespace.uid().unwrap_or_default()) {
        // The namespace was created again, and the published data belongs to the old one.
        context.runtime.realm_removals.notify_one();
        let users = context.users.usernames().names(&name);
        if !users.is_empty() {
            context.services.credentials_queue.realm_changed(name.clone());
        }
        for user in users {
            context.users.queue.push(user_ref(&name, &user));
        }
    }
}

fn deleted(context: &Context, name: &str) {
    context.realms.registry.namespace_gone(name);
    context.runtime.realm_removals.notify_one();
}
