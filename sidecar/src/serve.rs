//! `serve`: next to a service, on what the operator published. Enters: credentials. Leaves: a running sidecar.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use twofactor_store::Store;
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisStore;

use crate::credentials::{Credentials, REDIS_URL};
use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::records::Records;
use crate::run::{Addresses, Listeners, RunError, run};
use crate::service::Service;

/// Serves until it is told to stop.
///
/// # Errors
/// When the credentials are unusable, or an address is.
pub async fn serve(addresses: &Addresses, directory: &Path, stop: CancellationToken) -> Result<(), RunError> {
    let wrong = |error: &dyn ToString| RunError::Configuration(error.to_string());
    let credentials = Credentials::read(directory).map_err(|error| wrong(&error))?;
    let listeners = Listeners::bind(addresses).await?;
    let store = RedisStore::new(credentials.redis_url.expose_secret(), credentials.names, Clock::System)
        .map_err(|error| {
            RunError::Configuration(format!("{}: {error}", directory.join(REDIS_URL).display()))
        })?;
    let store = Store::Redis(store);
    let metrics = Metrics::new().map_err(|error| wrong(&error))?;
    let service = Arc::new(Service {
        records: Records::new(store.clone(), credentials.keys, metrics.clone()),
        store,
        delivery: Delivery::new(false),
        caller: credentials.caller,
        expose_codes: false,
        metrics,
    });
    tracing::info!(address = ?listeners.api_address(), caller = %service.caller, "serving");
    run(service, listeners, None::<(&'static str, std::future::Ready<()>)>, stop).await
}
