//! Runs work that must not be cut short: decisions whose client hung up, and deliveries that go on
//! after the answer. The program waits for it before it exits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

/// Maximum number of deliveries that are under way after their answers.
const MOST_DELIVERIES: usize = 256;
/// Time for work to end when the program has to stop; a delivery takes less.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Work that goes on when this future is dropped.
pub struct RunToEnd<F: Future<Output: Send> + Send + 'static> {
    /// The work, until it has ended.
    work: Option<Pin<Box<F>>>,
    tasks: TaskTracker,
    runtime: Handle,
    /// Makes [`BackgroundWork::finish`] wait.
    _unfinished: TaskTrackerToken,
}

impl<F: Future<Output: Send> + Send + 'static> Future for RunToEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let result = ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(result)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for RunToEnd<F> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.tasks.spawn_on(work, &self.runtime);
        }
    }
}

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
        // Its log lines belong to the request that causes it.
        self.tasks.spawn(work.in_current_span());
    }

    /// Runs work that goes on even if the client hangs up, so that a decision that was made is in
    /// the log and in the metrics. Must be called within a tokio runtime.
    ///
    /// The work is a part of the caller's task. Only if that task is dropped, the rest of the work
    /// becomes a task of its own, because most clients wait and a task costs time.
    pub fn run_to_end<F>(&self, work: F) -> RunToEnd<F>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        RunToEnd {
            work: Some(Box::pin(work)),
            tasks: self.tasks.clone(),
            runtime: Handle::current(),
            _unfinished: self.tasks.token(),
        }
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
