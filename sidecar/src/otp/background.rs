//! Work that nobody may cut short: decisions whose client hung up, and deliveries that go on after
//! the answer. Enters: futures. Leaves: their ends, of which none is missed when the program is
//! told to stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// Deliveries that may be under way after their answers.
const BEHIND: usize = 256;
/// For work to end when the program is told to stop: longer than a delivery may take.
const DRAIN: Duration = Duration::from_secs(15);

/// The work of a sidecar; clones share it.
#[derive(Clone, Debug)]
pub struct Work {
    tasks: TaskTracker,
    slots: Arc<Semaphore>,
}

impl Default for Work {
    fn default() -> Self {
        Self { tasks: TaskTracker::new(), slots: Arc::new(Semaphore::new(BEHIND)) }
    }
}

impl Work {
    /// Begins work that goes on whatever becomes of the one who asked for it.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(work)
    }

    /// Room for something that goes on after its answer, while there is some.
    #[must_use]
    pub fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// Waits for everything that was begun. Call it when nothing begins any more.
    pub async fn finish(&self) {
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), after = ?DRAIN, "work was still under way at the end");
        }
    }
}
