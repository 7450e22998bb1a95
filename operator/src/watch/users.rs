//! The watch of users. Enters: users as they come and go. Leaves: the store of users and the index
//! up to date, and everybody in the queue who has to be looked at.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use kube::Resource;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;
use twofactor_api::{TwoFactorUser, labels};

use super::{Events, Synced, watch};
use crate::state::Context;
use crate::state::queue::{self, Urgency, UserRef, user_ref};
use crate::state::usernames::UsernameClaim;
use crate::state::watched_namespaces::WatchedNamespaces;

/// Keeps users, index and queue up to date until it is told to stop.
pub async fn run(
    context: Arc<Context>,
    writer: Writer<TwoFactorUser>,
    watched: WatchedNamespaces,
    synced: Synced,
    stop: CancellationToken,
) {
    let mut events: Events<DeserializeGuard<TwoFactorUser>> =
        watch(&context.runtime.client, &watched, &watcher::Config::default());
    let mut watching = Users {
        context,
        writer,
        known: HashSet::new(),
        listed: vec![HashSet::new(); watched.lists()],
        complete: HashSet::new(),
    };
    // What comes before the lists are complete goes into the same place, but nobody is looked at
    // before.
    watching.writer.apply_watcher_event(&Event::Init);
    watching.writer.apply_watcher_event(&Event::InitDone);
    while let Some(Some((list, event))) = stop.run_until_cancelled(events.next()).await {
        watching.event(list, event, &watched).await;
        if watching.complete.len() == watched.lists() && !synced.is_set() {
            tracing::info!(users = watching.known.len(), "the list of users is complete");
            synced.set();
        }
    }
}

struct Users {
    context: Arc<Context>,
    writer: Writer<TwoFactorUser>,
    /// Every object, readable or not.
    known: HashSet<UserRef>,
    /// What has come of a list that is being made.
    listed: Vec<HashSet<UserRef>>,
    /// The lists that were complete once.
    complete: HashSet<usize>,
}

impl Users {
    async fn event(
        &mut self,
        list: usize,
        event: Event<DeserializeGuard<TwoFactorUser>>,
        watched: &WatchedNamespaces,
    ) {
        match event {
            Event::Init => self.listed[list].clear(),
            Event::InitApply(object) => {
                self.listed[list].insert(reference(&object));
                self.seen(object).await;
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed[list]);
                let missed: Vec<UserRef> = self
                    .known
                    .iter()
                    .filter(|user| {
                        watched.contains(list, user.namespace.as_deref()) && !listed.contains(user)
                    })
                    .cloned()
                    .collect();
                for user in missed {
                    self.gone(&user).await;
                }
                self.complete.insert(list);
            }
            Event::Apply(object) => self.seen(object).await,
            Event::Delete(object) => self.gone(&reference(&object)).await,
        }
    }

    async fn seen(&mut self, DeserializeGuard(object): DeserializeGuard<TwoFactorUser>) {
        let user = match object {
            Ok(user) => user,
            Err(invalid) => {
                let (namespace, name) = (
                    invalid.metadata.namespace.unwrap_or_default(),
                    invalid.metadata.name.unwrap_or_default(),
                );
                // The error may quote the object.
                tracing::error!(
                    namespace,
                    name,
                    "a TwoFactorUser cannot be read by this version, and is left as it is"
                );
                self.context.runtime.metrics.unreadable.inc();
                self.context.users.usernames().apply_unreadable(&namespace, &name);
                self.known.insert(user_ref(&namespace, &name));
                return;
            }
        };
        let reference = queue::reference(&user);
        // One that is being deleted, and is only waited for by somebody, is revoked already.
        if user.metadata.deletion_timestamp.is_some() {
            return self.gone(&reference).await;
        }
        let mut old = self.context.users.objects.get(&reference);
        if old.as_ref().is_some_and(|old| old.metadata.uid != user.metadata.uid) {
            self.gone(&reference).await;
            old = None;
        }
        let namespace = user.namespace().unwrap_or_default();
        let (first, affected) = {
            let mut usernames = self.context.users.usernames();
            let first = !usernames.has_users(&namespace);
            (first, usernames.apply(&namespace, UsernameClaim::of(&user)))
        };
        if old.is_none() {
            // Whoever was asked for under this name before was somebody else.
            self.context.users.queue.taken(&reference);
        }
        let news = old.is_none_or(|old| self.is_news(&reference, &old, &user));
        // After a start everybody is looked at, but nobody new should wait for that.
        let urgency = if is_settled(&user) { Urgency::Later } else { Urgency::Now };
        self.writer.apply_watcher_event(&Event::Apply(user));
        self.known.insert(reference.clone());
        if first {
            self.context.services.credentials_queue.realm_changed(namespace.clone());
        }
        if news {
            self.context.users.queue.push_with(reference, urgency);
        }
        self.push(&namespace, affected);
    }

    /// Whether a change of a user is something to act on.
    fn is_news(&self, reference: &UserRef, old: &TwoFactorUser, new: &TwoFactorUser) -> bool {
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

    async fn gone(&mut self, reference: &UserRef) {
        self.known.remove(reference);
        let namespace = reference.namespace.clone().unwrap_or_default();
        let (removal, uid, last) = {
            let mut usernames = self.context.users.usernames();
            let uid = usernames.uid(&namespace, &reference.name).map(str::to_owned);
            let had_users = usernames.has_users(&namespace);
            let removal = usernames.remove(&namespace, &reference.name);
            (removal, uid, had_users && !usernames.has_users(&namespace))
        };
        if let Some(old) = self.context.users.objects.get(reference) {
            self.writer.apply_watcher_event(&Event::Delete(TwoFactorUser::clone(&old)));
        }
        self.context.users.queue.taken(reference);
        self.context.users.queue.done(reference);
        self.context.users.own_writes.forget(reference);
        self.context.users.backoff.forget(reference);
        // Where there is no realm any more, all of it is removed.
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

/// Whether the status says that all is well with the user as they are written now.
fn is_settled(user: &TwoFactorUser) -> bool {
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
