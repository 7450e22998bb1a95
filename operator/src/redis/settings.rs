//! Looks at Redis' own settings. Enters: a node that answers, another one, or a minute that has
//! gone by. Leaves: checks, metrics and a log line for each change: what is weaker than it should
//! be for a code to be accepted once, whatever happens to Redis.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use twofactor_server::admin::Check;
use twofactor_store::redis::{Setting, SettingsWatch, Strength};

use crate::state::Context;

/// How often to look, although the node is the same.
const LOOK: Duration = Duration::from_mins(1);
/// How soon to look again when Redis did not answer.
const RETRY: Duration = Duration::from_secs(5);

/// What `/readyz?verbose` tells about the settings; none of it affects readiness.
#[must_use]
pub fn checks() -> Vec<(Setting, Check)> {
    Setting::ALL.map(|setting| (setting, Check::informational(setting.check()))).into()
}

/// Looks until it is told to stop.
pub async fn run(context: Arc<Context>, checks: Vec<(Setting, Check)>, stop: CancellationToken) {
    let mut node = context.node.subscribe();
    let mut watch = SettingsWatch::default();
    loop {
        // The guard says when Redis does not answer.
        let found = context.realms.store().settings().await;
        if let Ok(found) = &found {
            watch.log_changes(found);
            for (setting, strength) in found {
                context.metrics.show_setting(setting.name(), *strength);
                let check = checks.iter().find(|(known, _)| known == setting);
                if let (Some((_, check)), true) = (check, *strength != Strength::Unknown) {
                    check.set(*strength == Strength::Enough);
                }
            }
        }
        let pause = if found.is_ok() { LOOK } else { RETRY };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = node.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}
