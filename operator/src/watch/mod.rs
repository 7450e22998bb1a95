//! Watches objects in the API server: users and realms whole, and Secrets, pods and namespaces by
//! their metadata only, without annotations of other programs. Each watch keeps the state of one
//! kind up to date and wakes the tasks that have to act on a change.
//!
//! Each kind has its own file. This file starts the watches, and [`changes`] turns their events
//! into changes.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;

use self::kept::Kept;
use crate::k8s::backoff::jittered;
use crate::k8s::request::ApiError;
use crate::k8s::watch_signs::WATCH_TIMEOUT;
use crate::state::watched_namespaces::WatchedNamespaces;

mod changes;
pub mod imports;
mod kept;
pub mod namespaces;
pub mod pod_findings;
pub mod pods;
pub mod realms;
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

/// Events of one or more lists, each with the number of its list.
pub(crate) type Events<K> = SelectAll<BoxStream<'static, (usize, Event<K>)>>;

/// Watches the objects in the watched namespaces, with one list for each of them, or one for all.
pub(crate) fn watch<K>(
    client: &Client,
    watched: &WatchedNamespaces,
    configuration: &watcher::Config,
) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let apis = match watched.0.as_slice() {
        [] => vec![Api::<Kept<K>>::all(client.clone())],
        names => names.iter().map(|name| Api::namespaced(client.clone(), name)).collect(),
    };
    let streams = apis.into_iter().enumerate().map(|(number, api)| {
        events(api, configuration.clone()).map(move |event| (number, event)).boxed()
    });
    futures_util::stream::select_all(streams)
}

/// Watches the objects in the whole cluster, with one list.
pub(crate) fn watch_all<K>(client: &Client, configuration: watcher::Config) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = events(Api::all(client.clone()), configuration);
    futures_util::stream::select_all([events.map(|event| (0, event)).boxed()])
}

fn events<K>(
    api: Api<Kept<K>>,
    configuration: watcher::Config,
) -> impl Stream<Item = Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    let configuration = configuration.page_size(PAGE).timeout(WATCH_TIMEOUT);
    kube::runtime::watcher(api, configuration).backoff(Pauses::default()).filter_map(move |event| {
        let event = event
            .map_err(|error| {
                tracing::warn!(error = describe(error), kind, "watch broken, starting it again");
            })
            .ok()
            .map(kept::unwrap);
        std::future::ready(event)
    })
}

/// Describes the error of a watch without the object that the API server's answer may quote.
fn describe(error: watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => ApiError::from(error).to_string(),
        watcher::Error::WatchError(status) => ApiError::from(kube::Error::Api(status)).to_string(),
        error @ watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Pauses before a broken watch starts again, from 200 ms to 5 s. kube's default pauses grow to
/// 30 s, during which a deleted user could still be verified.
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
