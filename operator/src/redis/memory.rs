//! Shortens the histories of users while the memory of Redis is almost full, because without memory
//! no code is accepted.

use std::time::Duration;

use twofactor_store::redis::Usage;

use crate::state::Context;
use crate::state::realms::Readiness;

/// Used part of the memory from which on histories are shortened.
const SHORT: f64 = 0.9;
/// Used part of the memory below which they are long enough.
const ENOUGH: f64 = 0.85;
/// Used part of the memory from which on it is checked often.
const WATCHED: f64 = 0.75;
/// Interval between these checks.
const INTERVAL: Duration = Duration::from_secs(5);
/// Numbers of entries that are left, one after the other until there is enough memory.
const LEFT: [u16; 3] = [100, 20, 0];

/// Returns the time to wait until the next check of a Redis that uses this much, at most `pause`.
pub fn pause(usage: &Usage, pause: Duration) -> Duration {
    if is_above(usage, WATCHED) { pause.min(INTERVAL) } else { pause }
}

/// Shortens the histories of all realms if the memory is almost full.
pub async fn shorten_histories(context: &Context, usage: &Usage) {
    if !is_above(usage, SHORT) {
        return;
    }
    for left in LEFT {
        for realm in context.realms.registry.all() {
            if realm.readiness() != Readiness::Ready {
                continue;
            }
            let store = realm.publisher.store();
            let shortened = async {
                let users = store.users().await?;
                store.shorten_histories(&users, left).await
            };
            if let Err(error) = shortened.await {
                tracing::debug!(namespace = realm.namespace, %error, "failed to shorten histories");
            }
        }
        context.runtime.metrics.histories_shortened.inc();
        tracing::warn!(left, "histories shortened, because the memory of Redis is almost full");
        let now = context.realms.registry.store().usage().await;
        if !now.is_ok_and(|now| is_above(&now, ENOUGH)) {
            return;
        }
    }
}

fn is_above(usage: &Usage, part: f64) -> bool {
    usage.memory_ratio().is_some_and(|ratio| ratio >= part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_whose_memory_fills_is_checked_often_and_one_without_a_limit_is_not() {
        let minute = Duration::from_mins(1);
        let of = |memory| Usage { memory, memory_limit: Some(100), ..Usage::default() };
        assert_eq!(pause(&of(74), minute), minute);
        assert_eq!(pause(&of(75), minute), INTERVAL);
        let unlimited = Usage { memory: 1 << 40, ..Usage::default() };
        assert_eq!(pause(&unlimited, minute), minute);
        assert!(is_above(&of(90), SHORT) && !is_above(&of(89), SHORT));
    }
}
