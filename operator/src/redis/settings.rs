//! Checks Redis each minute, and whenever another node becomes the master: the settings that matter
//! for accepting a code only once, what Redis uses of its memory and clients, and its clock.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use twofactor_server::admin::NamedChecks;
use twofactor_store::redis::{SettingsWatch, Usage};

use crate::redis::memory;
use crate::state::Context;

/// Difference of the clocks of Redis and of the operator from which on there is a warning.
const CLOCK_WARNING: Duration = Duration::from_secs(5);

/// Checks Redis until `stop`.
pub async fn run(context: Arc<Context>, checks: NamedChecks, stop: CancellationToken) {
    let mut node = context.runtime.node.subscribe();
    let mut watch = SettingsWatch::default();
    let mut clock = ClockWatch::default();
    let store = context.realms.registry.store();
    loop {
        let mut pause = watch
            .check(store, |setting, strength, enough| {
                context.runtime.metrics.show_setting(setting.name(), strength);
                if let Some(enough) = enough {
                    checks.set(setting.check(), enough);
                }
            })
            .await;
        // Another task logs that Redis does not answer.
        if let Ok(usage) = store.usage().await {
            context.runtime.metrics.redis_usage.show(&usage);
            clock.log_change(&usage);
            memory::shorten_histories(&context, &usage).await;
            pause = memory::pause(&usage, pause);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = node.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Logs when the clocks begin and cease to differ.
#[derive(Default)]
struct ClockWatch {
    differs: bool,
}

impl ClockWatch {
    fn log_change(&mut self, usage: &Usage) {
        let difference = Duration::from_millis(usage.clock_difference.unsigned_abs());
        let differs = difference > CLOCK_WARNING;
        if differs && !self.differs {
            let ahead = usage.clock_difference > 0;
            tracing::warn!(?difference, ahead, "the clocks of Redis and of the operator differ");
        } else if self.differs && !differs {
            tracing::info!("the clocks of Redis and of the operator agree again");
        }
        self.differs = differs;
    }
}
