//! Refreshes a value that servers are asked for: which node is the master, or which nodes have
//! which slots.
//!
//! A value that is older than [`MAXIMUM_AGE`] is still used and looked up again in the background,
//! so operations wait for a lookup only if there is no value at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::RedisResult;

/// Timeout for one server to answer a lookup: a part of the time that an operation may take, so
/// that another server's answer is still in time.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// Minimum interval between two lookups after failures.
const PAUSE: Duration = Duration::from_millis(500);
/// Age at which a value is looked up again. A master that was replaced, and was not notified, may
/// go on answering.
const MAXIMUM_AGE: Duration = Duration::from_secs(5);

/// A value, and when it was looked up last.
pub(super) struct Refreshed<T> {
    current: ArcSwapOption<T>,
    /// When the last lookup in the background began.
    looked_up: Mutex<Option<Instant>>,
}

impl<T> Default for Refreshed<T> {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), looked_up: Mutex::default() }
    }
}

impl<T> Refreshed<T> {
    /// The value that was found last.
    pub(super) fn current(&self) -> Option<Arc<T>> {
        self.current.load_full()
    }

    /// Whether a lookup is due, which is then counted as begun.
    fn is_due(&self, interval: Duration) -> bool {
        let mut looked_up = self.looked_up.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looked_up.is_none_or(|last| last.elapsed() >= interval);
        if due {
            *looked_up = Some(Instant::now());
        }
        due
    }
}

/// Something that asks servers for a value.
pub(super) trait Lookup: Send + Sync + Sized + 'static {
    /// The value.
    type Value: Send + Sync;

    /// Log line for a lookup in the background that failed.
    const FAILURE: &'static str;

    /// Where the value is kept.
    fn refreshed(&self) -> &Refreshed<Self::Value>;

    /// Asks for the value.
    fn look_up(&self) -> impl Future<Output = RedisResult<Arc<Self::Value>>> + Send;

    /// Returns the value, and looks it up first if there is none.
    async fn value(self: &Arc<Self>) -> RedisResult<Arc<Self::Value>> {
        let Some(value) = self.refreshed().current() else { return update(&**self).await };
        refresh_after(self, MAXIMUM_AGE);
        Ok(value)
    }

    /// Looks the value up in the background, because a failure may mean that it has changed.
    fn schedule_refresh(self: &Arc<Self>) {
        refresh_after(self, PAUSE);
    }
}

fn refresh_after<L: Lookup>(lookup: &Arc<L>, interval: Duration) {
    if !lookup.refreshed().is_due(interval) {
        return;
    }
    let lookup = lookup.clone();
    tokio::spawn(async move {
        if let Err(error) = update(&*lookup).await {
            tracing::debug!(%error, "{}", L::FAILURE);
        }
    });
}

async fn update<L: Lookup>(lookup: &L) -> RedisResult<Arc<L::Value>> {
    let value = lookup.look_up().await?;
    lookup.refreshed().current.store(Some(value.clone()));
    Ok(value)
}
