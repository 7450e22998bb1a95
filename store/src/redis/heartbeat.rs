//! Shows sidecars that an operator works: it writes a key on each master every few seconds, whose
//! remaining lifetime tells its age by the clock of Redis alone.

use std::time::Duration;

use super::{BATCH_TIMEOUT, Nodes, OPERATION_TIMEOUT, RedisStore};
use crate::StoreError;
use crate::connection::Operation;

/// Lifetime of the key. An older one has expired.
const LIFETIME: Duration = Duration::from_hours(30 * 24);
/// The tag of the key if Redis is not a cluster.
const TAG: &str = "alive";

fn lifetime() -> u64 {
    u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX)
}

impl RedisStore {
    /// Writes the key on each master.
    ///
    /// # Errors
    /// If a master does not answer.
    pub async fn write_heartbeat(&self, nodes: &Nodes) -> Result<(), StoreError> {
        for found in &nodes.0 {
            let key = self.names.heartbeat(found.master.tag.as_deref().unwrap_or(TAG));
            let mut set = redis::cmd("SET");
            set.arg(key).arg(1).arg("PX").arg(lifetime());
            let operation = Operation::Command(&set);
            self.connection.run_on::<()>(&found.master.node, OPERATION_TIMEOUT, operation).await?;
        }
        Ok(())
    }

    /// Writes a key for each of `realms` whose services may not read the one of all realms.
    ///
    /// # Errors
    /// If a master does not answer.
    pub async fn write_realm_heartbeats(&self, realms: &[Self]) -> Result<(), StoreError> {
        let keys: Vec<String> = realms.iter().map(|realm| realm.names.realm_heartbeat()).collect();
        for (node, positions) in
            self.connection.grouped(keys.iter().map(String::as_str), BATCH_TIMEOUT).await?
        {
            let mut pipeline = redis::pipe();
            for position in positions {
                pipeline.cmd("SET").arg(&keys[position]).arg(1).arg("PX").arg(lifetime()).ignore();
            }
            let operation = Operation::Pipeline(&pipeline);
            self.connection.run_on::<()>(&node, BATCH_TIMEOUT, operation).await?;
        }
        Ok(())
    }

    /// Reads the age of the key on the master that has the realm, or of the realm's own key.
    pub(crate) async fn heartbeat_age(&self) -> Result<Option<Duration>, StoreError> {
        let meta = self.names.realm_meta();
        let beside = self.connection.tag_beside(&meta, OPERATION_TIMEOUT).await?;
        let key = self.names.heartbeat(beside.as_ref().map_or(TAG, |(_, tag)| tag));
        let mut command = redis::cmd("PTTL");
        command.arg(&key);
        let shared: Result<i64, StoreError> = match beside {
            Some((node, _)) => {
                let operation = Operation::Command(&command);
                self.connection.run_on(&node, OPERATION_TIMEOUT, operation).await
            }
            None => self.query(&key, &command).await,
        };
        let left = match shared {
            Err(error) if error.is_access_refused() => {
                let key = self.names.realm_heartbeat();
                self.query(&key, redis::cmd("PTTL").arg(&key)).await?
            }
            left => left?,
        };
        // Negative if there is no key, or it has no expiry.
        let left = u64::try_from(left).ok();
        Ok(left.map(|left| Duration::from_millis(lifetime().saturating_sub(left))))
    }
}
