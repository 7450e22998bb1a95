//! Watches `LimitRanges` in every namespace for admission.

use std::sync::Arc;

use k8s_openapi::api::core::v1::LimitRange;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::changes::{Change, Changes};
use super::watch_all;
use crate::state::limit_ranges::LimitRanges;

/// Watches `LimitRanges` until `stop`.
pub async fn run(client: Client, ranges: Arc<LimitRanges>, stop: CancellationToken) {
    let events = watch_all(&client, watcher::Config::default());
    let mut changes = Changes::new(events, reference);
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        match change {
            Change::Applied(_, range) => ranges.applied(range),
            Change::Deleted((namespace, name)) => ranges.deleted(&namespace, &name),
            Change::Synced => {}
        }
    }
}

fn reference(range: &LimitRange) -> (String, String) {
    (range.namespace().unwrap_or_default(), range.name_any())
}
