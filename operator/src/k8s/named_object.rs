//! Watches one object by its name, so that it has to be read only when it has changed.
//!
//! Only the metadata is watched. An account that may watch this one name needs no right to list
//! others, because the API server takes the name from the field selector.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use tokio::sync::Notify;

use super::broken_watch::{Pauses, is_forbidden, log_broken};
use super::watch_signs::WATCH_TIMEOUT;

/// What a watch of one object tells.
#[derive(Debug, Default)]
pub struct NamedObject {
    changed: Notify,
    is_watched: AtomicBool,
}

impl NamedObject {
    /// Waits until the object may have changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether changes are reported. If not, the object has to be read again and again.
    pub fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// Watches the object `name` for as long as it is polled.
    pub async fn watch<K>(&self, api: Api<PartialObjectMeta<K>>, name: &str)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Send + 'static,
    {
        let resource = K::plural(&()).into_owned();
        let selector = format!("metadata.name={name}");
        let configuration = watcher::Config::default().fields(&selector).timeout(WATCH_TIMEOUT);
        let mut events = watcher(api, configuration).backoff(Pauses::default()).boxed();
        let mut is_refusal_logged = false;
        while let Some(event) = events.next().await {
            match event {
                // A list begins with these, also one that is refused.
                Ok(Event::Init | Event::InitApply(_)) => {}
                Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
                    self.is_watched.store(true, Ordering::Relaxed);
                    is_refusal_logged = false;
                    self.changed.notify_one();
                }
                Err(error) if is_forbidden(&error) => {
                    self.is_watched.store(false, Ordering::Relaxed);
                    if !std::mem::replace(&mut is_refusal_logged, true) {
                        tracing::warn!(
                            resource,
                            name,
                            "watch of one object forbidden, reading it every few seconds instead"
                        );
                    }
                }
                // The watch begins again where it was, so no change is lost.
                Err(error) => log_broken(error, &resource),
            }
        }
    }
}
