//! Looks at Redis' own settings now and then. Enters: the present service. Leaves: checks, metrics
//! and a log line for each change: what is weaker than it should be for a code to be accepted once,
//! whatever happens to Redis.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::Check;
use twofactor_store::redis::{Setting, SettingsWatch, Strength};

use crate::otp::service::Current;

/// How often to look. They change when somebody changes them, or another node is the master.
const LOOK: Duration = Duration::from_mins(1);
/// How soon to look again when Redis did not answer.
const RETRY: Duration = Duration::from_secs(5);

/// What `/readyz?verbose` tells about the settings; none of it affects readiness.
pub(crate) fn checks() -> Vec<(Setting, Check)> {
    Setting::ALL.map(|setting| (setting, Check::informational(setting.check()))).into()
}

/// Looks until it is told to stop. Does nothing where the store is not Redis.
pub(crate) async fn watch(
    current: Current,
    checks: Vec<(Setting, Check)>,
    stop: CancellationToken,
) {
    if current.load().store.redis().is_none() {
        return stop.cancelled().await;
    }
    let work = async {
        let mut watch = SettingsWatch::default();
        let mut ticks = tokio::time::interval(RETRY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let service = current.load();
            let Some(store) = service.store.redis() else { continue };
            // The refresh says when it does not answer.
            let Ok(found) = store.settings().await else { continue };
            watch.log_changes(&found);
            for (setting, strength) in found {
                service.metrics.redis_setting(setting.name(), strength);
                let check = checks.iter().find(|(known, _)| *known == setting);
                if let (Some((_, check)), true) = (check, strength != Strength::Unknown) {
                    check.set(strength == Strength::Enough);
                }
            }
            drop(service);
            tokio::time::sleep(LOOK).await;
        }
    };
    stop.run_until_cancelled(work).await;
}
