//! Shows how much of its memory and of its clients Redis uses, and how far its clock is off. A
//! value that is not known is not shown.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{GaugeVec, IntCounter, IntGaugeVec};
use twofactor_server::metrics::Registrar;
use twofactor_store::redis::Usage;

use super::number::number;

/// The metrics of what Redis uses.
#[derive(Clone, Debug)]
pub struct RedisUsage {
    memory: IntGaugeVec,
    memory_limit: IntGaugeVec,
    memory_ratio: GaugeVec,
    clients: IntGaugeVec,
    clients_limit: IntGaugeVec,
    evicted: IntCounter,
    clock_difference: GaugeVec,
    /// The number of evicted keys that Redis has shown last.
    evicted_before: Arc<Mutex<Option<u64>>>,
}

impl RedisUsage {
    pub fn new(r: &mut Registrar) -> prometheus::Result<Self> {
        // Vectors without labels, because only those can show nothing.
        Ok(Self {
            memory: r.gauges(
                "twofactor_redis_memory_used_bytes",
                &[],
                "Memory that Redis uses. Of several masters, this and the next two are of the one that uses the largest part of its limit.",
            )?,
            memory_limit: r.gauges(
                "twofactor_redis_memory_limit_bytes",
                &[],
                "Limit of that memory (maxmemory); absent if there is none.",
            )?,
            memory_ratio: r.fractions(
                "twofactor_redis_memory_used_ratio",
                &[],
                "Used part of the limit, from 0 to 1; absent if there is none. At 1, no code is accepted and none is issued.",
            )?,
            clients: r.gauges(
                "twofactor_redis_clients",
                &[],
                "Connections to Redis, of the master with the most.",
            )?,
            clients_limit: r.gauges(
                "twofactor_redis_clients_limit",
                &[],
                "Limit of the connections to that master (maxclients); absent if Redis does not show it.",
            )?,
            evicted: r.counter(
                "twofactor_redis_evicted_keys_total",
                "Keys that Redis has evicted. Each can be a user or a used code.",
            )?,
            clock_difference: r.fractions(
                "twofactor_redis_clock_difference_seconds",
                &[],
                "Clock of Redis minus the clock of the operator, of the master with the largest difference.",
            )?,
            evicted_before: Arc::default(),
        })
    }

    /// Shows what Redis uses now.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a century have 42 bits")]
    pub fn show(&self, usage: &Usage) {
        set(&self.memory, Some(usage.memory));
        set(&self.memory_limit, usage.memory_limit);
        match usage.memory_ratio() {
            Some(ratio) => self.memory_ratio.with_label_values::<&str>(&[]).set(ratio),
            None => self.memory_ratio.reset(),
        }
        set(&self.clients, Some(usage.clients));
        set(&self.clients_limit, usage.clients_limit);
        let seconds = usage.clock_difference as f64 / 1000.0;
        self.clock_difference.with_label_values::<&str>(&[]).set(seconds);
        let mut before = self.evicted_before.lock().unwrap_or_else(PoisonError::into_inner);
        self.evicted.inc_by(newly_evicted(*before, usage.evicted_keys));
        *before = Some(usage.evicted_keys);
    }
}

fn set(gauge: &IntGaugeVec, value: Option<u64>) {
    match value {
        Some(value) => {
            gauge.with_label_values::<&str>(&[]).set(number(value));
        }
        None => gauge.reset(),
    }
}

/// Returns how many keys were evicted since the last check. Redis counts from 0 after a restart.
const fn newly_evicted(before: Option<u64>, now: u64) -> u64 {
    match before {
        Some(before) if before <= now => now - before,
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_limit_is_not_shown_and_a_restart_of_redis_counts_from_zero() {
        let mut registrar = Registrar::default();
        let metrics = RedisUsage::new(&mut registrar).unwrap();
        let registry = registrar.registry();
        let limited = Usage { memory: 50, memory_limit: Some(100), ..Usage::default() };
        metrics.show(&Usage { evicted_keys: 5, clock_difference: -1500, ..limited });
        let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text().contains("twofactor_redis_memory_used_ratio 0.5"), "{}", text());
        assert!(text().contains("twofactor_redis_clock_difference_seconds -1.5"), "{}", text());
        metrics.show(&Usage { memory_limit: None, evicted_keys: 2, ..limited });
        assert!(!text().contains("twofactor_redis_memory_used_ratio "), "{}", text());
        assert!(!text().contains("twofactor_redis_memory_limit_bytes "), "{}", text());
        assert!(text().contains("twofactor_redis_evicted_keys_total 7"), "{}", text());
    }
}
