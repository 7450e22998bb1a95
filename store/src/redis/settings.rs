//! Checks the settings of Redis that matter for accepting a code only once, and logs what has
//! changed.
//!
//! The checked nodes ensure that no used code is accepted again, whatever the settings are. The
//! settings decide how much is lost with a restart or failover, and whether two masters can decide
//! at the same time, which no check of nodes can detect.

use std::collections::HashMap;
use std::time::Duration;

use super::{BATCH_TIMEOUT, RedisStore};
use crate::StoreError;
use crate::connection::{Node, Operation};

/// A setting that matters for accepting a code only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Setting {
    /// What Redis evicts if its memory is full.
    MaxmemoryPolicy,
    /// When writes are flushed to disk.
    Appendfsync,
    /// How many replicas a master must have to accept writes.
    MinReplicasToWrite,
}

/// Whether a setting is strong enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// This login may not read it.
    Unknown,
    /// It is strong enough.
    Enough,
    /// It is weaker than it should be.
    Weak,
}

impl Setting {
    /// All settings.
    pub const ALL: [Self; 3] = [Self::MaxmemoryPolicy, Self::Appendfsync, Self::MinReplicasToWrite];

    /// Returns the name in Redis.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MaxmemoryPolicy => "maxmemory-policy",
            Self::Appendfsync => "appendfsync",
            Self::MinReplicasToWrite => "min-replicas-to-write",
        }
    }

    /// Returns the name in `/readyz?verbose`.
    #[must_use]
    pub const fn check(self) -> &'static str {
        match self {
            Self::MaxmemoryPolicy => "redis maxmemory-policy",
            Self::Appendfsync => "redis appendfsync",
            Self::MinReplicasToWrite => "redis min-replicas-to-write",
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::MaxmemoryPolicy => {
                "maxmemory-policy is not noeviction: Redis evicts used codes and users if its memory is full"
            }
            Self::Appendfsync => {
                "appendonly is not yes or appendfsync not always: a restart of Redis loses the last accepted codes, and \
                 authenticator codes are rejected for a minute"
            }
            Self::MinReplicasToWrite => {
                "min-replicas-to-write is 0 although there are replicas: a master that is cut off from them continues to \
                 decide beside its successor, and a code can be accepted by both"
            }
        }
    }
}

/// Every setting with its strength: the weakest of all masters.
pub type Strengths = [(Setting, Strength); 3];

