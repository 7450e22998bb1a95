//! Keeps up with the API server. Enters: watches, of Secrets, pods and namespaces by their metadata
//! only. Leaves: what is known of each kind up to date, and whoever has to act on a change told so.
//! A file for each kind; here is what they share.
//!
//! A watch can miss things while it is broken. Then everything is listed again, and what is not in
//! the list is treated like something that was seen to go.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;

use crate::k8s::backoff::jittered;
use crate::k8s::request::ApiError;
use crate::state::watched_namespaces::WatchedNamespaces;

pub mod namespaces;
pub mod pod_findings;
pub mod pods;
pub mod realms;
pub mod secrets;
pub mod users;

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
pub(crate) type Events<K> = SelectAll<BoxStream<'static, (usize, Event<K>)>>;

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
        [] => vec![Api::<K>::all(client.clone())],
        names => names.iter().map(|name| Api::namespaced(client.clone(), name)).collect(),
    };
    let streams = apis.into_iter().enumerate().map(|(number, api)| {
        events(api, configuration.clone()).map(move |event| (number, event)).boxed()
    });
    futures_util::stream::select_all(streams)
}

pub(crate) fn events<K>(
    api: Api<K>,
    configuration: watcher::Config,
) -> impl Stream<Item = Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    kube::runtime::watcher(api, configuration).backoff(Pauses::default()).filter_map(move |event| {
        let event = event
            .map_err(|error| {
                tracing::warn!(
                    error = describe(error),
                    kind,
                    "a watch is broken, and will be begun again"
                );
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

/// Pauses before a broken watch is begun again: from 200 ms to 5 s. kube's own go up to 30 s,
/// during which a deleted user would stay verified.
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
