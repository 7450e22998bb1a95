//! The leader's watch of namespaces, by their metadata. Enters: namespaces as they come and go.
//! Leaves: the realms up to date, and what belonged to a namespace that is gone about to be
//! removed.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::{Synced, events};
use crate::state::Context;
use crate::state::queue::user_ref;

/// Keeps up with namespaces until it is told to stop.
pub async fn run(context: Arc<Context>, synced: Synced, stop: CancellationToken) {
    let api = Api::<PartialObjectMeta<Namespace>>::all(context.runtime.client.clone());
    let mut events = std::pin::pin!(events(api, watcher::Config::default()));
    let (mut known, mut listed) = (HashSet::new(), HashSet::new());
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(namespace) => {
                listed.insert(namespace.name_any());
                known.insert(namespace.name_any());
                namespace_seen(&context, &namespace);
            }
            Event::InitDone => {
                for name in known.difference(&listed) {
                    namespace_gone(&context, name);
                }
                known = std::mem::take(&mut listed);
                synced.set();
            }
            Event::Apply(namespace) => {
                known.insert(namespace.name_any());
                namespace_seen(&context, &namespace);
            }
            Event::Delete(namespace) => {
                known.remove(&namespace.name_any());
                namespace_gone(&context, &namespace.name_any());
            }
        }
    }
}

fn namespace_seen(context: &Context, namespace: &PartialObjectMeta<Namespace>) {
    let name = namespace.name_any();
    if context.realms.registry.namespace_seen(&name, &namespace.uid().unwrap_or_default()) {
        // Another namespace of the same name: what was published belongs to the old one.
        context.runtime.removals.notify_one();
        let users = context.users.usernames().names(&name);
        if !users.is_empty() {
            context.services.credentials_queue.realm_changed(name.clone());
        }
        for user in users {
            context.users.queue.push(user_ref(&name, &user));
        }
    }
}

fn namespace_gone(context: &Context, name: &str) {
    context.realms.registry.namespace_gone(name);
    context.runtime.removals.notify_one();
}
