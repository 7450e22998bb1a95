//! Keeps up with the API server. Enters: watches of users, of the Secrets that are ours and of namespaces, the latter two by their
//! metadata only. Leaves: the index and the realms up to date, and everybody in the queue who has to be looked at.
//!
//! A watch can miss things while it is broken. Then everything is listed again, and what is not in the list is treated like
//! something that was seen to go.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;
use twofactor_api::{TwoFactorUser, labels};

use crate::api::ApiError;
use crate::backoff::jittered;
use crate::context::Context;
use crate::index::Entry;
use crate::queue::{Urgency, UserRef, user_ref};

/// An annotation that repeats the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Which lists are complete.
#[derive(Clone, Debug)]
pub struct Synced(channel::Sender<bool>);

impl Default for Synced {
    fn default() -> Self {
        Self(channel::Sender::new(false))
    }
}

impl Synced {
    /// The list is complete.
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is.
    pub async fn wait(&self) {
        // The sender is kept alive by `self`.
        let _ = self.0.subscribe().wait_for(|synced| *synced).await;
    }
}

/// Events of several namespaces, or of all, each with the number of its list.
type Events<K> = SelectAll<BoxStream<'static, (usize, Event<K>)>>;

fn watch<K>(client: &Client, scopes: &Scopes, configuration: &watcher::Config) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let apis = match scopes.0.as_slice() {
        [] => vec![Api::<K>::all(client.clone())],
        names => names.iter().map(|name| Api::namespaced(client.clone(), name)).collect(),
    };
    let streams = apis
        .into_iter()
        .enumerate()
        .map(|(number, api)| events(api, configuration.clone()).map(move |event| (number, event)).boxed());
    futures_util::stream::select_all(streams)
}

fn events<K>(api: Api<K>, configuration: watcher::Config) -> impl Stream<Item = Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    kube::runtime::watcher(api, configuration).backoff(Pauses::default()).filter_map(move |event| {
        let event = event
            .map_err(|error| {
                tracing::warn!(error = describe(error), kind, "a watch is broken, and will be begun again");
            })
            .ok()
            .map(|event| {
                event.modify(|object| {
                    object.managed_fields_mut().clear();
                    object.annotations_mut().remove(LAST_APPLIED);
                    object.meta_mut().managed_fields = None;
                })
            });
        std::future::ready(event)
    })
}

/// What broke a watch, without the object that the answer may quote.
fn describe(error: watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => ApiError::from(error).to_string(),
        watcher::Error::WatchError(status) => ApiError::from(kube::Error::Api(status)).to_string(),
        error @ watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Pauses before a broken watch is begun again: from 200 ms to 5 s. kube's own go up to 30 s, during which a deleted user would
/// stay verified.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(Duration::from_millis(200))
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(Duration::from_secs(5));
        Some(jittered(pause, &mut UnwrapErr(SysRng)))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The namespaces that are looked at; all when there are none.
#[derive(Clone, Debug, Default)]
pub struct Scopes(pub Vec<String>);

impl Scopes {
    /// How many lists there are.
    fn lists(&self) -> usize {
        self.0.len().max(1)
    }

    /// Whether users of this namespace are looked after.
    #[must_use]
    pub fn cover(&self, namespace: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == namespace)
    }

    fn contains(&self, number: usize, namespace: Option<&str>) -> bool {
        self.0.get(number).is_none_or(|name| Some(name.as_str()) == namespace)
    }
}

