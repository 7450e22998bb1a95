//! The watch of Secrets that are ours, by their metadata. Enters: what others do to them. Leaves:
//! users in the queue, and credentials to be looked at.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;

use super::{Events, events, watch};
use crate::state::Context;
use crate::state::queue::{UserRef, user_ref};
use crate::state::watched_namespaces::WatchedNamespaces;

/// Notices what others do to users' Secrets until it is told to stop.
pub async fn users(context: Arc<Context>, watched: WatchedNamespaces, stop: CancellationToken) {
    // Credentials have a watch of their own.
    let selector = format!(
        "{}={},!{}",
        labels::MANAGED_BY_LABEL,
        labels::MANAGED_BY,
        labels::CREDENTIALS_LABEL
    );
    let mut events: Events<PartialObjectMeta<Secret>> =
        watch(&context.runtime.client, &watched, &watcher::Config::default().labels(&selector));
    let mut listed = vec![HashSet::new(); watched.lists()];
    while let Some(Some((list, event))) = stop.run_until_cancelled(events.next()).await {
        match event {
            Event::Init => listed[list].clear(),
            Event::InitApply(secret) => {
                listed[list].extend(owner(&secret));
                secret_seen(&context, &secret, true);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut listed[list]);
                let within = |user: &UserRef| watched.contains(list, user.namespace.as_deref());
                for user in context.users.own_writes.secrets_missing(within, &listed) {
                    context.users.queue.push(user);
                }
            }
            Event::Apply(secret) => secret_seen(&context, &secret, true),
            Event::Delete(secret) => secret_seen(&context, &secret, false),
        }
    }
}

/// The user whose Secret this is, going by its name: an owner can be taken away.
fn owner(secret: &PartialObjectMeta<Secret>) -> Option<UserRef> {
    let (namespace, name) = (secret.namespace()?, secret.name_any());
    Some(user_ref(&namespace, name.strip_suffix(labels::SECRET_SUFFIX)?))
}

fn secret_seen(context: &Context, secret: &PartialObjectMeta<Secret>, there: bool) {
    if let Some(user) = owner(secret) {
        let version = secret.resource_version().filter(|_| there);
        if context.users.own_writes.secret_seen(&user, version.as_deref()) {
            context.users.queue.push(user);
        }
    }
}

/// Notices what others do to credentials, in every namespace, until it is told to stop. Those of
/// realms that this operator does not look after are left alone, whoever wrote them.
///
/// Also where only some namespaces are looked after, the watch is of the whole cluster: services in
/// any namespace can be let in. It needs the same kind of permission as the watch of namespaces.
pub async fn credentials(
    context: Arc<Context>,
    watched: WatchedNamespaces,
    stop: CancellationToken,
) {
    let selector = format!(
        "{}={},{}",
        labels::MANAGED_BY_LABEL,
        labels::MANAGED_BY,
        labels::CREDENTIALS_LABEL
    );
    let secrets = Api::<PartialObjectMeta<Secret>>::all(context.runtime.client.clone());
    let mut events = std::pin::pin!(events(secrets, watcher::Config::default().labels(&selector)));
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        match event {
            Event::Init => {}
            Event::InitApply(secret) | Event::Apply(secret) | Event::Delete(secret) => {
                let realm =
                    secret.labels().get(labels::CREDENTIALS_LABEL).cloned().unwrap_or_default();
                if watched.includes(&realm) {
                    let namespace = secret.namespace().unwrap_or_default();
                    context.services.credentials_queue.secret_changed(realm, namespace);
                }
            }
            // What was deleted while the watch was broken is not in the list.
            Event::InitDone => {
                context.services.credentials_queue.all_changed();
            }
        }
    }
}
