//! Watches the metadata of the operator's Secrets. If another process changes one, the user is
//! queued, or the credentials are reconciled.
//!
//! These watches handle events themselves instead of using [`super::changes`], because neither has
//! to remember keys: the versions of users' Secrets are kept beside the operator's own writes, and
//! after a new list all credentials are reconciled anyway.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;

use super::{Events, Seen, Synced, watch};
use crate::state::credentials::Target;
use crate::state::own_writes::ListNumber;
use crate::state::user_ref::{UserRef, user_ref};
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::state::{Context, Runtime};

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
    let Runtime { client, refused, .. } = &context.runtime;
    let configuration = watcher::Config::default().labels(&selector);
    let mut events: Events<PartialObjectMeta<Secret>> =
        watch(client, &watched, refused, &configuration);
    let secrets = UserSecrets { context, users_synced };
    let mut lists = vec![ListNumber::default(); watched.lists()];
    let mut incomplete: HashSet<usize> = (0..lists.len()).collect();
    while let Some(Some((list, seen))) = stop.run_until_cancelled(events.next()).await {
        let number = &mut lists[list];
        if matches!(seen, Seen::Refused | Seen::Event(Event::InitDone)) {
            incomplete.remove(&list);
        }
        let Seen::Event(event) = seen else {
            if incomplete.is_empty() {
                synced.set();
            }
            continue;
        };
        match event {
            Event::Init => *number = number.next(),
            Event::InitDone => {
                let within = |user: &UserRef| watched.contains(list, &user.namespace);
                secrets.listed(within, *number);
                if incomplete.is_empty() {
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

/// Watches credentials in the namespaces of services until `stop`. Sets `synced` when all are
/// listed. It ignores credentials of realms that this operator does not reconcile.
///
/// If no namespaces of services are named, the watch covers the whole cluster, even if the operator
/// reconciles only some namespaces, because realms can allow any namespace.
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
    let configuration = watcher::Config::default().labels(&selector);
    let Runtime { client, refused, .. } = &context.runtime;
    let within_reach = &context.services.within_reach;
    let mut events: Events<PartialObjectMeta<Secret>> =
        watch(client, within_reach, refused, &configuration);
    let mut incomplete: HashSet<usize> = (0..within_reach.lists()).collect();
    while let Some(Some((list, seen))) = stop.run_until_cancelled(events.next()).await {
        if matches!(seen, Seen::Refused | Seen::Event(Event::InitDone)) {
            incomplete.remove(&list);
            if incomplete.is_empty() {
                synced.set();
            }
        }
        let Seen::Event(event) = seen else { continue };
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
            Event::InitDone => context.services.credentials_queue.all_changed(),
        }
    }
}
