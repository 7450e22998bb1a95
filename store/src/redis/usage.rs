//! Reads how much of its memory and of its clients Redis uses, how many keys it has evicted, and
//! how far its clock is from the local one.

use redis::Value;

use super::{BATCH_TIMEOUT, RedisStore, read};
use crate::StoreError;
use crate::connection::{Node, Operation};

/// What the masters of Redis use. Of several masters, each value is that of the one that is worst
/// off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory of the master that uses the largest part of its limit, in bytes.
    pub memory: u64,
    /// The limit of that master (`maxmemory`), in bytes. Absent if there is none.
    pub memory_limit: Option<u64>,
    /// Connections of the master with the most.
    pub clients: u64,
    /// The limit of that master (`maxclients`), if Redis shows it.
    pub clients_limit: Option<u64>,
    /// Keys that all masters together have evicted since they started.
    pub evicted_keys: u64,
    /// Redis' clock minus the local one in milliseconds, of the master with the largest difference.
    pub clock_difference: i64,
}

impl Usage {
    /// The used part of the memory, between 0 and 1. Absent if there is no limit.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no more than 52 bits")]
    pub fn memory_ratio(&self) -> Option<f64> {
        self.memory_limit.map(|limit| self.memory as f64 / limit as f64)
    }

    fn worst(self, other: Self) -> Self {
        let fuller = |usage: &Self| (usage.memory_ratio().unwrap_or_default(), usage.memory);
        let by_memory = if fuller(&other) > fuller(&self) { other } else { self };
        let by_clients = if other.clients > self.clients { other } else { self };
        let by_clock =
            if other.clock_difference.unsigned_abs() > self.clock_difference.unsigned_abs() {
                other
            } else {
                self
            };
        Self {
            memory: by_memory.memory,
            memory_limit: by_memory.memory_limit,
            clients: by_clients.clients,
            clients_limit: by_clients.clients_limit,
            evicted_keys: self.evicted_keys.saturating_add(other.evicted_keys),
            clock_difference: by_clock.clock_difference,
        }
    }
}

impl RedisStore {
    /// Reads what every master uses.
    ///
    /// # Errors
    /// If a master does not answer.
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        let mut worst: Option<Usage> = None;
        for master in self.connection.masters(BATCH_TIMEOUT).await? {
            let usage = self.usage_of(&master.node).await?;
            worst = Some(worst.map_or(usage, |worst| worst.worst(usage)));
        }
        worst.ok_or(StoreError::Protocol)
    }

    async fn usage_of(&self, node: &Node) -> Result<Usage, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME");
        for section in ["memory", "clients", "stats"] {
            pipeline.cmd("INFO").arg(section);
        }
        let before = self.clock.now();
        let answers: Vec<Value> =
            self.connection.run_on(node, BATCH_TIMEOUT, Operation::Pipeline(&pipeline)).await?;
        let after = self.clock.now();
        let [time, sections @ ..] = answers.as_slice() else { return Err(StoreError::Protocol) };
        let (seconds, micros): (u64, u64) = read(time)?;
        let sections: Vec<String> = sections.iter().map(read).collect::<Result<_, _>>()?;
        let redis = seconds.saturating_mul(1000).saturating_add(micros / 1000);
        let clock_difference = difference(redis, before.millis(), after.millis());
        Ok(Usage { clock_difference, ..parse(&sections.join("\n")) })
    }
}

/// Returns the smallest difference that explains that Redis showed `redis` between two moments of
/// the local clock.
fn difference(redis: u64, before: u64, after: u64) -> i64 {
    let nearest = redis.clamp(before.min(after), before.max(after));
    i64::try_from(redis).unwrap_or(i64::MAX).saturating_sub_unsigned(nearest)
}

/// Parses the sections of `INFO`.
pub(super) fn parse(information: &str) -> Usage {
    let number = |name: &str| -> Option<u64> {
        let lines = information.lines();
        let mut found = lines.filter_map(|line| line.trim_end().strip_prefix(name));
        found.find_map(|rest| rest.strip_prefix(':')?.parse().ok())
    };
    Usage {
        memory: number("used_memory").unwrap_or_default(),
        memory_limit: number("maxmemory").filter(|limit| *limit > 0),
        clients: number("connected_clients").unwrap_or_default(),
        clients_limit: number("maxclients").filter(|limit| *limit > 0),
        evicted_keys: number("evicted_keys").unwrap_or_default(),
        clock_difference: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFORMATION: &str = "# Memory\r\nused_memory:750\r\nused_memory_rss:9000\r\nmaxmemory:1000\r\n\
        # Clients\r\nconnected_clients:7\r\nmaxclients:10000\r\n# Stats\r\nevicted_keys:3\r\n";

    #[test]
    fn the_sections_of_info_are_read_and_no_limit_has_no_ratio() {
        let usage = parse(INFORMATION);
        assert_eq!((usage.memory, usage.memory_limit), (750, Some(1000)));
        assert_eq!((usage.clients, usage.clients_limit), (7, Some(10_000)));
        assert_eq!((usage.evicted_keys, usage.memory_ratio()), (3, Some(0.75)));
        let unlimited = parse("used_memory:750\r\nmaxmemory:0\r\n");
        assert_eq!((unlimited.memory_limit, unlimited.memory_ratio()), (None, None));
        assert_eq!(parse("nonsense"), Usage::default());
    }

    #[test]
    fn of_several_masters_each_value_is_that_of_the_one_that_is_worst_off() {
        let small = Usage { memory: 90, memory_limit: Some(100), ..parse(INFORMATION) };
        let busy = Usage { clients: 9, clock_difference: -9, ..parse(INFORMATION) };
        for worst in [small.worst(busy), busy.worst(small)] {
            assert_eq!((worst.memory, worst.memory_limit), (90, Some(100)));
            assert_eq!((worst.clients, worst.evicted_keys, worst.clock_difference), (9, 6, -9));
        }
    }

    #[test]
    fn a_slow_answer_is_no_difference_of_the_clocks() {
        assert_eq!(difference(1500, 1000, 2000), 0);
        assert_eq!(difference(2600, 1000, 2000), 600);
        assert_eq!(difference(400, 1000, 2000), -600);
        assert_eq!(difference(u64::MAX, 0, 0), i64::MAX);
    }
}
