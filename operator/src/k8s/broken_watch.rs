//! Describes why a watch of the API server broke, and how long to wait before it begins again.

use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use rand::rngs::SysRng;
use rand_core::UnwrapErr;

use super::backoff::jittered;
use super::request::ApiError;

/// Logs why a watch of `resource` begins again.
pub fn log_broken(error: watcher::Error, resource: &str) {
    tracing::warn!(error = describe(error), resource, "watch broken, starting it again");
}

/// Whether the API server says that the operator has no right to list or watch.
pub fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

/// Describes the error of a watch without the object that the API server's answer may quote.
fn describe(error: watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => ApiError::from(error).to_string(),
        watcher::Error::WatchError(status) => ApiError::from(kube::Error::Api(status)).to_string(),
        error @ watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Pauses before a broken watch starts again, from 200 ms to 5 s. kube's default pauses grow to
/// 30 s, during which a deleted user could still be verified.
pub struct Pauses {
    next: Duration,
    last: Option<Instant>,
}

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);
/// Time without an error after which a watch counts as unbroken.
const RECOVERED: Duration = Duration::from_secs(20);

impl Default for Pauses {
    fn default() -> Self {
        Self { next: FIRST, last: None }
    }
}

impl Pauses {
    /// The pause after an error at the time `now`.
    fn after(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) >= RECOVERED) {
            self.next = FIRST;
        }
        self.last = Some(now);
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(jittered(self.after(Instant::now()), &mut UnwrapErr(SysRng)))
    }
}

impl Backoff for Pauses {
    // kube calls this for the event with which every list begins, also for a list that is refused.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_although_an_event_precedes_every_error_and_shrink_after_a_while() {
        let (mut pauses, mut now) = (Pauses::default(), Instant::now());
        assert_eq!(pauses.after(now), FIRST);
        for _ in 0..10 {
            pauses.reset();
            now += pauses.after(now);
        }
        assert_eq!(pauses.after(now), LONGEST);
        assert_eq!(pauses.after(now + RECOVERED), FIRST);
    }
}
