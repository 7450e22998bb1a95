//! Supervises tasks that belong together. If one ends, all are stopped, and each is joined.

use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::error::StartError;

/// A task's name, and how it ended.
type Ended = (&'static str, Result<(), StartError>);

/// Tasks that belong together.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<Ended>);

impl Tasks {
    /// Spawns a task that runs until all are stopped.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Spawns a task that begins when `ready` completes, unless `stop` is cancelled before.
    pub fn spawn_after(
        &mut self,
        ready: &(impl Future + Clone + Send + 'static),
        stop: &CancellationToken,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (ready, stop) = (ready.clone(), stop.clone());
        self.spawn(name, async move {
            if stop.run_until_cancelled(ready).await.is_some() {
                task.await;
            }
        });
    }

    /// Spawns a task that may end early with an error.
    pub fn spawn_fallible(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), StartError>> + Send + 'static,
    ) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// Waits for the signal to stop, or for a task that ends without it. Then stops all tasks, and
    /// aborts those that take longer than `drain`.
    pub async fn supervise(
        mut self,
        stop: &CancellationToken,
        drain: Duration,
    ) -> Result<(), StartError> {
        let mut result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = self.0.join_next() => unexpected_end(ended, stop),
        };
        stop.cancel();
        let joined = async {
            while let Some(ended) = self.0.join_next().await {
                match ended {
                    Ok((name, Ok(()))) => tracing::debug!(task = name, "task ended"),
                    Ok((_, Err(error))) => {
                        result = std::mem::replace(&mut result, Ok(())).and(Err(error));
                    }
                    Err(error) => tracing::error!(%error, "task panicked"),
                }
            }
        };
        if tokio::time::timeout(drain, joined).await.is_err() {
            tracing::warn!(after = ?drain, "tasks aborted that did not end in time");
            self.0.shutdown().await;
        }
        result
    }
}

/// Maps an unexpected task exit to an error.
fn unexpected_end(
    ended: Option<Result<Ended, JoinError>>,
    stop: &CancellationToken,
) -> Result<(), StartError> {
    let name = match ended {
        Some(Ok((_, Err(error)))) => return Err(error),
        // A task that ends while the process stops is not an error.
        Some(Ok(_)) | None if stop.is_cancelled() => return Ok(()),
        Some(Ok((name, Ok(())))) => name,
        Some(Err(_)) | None => "that panicked",
    };
    tracing::error!(task = name, "task ended early; stopping the process");
    Err(StartError::TaskEnded(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn if_one_task_ends_all_are_stopped() {
        let (mut tasks, stop) = (Tasks::default(), CancellationToken::new());
        tasks.spawn("waits", stop.clone().cancelled_owned());
        tasks.spawn("ends", async {});
        assert!(matches!(tasks.supervise(&stop, DRAIN).await, Err(StartError::TaskEnded("ends"))));
        assert!(stop.is_cancelled());
    }

    #[tokio::test]
    async fn an_error_during_shutdown_is_returned() {
        let (mut tasks, stop) = (Tasks::default(), CancellationToken::new());
        let stopped = stop.clone();
        tasks.spawn_fallible("fails", async move {
            stopped.cancelled().await;
            Err(StartError::LeadershipLost)
        });
        stop.cancel();
        assert!(matches!(tasks.supervise(&stop, DRAIN).await, Err(StartError::LeadershipLost)));
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_in_time_is_aborted() {
        let (mut tasks, stop) = (Tasks::default(), CancellationToken::new());
        tasks.spawn("stubborn", std::future::pending());
        stop.cancel();
        assert!(tasks.supervise(&stop, Duration::from_millis(10)).await.is_ok());
    }
}
