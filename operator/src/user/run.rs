//! Reconciles the queued users, several at the same time.

use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::reconcile;
use crate::state::Context;

/// Reconciles queued users until `stop`, at most `concurrency` at the same time, and finishes those
/// in progress. The lists must be complete.
pub async fn run(context: Arc<Context>, concurrency: u16, stop: CancellationToken) {
    // Each user gets a task, because drawing QR codes should use all processors. The tasks are
    // aborted with this one, because another leader may write after that.
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = running.join_next() => propagate_panic(ended),
            user = context.users.queue.next(), if running.len() < concurrency.into() => {
                let context = context.clone();
                running.spawn(async move { reconcile(&context, &user).await });
            }
        }
    }
    while let Some(ended) = running.join_next().await {
        propagate_panic(ended);
    }
}

fn propagate_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        std::panic::resume_unwind(error.into_panic());
    }
}
