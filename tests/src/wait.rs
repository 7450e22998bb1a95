//! Waits for a condition, and panics after a bound with the name of the condition and the reason of
//! the last probe.
//!
//! The only module of the tests that sleeps.

use std::fmt::Display;
use std::panic::Location;
use std::time::{Duration, Instant};

const BETWEEN_PROBES: Duration = Duration::from_millis(15);
/// Longest pause after a probe that itself took long.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The result of a probe: the condition holds, or not yet and why.
pub trait Outcome {
    /// The value of a condition that holds.
    type Value;

    /// The value, or the reason to probe again.
    ///
    /// # Errors
    /// If the condition does not hold yet.
    fn into_result(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn into_result(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not yet true".to_owned()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn into_result(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;

    fn into_result(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// Probes until the condition holds, and returns what the probe found. A probe that hangs ends at
/// the bound too.
#[track_caller]
pub fn eventually<R: Outcome>(
    bound: Duration,
    what: impl Display,
    probe: impl AsyncFnMut() -> R,
) -> impl Future<Output = R::Value> {
    eventually_every(BETWEEN_PROBES, bound, what, probe)
}

/// [`eventually`] with a longer pause between probes, for a wait of many seconds whose probes would
/// take the processor from other tests.
#[track_caller]
pub fn eventually_every<R: Outcome>(
    pause: Duration,
    bound: Duration,
    what: impl Display,
    mut probe: impl AsyncFnMut() -> R,
) -> impl Future<Output = R::Value> {
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + bound;
        let mut last = None;
        loop {
            let probed = Instant::now();
            let left = deadline.saturating_duration_since(probed);
            match tokio::time::timeout(left, probe()).await.map(Outcome::into_result) {
                Ok(Ok(value)) => return value,
                Ok(Err(reason)) => last = Some(reason),
                // The reason of the previous probe says more than a timeout.
                Err(_) => last = last.or_else(|| Some("the probe did not return".to_owned())),
            }
            if Instant::now() >= deadline {
                exceeded(caller, bound, &what, &last.unwrap_or_default());
            }
            // A probe that starts a program leaves as much of the processor to others.
            tokio::time::sleep(probed.elapsed().clamp(pause, pause.max(LONGEST_PAUSE))).await;
        }
    }
}

/// [`eventually`] for code that is not async, such as a `Drop`.
#[track_caller]
pub fn eventually_blocking<R: Outcome>(
    bound: Duration,
    what: impl Display,
    probe: impl FnMut() -> R,
) -> R::Value {
    try_blocking(bound, probe)
        .unwrap_or_else(|reason| exceeded(Location::caller(), bound, &what, &reason))
}

/// [`eventually_blocking`] that returns an error when the bound is exceeded.
///
/// # Errors
/// The reason of the last probe, if the bound is exceeded.
pub fn try_blocking<R: Outcome>(
    bound: Duration,
    mut probe: impl FnMut() -> R,
) -> Result<R::Value, String> {
    let deadline = Instant::now() + bound;
    loop {
        match probe().into_result() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => return Err(reason),
            Err(_) => std::thread::sleep(BETWEEN_PROBES),
        }
    }
}

fn exceeded(caller: &Location<'_>, bound: Duration, what: &dyn Display, reason: &str) -> ! {
    panic!("waited {bound:?} at {caller} for {what}: {reason}")
}
