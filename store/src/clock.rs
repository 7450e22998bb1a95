//! Holds the clock that is passed in: the system's, or one that a test moves.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use twofactor_core::time::UnixMillis;

/// A clock: the system's, or one that a test moves.
#[derive(Clone)]
pub enum Clock {
    /// The system's wall clock.
    System,
    /// A clock that stands still until a test moves it.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// Creates a clock that stands at `start` until [`Clock::set`] moves it.
    #[must_use]
    pub fn manual(start: UnixMillis) -> Self {
        Self::Manual(Arc::new(AtomicU64::new(start.millis())))
    }

    /// Moves a manual clock and every clone of it. The system's clock is not changed.
    pub fn set(&self, now: UnixMillis) {
        if let Self::Manual(millis) = self {
            millis.store(now.millis(), Ordering::SeqCst);
        }
    }

    /// Returns the current time.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        match self {
            Self::System => system_now(),
            Self::Manual(millis) => UnixMillis::new(millis.load(Ordering::SeqCst)),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
fn system_now() -> UnixMillis {
    let since_epoch =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::System => "Clock::System",
            Self::Manual(_) => "Clock::Manual",
        })
    }
}
