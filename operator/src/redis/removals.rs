//! Removes users from Redis whose username has no owner any more. It waits for nothing but Redis,
//! so that a deletion takes effect at once whatever else the operator does.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use twofactor_store::StoreError;

use crate::state::Context;
use crate::state::realms::Realm;

/// Maximum number of realms whose users are removed at the same time.
const CONCURRENT: usize = 16;
/// Delay after a failure. A deletion takes effect within a second, also right after Redis restarts.
const RETRY: Duration = Duration::from_millis(200);
/// Interval between looks at what has to be removed, in case a wake-up was missed.
const SAFETY_NET: Duration = Duration::from_mins(1);

/// Removes users until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let patience = if remove_all(&context).await { SAFETY_NET } else { RETRY };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = timeout(patience, context.runtime.removals.notified()) => {}
        }
    }
}

/// Removes what has to be removed in all realms. Returns whether nothing is left.
async fn remove_all(context: &Context) -> bool {
    let realms = context.realms.registry.all();
    let pending = realms.into_iter().filter(|realm| !realm.pending_removals().is_empty());
    let removals = stream::iter(pending).map(|realm| async move {
        let result = remove_pending(&realm).await;
        if let Err(error) = &result {
            // The monitor logs that Redis does not answer.
            tracing::debug!(namespace = realm.namespace, %error, "failed to remove users from Redis; trying again");
        }
        result.is_ok()
    });
    // One realm that fails does not keep the others waiting.
    let all = removals.buffer_unordered(CONCURRENT);
    all.fold(true, |all, done| async move { all && done }).await
}

/// Removes the users of a realm that have to be removed.
pub async fn remove_pending(realm: &Realm) -> Result<(), StoreError> {
    let _alone = realm.removal_lock.write().await;
    let pending = realm.pending_removals();
    realm.publisher.store().remove(&pending).await?;
    realm.removed(&pending);
    Ok(())
}
