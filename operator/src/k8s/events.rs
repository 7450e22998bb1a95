//! Writes Events in the background.
//!
//! kube's recorder is not used, because its caller waits for the request and searches all recent
//! Events each time, which is slow with ten thousand new users. Here the caller never waits: if too
//! many Events are pending, some are dropped, and the status still says everything.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use prometheus::IntCounter;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;
use twofactor_api::labels::MANAGED_BY;
use twofactor_store::clock::Clock;

use crate::k8s::request;

/// Maximum number of pending Events.
const WAITING: usize = 1000;
/// Interval between two Events.
const PAUSE: Duration = Duration::from_millis(20);
/// Interval between two Events while many are pending, because users are being reconciled and have
/// priority.
const LONG_PAUSE: Duration = Duration::from_millis(200);
/// Number of pending Events from which on the longer interval applies.
const MANY: usize = 50;
/// Timeout for writing pending Events when the process ends.
const DRAIN: Duration = Duration::from_secs(2);

/// Something that happened to an object. Contains no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether an administrator should act.
    pub warning: bool,
    /// The reason, as one word.
    pub reason: &'static str,
    /// The note, as a sentence.
    pub note: String,
}

impl Notice {
    /// An Event of type `Normal`.
    pub fn normal(reason: &'static str, note: impl Into<String>) -> Self {
        Self { warning: false, reason, note: note.into() }
    }

    /// An Event of type `Warning`.
    pub fn warning(reason: &'static str, note: impl Into<String>) -> Self {
        Self { warning: true, reason, note: note.into() }
    }
}

/// Takes Events that are to be written.
#[derive(Clone, Debug)]
pub struct Events {
    sender: Sender<Event>,
    clock: Clock,
    instance: String,
    dropped: IntCounter,
}

impl Events {
    /// Returns the sending end, and the receiving end for [`write()`]. `instance` is the name of
    /// this process.
    pub fn new(instance: &str, clock: Clock, dropped: IntCounter) -> (Self, Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender, clock, instance: instance.to_owned(), dropped }, receiver)
    }

    /// Queues an Event about the object `regarding`.
    pub fn emit(&self, regarding: &ObjectReference, notice: Notice) {
        let Ok(now) =
            Timestamp::from_millisecond(self.clock.now().millis().try_into().unwrap_or(i64::MAX))
        else {
            return;
        };
        // Half of the queue is reserved for warnings.
        let crowded = !notice.warning && self.sender.capacity() < WAITING / 2;
        if crowded || self.sender.try_send(event(&self.instance, now, regarding, notice)).is_err() {
            self.dropped.inc();
        }
    }
}

fn event(instance: &str, now: Timestamp, regarding: &ObjectReference, notice: Notice) -> Event {
    let mut note = notice.note;
    if note.len() > 1024 {
        note.truncate(note.floor_char_boundary(1024));
    }
    Event {
        metadata: ObjectMeta {
            namespace: regarding.namespace.clone(),
            generate_name: Some(format!("{}-", regarding.name.as_deref().unwrap_or(MANAGED_BY))),
            ..ObjectMeta::default()
        },
        action: Some("Reconcile".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(notice.reason.to_owned()),
        regarding: Some(regarding.clone()),
        reporting_controller: Some(format!("{}/operator", twofactor_api::labels::GROUP)),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

/// Writes Events until `stop`, and then the pending ones for a short time.
pub async fn write(client: Client, mut events: Receiver<Event>, stop: CancellationToken) {
    while let Some(Some(event)) = stop.run_until_cancelled(events.recv()).await {
        write_one(&client, &event).await;
        let pause = if events.len() > MANY { LONG_PAUSE } else { PAUSE };
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    events.close();
    let rest = async {
        while let Some(event) = events.recv().await {
            write_one(&client, &event).await;
        }
    };
    let _ = tokio::time::timeout(DRAIN, rest).await;
}

async fn write_one(client: &Client, event: &Event) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    if let Err(error) = request::within(events.create(&PostParams::default(), event)).await {
        tracing::debug!(%error, event = event.reason, "failed to write an Event");
    }
}
