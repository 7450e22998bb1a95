//! Checks the settings of Redis that matter for accepting a code only once, and shows the results
//! as checks, metrics and log lines.

use tokio_util::sync::CancellationToken;
use twofactor_server::admin::NamedChecks;
use twofactor_store::redis::SettingsWatch;

use crate::otp::service::CurrentService;

/// Checks the settings until `stop`. Does nothing if the store is in memory.
pub(crate) async fn watch(current: CurrentService, checks: NamedChecks, stop: CancellationToken) {
    if current.load().store.redis().is_none() {
        return stop.cancelled().await;
    }
    let work = async {
        let mut watch = SettingsWatch::default();
        loop {
            let service = current.load();
            let Some(store) = service.store.redis() else { return std::future::pending().await };
            let pause = watch
                .check(store, |setting, strength, enough| {
                    service.metrics.redis_setting(setting.name(), strength);
                    if let Some(enough) = enough {
                        checks.set(setting.check(), enough);
                    }
                })
                .await;
            drop(service);
            tokio::time::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(work).await;
}