impl RedisStore {
    /// Reads the settings of every master. Managed Redis often rejects `CONFIG`; then only `INFO`
    /// is used.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn settings(&self) -> Result<Strengths, StoreError> {
        let servers = self.connection.servers(BATCH_TIMEOUT).await?;
        let expects_replicas = self.connection.has_sentinels() || !servers.replicas.is_empty();
        let mut worst: HashMap<Setting, Strength> = HashMap::new();
        for master in &servers.masters {
            let information = self.information(master).await?;
            let fsync = self.appendfsync(master).await?;
            for (setting, found) in evaluate(&information, fsync.as_deref(), expects_replicas) {
                let known = worst.entry(setting).or_insert(found);
                *known = weaker(*known, found);
            }
        }
        Ok(Setting::ALL
            .map(|setting| (setting, worst.get(&setting).copied().unwrap_or(Strength::Unknown))))
    }

    async fn information(&self, node: &Node) -> Result<String, StoreError> {
        let mut pipeline = redis::pipe();
        for section in ["memory", "persistence", "replication"] {
            pipeline.cmd("INFO").arg(section);
        }
        let sections: Vec<String> =
            self.connection.run_on(node, BATCH_TIMEOUT, Operation::Pipeline(&pipeline)).await?;
        Ok(sections.join("\n"))
    }

    /// Reads `appendfsync`. Returns nothing if this login may not read it. Then it is not read
    /// again, because Redis logs each rejected command.
    async fn appendfsync(&self, node: &Node) -> Result<Option<String>, StoreError> {
        if self.refused.get().is_some() {
            return Ok(None);
        }
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("appendfsync");
        match self
            .connection
            .run_on::<Vec<String>>(node, BATCH_TIMEOUT, Operation::Command(&command))
            .await
        {
            Ok(pair) => Ok(pair.into_iter().nth(1)),
            Err(StoreError::Unavailable(error)) if error.kind_is_a_refusal() => {
                let _ = self.refused.set(());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether Redis rejected a command, because it is not permitted, renamed or unknown.
trait Refused {
    fn kind_is_a_refusal(&self) -> bool;
}

impl Refused for redis::RedisError {
    fn kind_is_a_refusal(&self) -> bool {
        use redis::{ErrorKind, ServerErrorKind};
        matches!(
            self.kind(),
            ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError)
                | ErrorKind::Extension
        )
    }
}

const fn weaker(one: Strength, other: Strength) -> Strength {
    match (one, other) {
        (Strength::Weak, _) | (_, Strength::Weak) => Strength::Weak,
        (Strength::Unknown, _) | (_, Strength::Unknown) => Strength::Unknown,
        (Strength::Enough, Strength::Enough) => Strength::Enough,
    }
}

/// Evaluates the settings of one master.
fn evaluate(information: &str, appendfsync: Option<&str>, expects_replicas: bool) -> Strengths {
    let field = |name: &str| {
        information.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
    };
    let known = |good: bool| if good { Strength::Enough } else { Strength::Weak };
    let policy =
        field("maxmemory_policy").map_or(Strength::Unknown, |policy| known(policy == "noeviction"));
    let fsync = match (field("aof_enabled"), appendfsync) {
        (Some("0"), _) => Strength::Weak,
        (Some(_), Some(fsync)) => known(fsync == "always"),
        _ => Strength::Unknown,
    };
    let has_replicas = field("connected_slaves").is_some_and(|count| count != "0");
    // Redis shows the number of usable replicas only if `min-replicas-to-write` is set.
    let demands = field("min_slaves_good_slaves").is_some();
    let replicas = known(demands || !(has_replicas || expects_replicas));
    [
        (Setting::MaxmemoryPolicy, policy),
        (Setting::Appendfsync, fsync),
        (Setting::MinReplicasToWrite, replicas),
    ]
}

/// Interval between two checks of the settings, which change when an administrator changes them or
/// another node becomes the master.
const CHECK_INTERVAL: Duration = Duration::from_mins(1);
/// Interval until the next check if Redis did not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Checks the settings again and again, and logs what has changed.
#[derive(Debug, Default)]
pub struct SettingsWatch {
    last: HashMap<Setting, Strength>,
}

impl SettingsWatch {
    /// Names of the checks that `/readyz?verbose` shows. None of them affects readiness.
    #[must_use]
    pub fn check_names() -> [&'static str; 3] {
        Setting::ALL.map(Setting::check)
    }

    /// Checks the settings once, logs changes and passes each result to `show`, with whether it is
    /// strong enough if that is known. Returns the time to wait until the next check. If Redis does
    /// not answer, another task logs it.
    pub async fn check(
        &mut self,
        store: &RedisStore,
        mut show: impl FnMut(Setting, Strength, Option<bool>),
    ) -> Duration {
        let Ok(found) = store.settings().await else { return RETRY_INTERVAL };
        self.log_changes(found);
        for (setting, strength) in found {
            let known = (strength != Strength::Unknown).then_some(strength == Strength::Enough);
            show(setting, strength, known);
        }
        CHECK_INTERVAL
    }

    /// Logs what has changed since the last check.
    fn log_changes(&mut self, found: Strengths) {
        for (setting, strength) in found {
            let before = self.last.insert(setting, strength);
            match strength {
                Strength::Weak if before != Some(Strength::Weak) => {
                    tracing::warn!(setting = setting.name(), "Redis: {}", setting.advice());
                }
                Strength::Enough if before == Some(Strength::Weak) => {
                    tracing::info!(
                        setting = setting.name(),
                        "Redis: the setting is now strong enough"
                    );
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strengths(
        information: &str,
        appendfsync: Option<&str>,
        expects_replicas: bool,
    ) -> [Strength; 3] {
        evaluate(information, appendfsync, expects_replicas).map(|(_, strength)| strength)
    }

    #[test]
    fn settings_are_evaluated_and_unknown_if_redis_does_not_show_them() {
        use Strength::{Enough, Unknown, Weak};
        let good = "maxmemory_policy:noeviction\r\naof_enabled:1\r\nconnected_slaves:1\r\nmin_slaves_good_slaves:1\r\n";
        assert_eq!(strengths(good, Some("always"), true), [Enough; 3]);
        assert_eq!(strengths(good, Some("everysec"), true), [Enough, Weak, Enough]);
        assert_eq!(strengths(good, None, true), [Enough, Unknown, Enough]);
        let weak = "maxmemory_policy:allkeys-lru\r\naof_enabled:0\r\nconnected_slaves:2\r\n";
        assert_eq!(strengths(weak, Some("always"), false), [Weak; 3]);
        let alone = "connected_slaves:0\r\n";
        assert_eq!(strengths(alone, Some("always"), false), [Unknown, Unknown, Enough]);
        // With Sentinels, replicas are expected even if none is attached.
        assert_eq!(strengths(alone, None, true)[2], Weak);
    }
}
