//! Checks the settings of Redis that matter for accepting a code only once, each minute and
//! whenever another node becomes the master, and shows the results as checks, metrics and log
//! lines.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use twofactor_server::admin::NamedChecks;
use twofactor_store::redis::SettingsWatch;

use crate::state::Context;

/// Checks the settings until `stop`.
pub async fn run(context: Arc<Context>, checks: NamedChecks, stop: CancellationToken) {
    let mut node = context.runtime.node.subscribe();
    let mut watch = SettingsWatch::default();
    loop {
        let pause = watch
            .check(context.realms.registry.store(), |setting, strength, enough| {
                context.runtime.metrics.show_setting(setting.name(), strength);
                if let Some(enough) = enough {
                    checks.set(setting.check(), enough);
                }
            })
            .await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = node.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}
