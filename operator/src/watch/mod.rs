//! Watches objects in the API server: users and realms whole, and Secrets, pods and namespaces by
//! their metadata only, without annotations of other programs. Each watch keeps the state of one
//! kind up to date and wakes the tasks that have to act on a change.
//!
//! Each kind has its own file. This file starts the watches, and [`changes`] turns their events
//! into changes.

use std::fmt::Debug;

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;

use self::kept::Kept;
use crate::k8s::broken_watch::{Pauses, is_forbidden, log_broken};
use crate::k8s::watch_signs::WATCH_TIMEOUT;
use crate::state::refused_watches::{RefusedWatches, WatchId};
use crate::state::watched_namespaces::WatchedNamespaces;

mod changes;
pub mod imports;
mod kept;
pub mod limit_ranges;
pub mod namespaces;
pub mod pod_findings;
pub mod pods;
pub mod realms;
pub mod recovery;
pub mod secrets;
pub mod users;

/// Number of objects in a page of a list. Tenants can write annotations of 256 kB, and the text of
/// a page is in memory as a whole, up to five times.
const PAGE: u32 = 15;

/// Whether the first list of a watch is complete.
#[derive(Clone, Debug)]
pub struct Synced(channel::Sender<bool>);

impl Default for Synced {
    fn default() -> Self {
        Self(channel::Sender::new(false))
    }
}

impl Synced {
    /// Records that the list is complete.
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    /// Whether the list is complete.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the list is complete.
    pub async fn wait(&self) {
        // This cannot fail, because `self` keeps the sender alive.
        let _ = self.0.subscribe().wait_for(|synced| *synced).await;
    }
}

/// What a watch has learned about its list.
#[derive(Clone, Debug)]
pub(crate) enum Seen<O> {
    Event(Event<O>),
    /// The operator may not list the objects of this namespace. What is known of them stays.
    Refused,
}

/// What was seen of one or more lists, each with the number of its list.
pub(crate) type Events<K> = SelectAll<BoxStream<'static, (usize, Seen<K>)>>;

/// Watches the objects in the watched namespaces, with one list for each of them, or one for all.
/// A list of a namespace that the API server refuses is recorded in `refused`.
pub(crate) fn watch<K>(
    client: &Client,
    watched: &WatchedNamespaces,
    refused: &RefusedWatches,
    configuration: &watcher::Config,
) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
{
    if watched.0.is_empty() {
        return watch_all(client, configuration.clone());
    }
    let streams = watched.0.iter().enumerate().map(|(number, name)| {
        let list = NamespaceList {
            namespace: name.clone(),
            watch: WatchId {
                resource: K::plural(&()).into_owned(),
                selector: configuration.label_selector.clone().unwrap_or_default(),
            },
            refused: refused.clone(),
            listed: false,
            gone: false,
        };
        let api = Api::<Kept<K>>::namespaced(client.clone(), name);
        events(api, configuration.clone())
            .scan(list, |list, result| std::future::ready(Some(list.seen(result))))
            .flat_map(futures_util::stream::iter)
            .map(move |seen| (number, seen))
            .boxed()
    });
    futures_util::stream::select_all(streams)
}

/// The list of one namespace.
struct NamespaceList {
    namespace: String,
    watch: WatchId,
    refused: RefusedWatches,
    /// Whether the list was complete once.
    listed: bool,
    /// Whether an empty list was reported, because the namespace was deleted.
    gone: bool,
}

impl NamespaceList {
    fn seen<K>(&mut self, result: Result<Event<K>, watcher::Error>) -> Vec<Seen<K>> {
        let Self { namespace, watch, refused, listed, gone } = self;
        let resource = watch.resource.as_str();
        match result {
            Ok(event) => {
                // A first list counts when all of its objects are known.
                *listed |= matches!(event, Event::InitDone);
                *gone = false;
                if *listed && refused.allow(namespace, watch) {
                    tracing::info!(namespace, resource, "the operator may list objects again");
                }
                vec![Seen::Event(event)]
            }
            // The roles in a namespace are deleted with it.
            Err(error) if is_forbidden(&error) && refused.is_deleted(namespace) => {
                if std::mem::replace(gone, true) {
                    return Vec::new();
                }
                refused.allow(namespace, watch);
                vec![Seen::Event(Event::Init), Seen::Event(Event::InitDone)]
            }
            Err(error) if is_forbidden(&error) => {
                if refused.refuse(namespace, watch, *listed) {
                    tracing::warn!(
                        namespace,
                        resource,
                        "watch forbidden: the operator lacks rights in a namespace, which is left as it is"
                    );
                }
                vec![Seen::Refused]
            }
            Err(error) => {
                log_broken(error, resource);
                Vec::new()
            }
        }
    }
}

/// Watches the objects in the whole cluster, with one list.
pub(crate) fn watch_all<K>(client: &Client, configuration: watcher::Config) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::plural(&()).into_owned();
    let events = events(Api::all(client.clone()), configuration).filter_map(move |result| {
        let event = result.map_err(|error| log_broken(error, &kind)).ok();
        std::future::ready(event.map(|event| (0, Seen::Event(event))))
    });
    futures_util::stream::select_all([events.boxed()])
}

fn events<K>(
    api: Api<Kept<K>>,
    configuration: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let configuration = configuration.page_size(PAGE).timeout(WATCH_TIMEOUT);
    let events = kube::runtime::watcher(api, configuration).backoff(Pauses::default());
    events.map(|result| result.map(kept::unwrap))
}
