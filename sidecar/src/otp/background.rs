//! Runs work that must not be cut short: decisions whose client hung up, and deliveries that go on
//! after the answer. The program waits for it before it exits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::refusal::Refusal;

/// Maximum number of deliveries that are under way after their answers.
const MOST_DELIVERIES: usize = 256;
/// Time for work to end when the program has to stop; a delivery takes less.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// The background work of a sidecar; clones share it.
#[derive(Clone, Debug)]
pub struct BackgroundWork {
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
}

impl Default for BackgroundWork {
    fn default() -> Self {
        Self { tasks: TaskTracker::new(), permits: Arc::new(Semaphore::new(MOST_DELIVERIES)) }
    }
}

impl BackgroundWork {
    /// Starts work that goes on even if the client hangs up.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Waits for work that goes on even if the client hangs up, so that a decision that was made is
    /// in the log and in the metrics.
    pub async fn run_to_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.tasks.spawn(work).await.map_err(|error| {
            tracing::error!(%error, "request aborted");
            Refusal::Internal
        })
    }

    /// Returns a permit for a delivery after its answer, unless too many are under way.
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Waits for all work to end. Call it when no more is started.
    pub async fn finish(&self) {
        self.tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), after = ?DRAIN_TIMEOUT, "background work abandoned at exit");
        }
    }
}
