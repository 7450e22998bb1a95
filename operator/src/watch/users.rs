//! Watches users. It keeps the store of users and the index of usernames up to date, and queues
//! every user that has to be reconciled.

use std::sync::Arc;

use kube::Resource;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;
use twofactor_api::{TwoFactorUser, labels};

use super::changes::{Change, Changes};
use super::{Synced, watch};
use crate::state::queue::Urgency;
use crate::state::user_ref::{UserRef, user_ref};
use crate::state::usernames::UsernameClaim;
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::state::{Context, Runtime, UserState};

/// Watches users until `stop`.
pub async fn run(
    context: Arc<Context>,
    watched: WatchedNamespaces,
    synced: Synced,
    stop: CancellationToken,
) {
    let Runtime { client, refused, .. } = &context.runtime;
    let events = watch(client, &watched, refused, &watcher::Config::default());
    // The keys include objects that this version cannot read.
    let mut changes = Changes::new(events, reference);
    let users = Users { context };
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        match change {
            Change::Applied(reference, object) => users.applied(reference, object).await,
            Change::Deleted(user) => users.deleted(&user).await,
            Change::Synced => {
                if !synced.is_set() {
                    tracing::info!(users = changes.known(), "users listed");
                    synced.set();
                    users.forget_other_secrets();
                }
            }
        }
    }
}

struct Users {
    context: Arc<Context>,
}

impl Users {
    async fn applied(
        &self,
        reference: UserRef,
        DeserializeGuard(object): DeserializeGuard<TwoFactorUser>,
    ) {
        let user = match object {
            Ok(user) => user,
            Err(invalid) => {
                let (namespace, name) = (
                    invalid.metadata.namespace.unwrap_or_default(),
                    invalid.metadata.name.unwrap_or_default(),
                );
                // Without the error, because that may quote the object.
                tracing::error!(
                    namespace,
                    name,
                    "unreadable TwoFactorUser ignored: its fields do not fit this version"
                );
                self.context.runtime.metrics.unreadable.inc();
                self.context.users.usernames().apply_unreadable(&namespace, &name);
                return;
            }
        };
        // A user is revoked as soon as the deletion begins, even if a finalizer delays its end.
        if user.metadata.deletion_timestamp.is_some() {
            return self.deleted(&reference).await;
        }
        let mut old = self.context.users.objects.get(&reference);
        if old.as_ref().is_some_and(|old| old.metadata.uid != user.metadata.uid) {
            self.deleted(&reference).await;
            old = None;
        }
        let imported = old.as_ref().and_then(source);
        self.context.users.imports.set_source(&reference, imported, source(&user));
        let namespace = user.namespace().unwrap_or_default();
        let (first, affected) = {
            let mut usernames = self.context.users.usernames();
            let first = !usernames.has_users(&namespace);
            (first, usernames.apply(&namespace, UsernameClaim::of(&user, reference.name.clone())))
        };
        if old.is_none() {
            // A waiting request for this name was about another user.
            self.context.users.queue.forget(&reference);
        }
        let due = old.is_none_or(|old| self.needs_reconcile(&reference, &old, &user));
        // After a start all users are reconciled, but new ones must not wait for the others.
        let urgency = if is_up_to_date(&user) { Urgency::Later } else { Urgency::Now };
        self.context.users.objects.insert(&reference, user);
        if first {
            self.context.services.credentials_queue.realm_changed(namespace.clone());
        }
        if due {
            self.context.users.queue.push_with(reference, urgency);
        }
        self.push(&namespace, affected);
    }

    /// Forgets the versions of Secrets that were listed before it was known who is a user.
    fn forget_other_secrets(&self) {
        let UserState { objects, own_writes, .. } = &self.context.users;
        own_writes.forget_unless(|user| objects.summary(user).is_some());
    }

    /// Whether the user has to be reconciled because of a change.
    fn needs_reconcile(
        &self,
        reference: &UserRef,
        old: &TwoFactorUser,
        new: &TwoFactorUser,
    ) -> bool {
        let requests = |user: &TwoFactorUser| {
            [labels::ROTATE_ANNOTATION, labels::RESET_FAILURES_ANNOTATION]
                .map(|annotation| user.annotations().get(annotation).cloned())
        };
        let status_changed = old.status != new.status
            && !self.context.users.own_writes.is_own_status(reference, new.status.as_ref());
        old.metadata.generation != new.metadata.generation
            || requests(old) != requests(new)
            || status_changed
    }

    async fn deleted(&self, reference: &UserRef) {
        let namespace = reference.namespace.as_ref().to_owned();
        let (removal, uid, last) = {
            let mut usernames = self.context.users.usernames();
            let uid = usernames.uid(&namespace, &reference.name).map(str::to_owned);
            let had_users = usernames.has_users(&namespace);
            let removal = usernames.remove(&namespace, &reference.name);
            (removal, uid, had_users && !usernames.has_users(&namespace))
        };
        let old = self.context.users.objects.get(reference);
        let imported = old.as_ref().and_then(source);
        self.context.users.imports.set_source(reference, imported, None);
        self.context.users.objects.remove(reference);
        self.context.users.queue.forget(reference);
        self.context.users.own_writes.forget(reference);
        self.context.users.backoff.forget(reference);
        // Without a realm nothing is to be scheduled, because all data of the realm is removed.
        if let Ok(realm) = self.context.realms.registry.get_or_create(&namespace).await {
            if let Some(uid) = uid {
                realm.forget_published(&uid);
            }
            if let Some(username) = removal.released {
                realm.schedule_removal(realm.publisher.keys().pseudonym(&username));
                self.context.runtime.removals.notify_one();
            }
        }
        if last {
            self.context.services.credentials_queue.realm_changed(namespace.clone());
        }
        self.push(&namespace, removal.affected);
    }

    fn push(&self, namespace: &str, names: Vec<String>) {
        for name in names {
            self.context.users.queue.push(user_ref(namespace, &name));
        }
    }
}

/// The Secret that the user imports a seed from.
fn source(user: &TwoFactorUser) -> Option<&str> {
    user.spec.secret_ref.as_ref().map(|reference| reference.name.as_str())
}

/// Whether the status says that the current state of the user is published.
fn is_up_to_date(user: &TwoFactorUser) -> bool {
    let Some(status) = &user.status else { return false };
    let answered = |annotation: &str, answer: Option<&String>| {
        let request = user.annotations().get(annotation);
        request.is_none() || request == answer
    };
    status.observed_generation == user.metadata.generation
        && answered(labels::ROTATE_ANNOTATION, status.rotated.as_ref())
        && answered(labels::RESET_FAILURES_ANNOTATION, status.failures_reset.as_ref())
        && status
            .conditions
            .iter()
            .any(|it| it.type_ == labels::CONDITION_PUBLISHED && it.status == "True")
}

fn reference(object: &DeserializeGuard<TwoFactorUser>) -> UserRef {
    let metadata = object.meta();
    user_ref(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}
