//! `serve`: next to a service, on what the operator published. Enters: credentials. Leaves: a
//! running sidecar.

pub mod credentials;
pub mod follow;

use std::path::Path;

use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::process::listen::{Addresses, Listeners};
use crate::process::{Background, RunError, run};
use crate::serve::follow::Follower;

/// Serves until it is told to stop. Redis need not be there at the start.
///
/// # Errors
/// When the credentials are unusable, or an address is.
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
    let following = Background { name: "credentials", task: follower.follow(stop.clone()), check };
    run(current, listeners, following, stop).await
}
