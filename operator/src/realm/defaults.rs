//! Follows the operator's own providers and policy in a folder, which is mounted from a Secret:
//! each file has the name of a variable. A variable of the environment takes precedence.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use twofactor_core::realm::RealmRecord;
use twofactor_core::settings::{self, SettingsError};

use crate::state::Context;

/// Interval between reads.
const PERIOD: Duration = Duration::from_secs(10);

/// Reads providers and policy of realms that set none.
///
/// # Errors
/// Names the first variable that is missing or invalid.
pub fn read(folder: Option<&Path>) -> Result<RealmRecord, SettingsError> {
    settings::realm(|name| {
        // A name of a variable has no character that would leave the folder.
        let in_folder = || std::fs::read_to_string(folder?.join(name)).ok();
        std::env::var(name).ok().filter(|value| !value.is_empty()).or_else(in_folder)
    })
}

/// Reads the folder again and again until `stop`, and has changes published.
pub async fn run(context: Arc<Context>, folder: PathBuf, stop: CancellationToken) {
    let mut reported = None;
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let defaults = &context.realms.defaults;
        match read(Some(&folder)) {
            Ok(record) => {
                reported = None;
                let changes = *defaults.borrow() != record;
                if changes {
                    tracing::info!("providers or policy of the operator changed");
                    defaults.send_replace(record);
                }
            }
            Err(error) => {
                let text = error.to_string();
                if reported.as_ref() != Some(&text) {
                    tracing::warn!(%error, "failed to read the operator's changed providers; the previous ones stay in use");
                    reported = Some(text);
                }
            }
        }
    }
}
