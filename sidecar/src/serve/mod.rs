//! Runs `serve`: next to a service, on what the operator published.

mod credentials;
mod follow;

use std::path::Path;

use tokio_util::sync::CancellationToken;

use self::follow::Follower;
use crate::error::RunError;
use crate::metrics::Metrics;
use crate::process::listen::{Addresses, Listeners};
use crate::process::{ModeTask, run};

/// Serves until `stop`. Fails if the credentials or an address are invalid; Redis need not answer
/// at the start.
pub async fn serve(
    addresses: &Addresses,
    directory: &Path,
    stop: CancellationToken,
) -> Result<(), RunError> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    let wrong = |error: &dyn ToString| RunError::Configuration(error.to_string());
    let metrics = Metrics::new().map_err(|error| wrong(&error))?;
    let follower = Follower::start(directory, &metrics).map_err(|error| wrong(&error))?;
    let listeners = Listeners::bind(addresses)?;
    let current = follower.current();
    let address = listeners.api_address().map(tracing::field::display);
    tracing::info!(address, caller = %current.load().caller, "serving");
    let check = Some(follower.check());
    let following = ModeTask { name: "credentials", task: follower.follow(stop.clone()), check };
    run(current, listeners, following, stop).await
}