/// Keeps users, index and queue up to date until it is told to stop.
pub async fn users(
    context: Arc<Context>,
    writer: Writer<TwoFactorUser>,
    scopes: Scopes,
    synced: Synced,
    stop: CancellationToken,
) {
    let mut events: Events<DeserializeGuard<TwoFactorUser>> =
        watch(&context.client, &scopes, &watcher::Config::default());
    let mut watching = Users {
        context,
        writer,
        known: HashSet::new(),
        listed: vec![HashSet::new(); scopes.lists()],
        complete: HashSet::new(),
    };
    // What comes before the lists are complete goes into the same place, but nobody is looked at before.
    watching.writer.apply_watcher_event(&Event::Init);
    watching.writer.apply_watcher_event(&Event::InitDone);
    while let Some(Some((list, event))) = stop.run_until_cancelled(events.next()).await {
        watching.event(list, event, &scopes).await;
        if watching.complete.len() == scopes.lists() && !synced.is_set() {
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
    async fn event(&mut self, list: usize, event: Event<DeserializeGuard<TwoFactorUser>>, scopes: &Scopes) {
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
                    .filter(|user| scopes.contains(list, user.namespace.as_deref()) && !listed.contains(user))
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
                self.context.metrics.unreadable.inc();
                self.context.index().apply_unreadable(&namespace, &name);
                self.known.insert(user_ref(&namespace, &name));
                return;
            }
        };
        let reference = self.context.reference(&user);
        // One that is being deleted, and is only waited for by somebody, is revoked already.
        if user.metadata.deletion_timestamp.is_some() {
            return self.gone(&reference).await;
        }
        let mut old = self.context.users.get(&reference);
        if old.as_ref().is_some_and(|old| old.metadata.uid != user.metadata.uid) {
            self.gone(&reference).await;
            old = None;
        }
        let namespace = user.namespace().unwrap_or_default();
        let (first, affected) = {
            let mut index = self.context.index();
            let first = !index.has_users(&namespace);
            (first, index.apply(&namespace, Entry::of(&user)))
        };
        if old.is_none() {
            // Whoever was asked for under this name before was somebody else.
            self.context.queue.taken(&reference);
        }
        let news = old.is_none_or(|old| self.is_news(&reference, &old, &user));
        // After a start everybody is looked at, but nobody new should wait for that.
        let urgency = if is_settled(&user) { Urgency::Later } else { Urgency::Now };
        self.writer.apply_watcher_event(&Event::Apply(user));
        self.known.insert(reference.clone());
        if first {
            let _ = self.context.credentials.send(namespace.clone());
        }
        if news {
            self.context.queue.push_with(reference, urgency);
        }
        self.push(&namespace, affected);
    }

    /// Whether a change of a user is something to act on.
    fn is_news(&self, reference: &UserRef, old: &TwoFactorUser, new: &TwoFactorUser) -> bool {
        let rotate = |user: &TwoFactorUser| user.annotations().get(labels::ROTATE_ANNOTATION).cloned();
        let status_changed =
            old.status != new.status && !self.context.ledger.is_own_status(reference, new.status.as_ref());
        old.metadata.generation != new.metadata.generation || rotate(old) != rotate(new) || status_changed
    }

    async fn gone(&mut self, reference: &UserRef) {
        self.known.remove(reference);
        let namespace = reference.namespace.clone().unwrap_or_default();
        let (departure, uid, last) = {
            let mut index = self.context.index();
            let uid = index.uid(&namespace, &reference.name).map(str::to_owned);
            let had_users = index.has_users(&namespace);
            let departure = index.remove(&namespace, &reference.name);
            (departure, uid, had_users && !index.has_users(&namespace))
        };
        if let Some(old) = self.context.users.get(reference) {
            self.writer.apply_watcher_event(&Event::Delete(TwoFactorUser::clone(&old)));
        }
        self.context.queue.taken(reference);
        self.context.queue.done(reference);
        self.context.ledger.forget(reference);
        self.context.backoff.forget(reference);
        // Where there is no realm any more, all of it is removed.
        if let Ok(realm) = self.context.realms.of(&namespace).await {
            if let Some(uid) = uid {
                realm.unsettle(&uid);
            }
            if let Some(username) = departure.vacated {
                realm.vacate(realm.publisher.keys().pseudonym(&username));
                self.context.removals.notify_one();
            }
        }
        if last {
            let _ = self.context.credentials.send(namespace.clone());
        }
        self.push(&namespace, departure.affected);
    }

    fn push(&self, namespace: &str, names: Vec<String>) {
        for name in names {
            self.context.queue.push(user_ref(namespace, &name));
        }
    }
}

/// Whether the status says that all is well with the user as they are written now.
fn is_settled(user: &TwoFactorUser) -> bool {
    let Some(status) = &user.status else { return false };
    let rotate = user.annotations().get(labels::ROTATE_ANNOTATION);
    status.observed_generation == user.metadata.generation
        && (rotate.is_none() || rotate == status.rotated.as_ref())
        && status.conditions.iter().any(|it| it.type_ == labels::CONDITION_PUBLISHED && it.status == "True")
}

fn reference(object: &DeserializeGuard<TwoFactorUser>) -> UserRef {
    let metadata = object.meta();
    user_ref(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// Notices what others do to our Secrets until it is told to stop.
pub async fn secrets(context: Arc<Context>, scopes: Scopes, stop: CancellationToken) {
    let selector = format!("{}={}", labels::MANAGED_BY_LABEL, labels::MANAGED_BY);
    let mut events: Events<PartialObjectMeta<Secret>> =
        watch(&context.client, &scopes, &watcher::Config::default().labels(&selector));
    let mut listed = vec![HashSet::new(); scopes.lists()];
    while let Some(Some((list, event))) = stop.run_until_cancelled(events.next()).await {
        match event {
            Event::Init => listed[list].clear(),
            Event::InitApply(secret) => {
                listed[list].extend(owner(&secret));
                secret_seen(&context, &secret, true);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut listed[list]);
                let within = |user: &UserRef| scopes.contains(list, user.namespace.as_deref());
                for user in context.ledger.secrets_missing(within, &listed) {
                    context.queue.push(user);
                }
                for namespace in context.index().namespaces() {
                    let _ = context.credentials.send(namespace);
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
    if secret.labels().contains_key(labels::CREDENTIALS_LABEL) {
        let _ = context.credentials.send(secret.namespace().unwrap_or_default());
    } else if let Some(user) = owner(secret) {
        let version = secret.resource_version().filter(|_| there);
        if context.ledger.secret_seen(&user, version.as_deref()) {
            context.queue.push(user);
        }
    }
}

/// Keeps up with namespaces until it is told to stop.
pub async fn namespaces(context: Arc<Context>, synced: Synced, stop: CancellationToken) {
    let api = Api::<PartialObjectMeta<Namespace>>::all(context.client.clone());
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
    if context.realms.namespace_seen(&name, &namespace.uid().unwrap_or_default()) {
        // Another namespace of the same name: what was published belongs to the old one.
        context.removals.notify_one();
        let users = context.index().names(&name);
        if !users.is_empty() {
            let _ = context.credentials.send(name.clone());
        }
        for user in users {
            context.queue.push(user_ref(&name, &user));
        }
    }
}

fn namespace_gone(context: &Context, name: &str) {
    context.realms.namespace_gone(name);
    context.removals.notify_one();
}
