//! Watches the metadata of the operator's Secrets. If another process changes one, the user is
//! queued, or the credentials are reconciled.
//!
//! These watches handle events themselves instead of using [`super::changes`], because neither has
//! to remember keys: the versions of users' Secrets are kept beside the operator's own writes, and
//! after a new list all credentials are reconciled anyway.

use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;

use super::{Events, Synced, watch, watch_all};
use crate::state::Context;
use crate::state::credentials::Target;
use crate::state::own_writes::ListNumber;
use crate::state::user_ref::{UserRef, user_ref};
use crate::state::watched_namespaces::WatchedNamespaces;

/// Watches users' Secrets until `stop`. Sets `synced` when all are listed, and keeps only those of
/// users from when `users_synced` is set.
pub async fn users(
    context: Arc<Context>,
    watched: WatchedNamespaces,
    users_synced: Synced,
    synced: Synced,
    stop: CancellationToken,
) {
    // Credentials have their own watch.
    let selector = format!(
        "{}={},!{}",
        labels::MANAGED_BY_LABEL,
        labels::MANAGED_BY,
        labels::CREDENTIALS_LABEL
    );
    let mut events: Events<PartialObjectMeta<Secret>> =
        watch(&context.runtime.client, &watched, &watcher::Config::default().labels(&selector));
    let secrets = UserSecrets { context, users_synced };
    let mut lists = vec![ListNumber::default(); watched.lists()];
    let mut incomplete = lists.len();
    while let Some(Some((list, event))) = stop.run_until_cancelled(events.next()).await {
        let number = &mut lists[list];
        match event {
            Event::Init => *number = number.next(),
            Event::InitDone => {
                let within = |user: &UserRef| watched.contains(list, &user.namespace);
                secrets.listed(within, *number);
                incomplete = incomplete.saturating_sub(1);
                if incomplete == 0 {
                    synced.set();
                }
            }
            Event::InitApply(secret) | Event::Apply(secret) => secrets.seen(&secret, true, *number),
            Event::Delete(secret) => secrets.seen(&secret, false, *number),
        }
    }
}

/// The user that the Secret belongs to. The name says it, because an owner reference can be
/// removed.
fn owner(secret: &PartialObjectMeta<Secret>) -> Option<UserRef> {
    let (namespace, name) = (secret.namespace()?, secret.name_any());
    Some(user_ref(&namespace, name.strip_suffix(labels::SECRET_SUFFIX)?))
}

struct UserSecrets {
    context: Arc<Context>,
    users_synced: Synced,
}

impl UserSecrets {
    fn seen(&self, secret: &PartialObjectMeta<Secret>, exists: bool, list: ListNumber) {
        let Some(user) = owner(secret) else { return };
        let users = &self.context.users;
        // Other Secrets with the label cost no memory.
        if self.users_synced.is_set() && users.objects.summary(&user).is_none() {
            return;
        }
        let version = secret.resource_version().filter(|_| exists);
        if users.own_writes.secret_seen(&user, version.as_deref(), list) {
            users.queue.push(user);
        }
    }

    fn listed(&self, within: impl Fn(&UserRef) -> bool, list: ListNumber) {
        for user in self.context.users.own_writes.secrets_missing(within, list) {
            self.context.users.queue.push(user);
        }
    }
}

/// Watches credentials in every namespace until `stop`. Sets `synced` when all are listed. It
/// ignores credentials of realms that this operator does not reconcile.
///
/// Even if the operator reconciles only some namespaces, the watch covers the whole cluster,
/// because realms can allow any namespace. It needs the same kind of permission as the watch of
/// namespaces.
pub async fn credentials(
    context: Arc<Context>,
    watched: WatchedNamespaces,
    synced: Synced,
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
        let exists = matches!(event, Event::InitApply(_) | Event::Apply(_));
        match event {
            Event::Init => {}
            Event::InitApply(secret) | Event::Apply(secret) | Event::Delete(secret) => {
                let realm =
                    secret.labels().get(labels::CREDENTIALS_LABEL).cloned().unwrap_or_default();
                if watched.includes(&realm) {
                    let namespace = secret.namespace().unwrap_or_default();
                    let target = Target { realm, namespace };
                    if exists {
                        // Before the logins are compared, which would otherwise remove this one.
                        context.services.asking.found(&target);
                    }
                    context.services.credentials_queue.secret_changed(target);
                }
            }
            // The list does not contain credentials that were deleted while the watch was broken.
            Event::InitDone => {
                context.services.credentials_queue.all_changed();
                synced.set();
            }
        }
    }
}
