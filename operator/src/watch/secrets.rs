//! Watches the metadata of the operator's Secrets. If another process changes one, the user is
//! queued, or the credentials are reconciled.
//!
//! These watches handle events themselves instead of using [`super::changes`], because neither has
//! to remember keys: the users' Secrets are known from the operator's own writes, and after a new
//! list all credentials are reconciled anyway.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;

use super::{Events, watch, watch_all};
use crate::state::Context;
use crate::state::user_ref::{UserRef, user_ref};
use crate::state::watched_namespaces::WatchedNamespaces;

/// Watches users' Secrets until `stop`.
pub async fn users(context: Arc<Context>, watched: WatchedNamespaces, stop: CancellationToken) {
    // Credentials have their own watch.
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
                user_secret_changed(&context, &secret, true);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut listed[list]);
                let within = |user: &UserRef| watched.contains(list, &user.namespace);
                for user in context.users.own_writes.secrets_missing(within, &listed) {
                    context.users.queue.push(user);
                }
            }
            Event::Apply(secret) => user_secret_changed(&context, &secret, true),
            Event::Delete(secret) => user_secret_changed(&context, &secret, false),
        }
    }
}

/// The user that the Secret belongs to. The name says it, because an owner reference can be
/// removed.
fn owner(secret: &PartialObjectMeta<Secret>) -> Option<UserRef> {
    let (namespace, name) = (secret.namespace()?, secret.name_any());
    Some(user_ref(&namespace, name.strip_suffix(labels::SECRET_SUFFIX)?))
}

fn user_secret_changed(context: &Context, secret: &PartialObjectMeta<Secret>, exists: bool) {
    if let Some(user) = owner(secret) {
        let version = secret.resource_version().filter(|_| exists);
        if context.users.own_writes.secret_seen(&user, version.as_deref()) {
            context.users.queue.push(user);
        }
    }
}

/// Watches credentials in every namespace until `stop`. It ignores credentials of realms that this
/// operator does not reconcile.
///
/// Even if the operator reconciles only some namespaces, the watch covers the whole cluster,
/// because realms can allow any namespace. It needs the same kind of permission as the watch of
/// namespaces.
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
    let mut events: Events<PartialObjectMeta<Secret>> =
        watch_all(&context.runtime.client, watcher::Config::default().labels(&selector));
    while let Some(Some((_, event))) = stop.run_until_cancelled(events.next()).await {
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
            // The list does not contain credentials that were deleted while the watch was broken.
            Event::InitDone => context.services.credentials_queue.all_changed(),
        }
    }
}
