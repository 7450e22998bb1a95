//! Shows sidecars that an operator works: it writes a key on each master every few seconds, whose
//! remaining lifetime tells its age by the clock of Redis alone.

use std::time::Duration;

use super::{Nodes, OPERATION_TIMEOUT, RedisStore};
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

    /// Reads the age of the key on the master that has the realm.
    pub(crate) async fn heartbeat_age(&self) -> Result<Option<Duration>, StoreError> {
        let meta = self.names.realm_meta();
        let beside = self.connection.tag_beside(&meta, OPERATION_TIMEOUT).await?;
        let key = self.names.heartbeat(beside.as_ref().map_or(TAG, |(_, tag)| tag));
        let mut command = redis::cmd("PTTL");
        command.arg(&key);
        let left: i64 = match beside {
            Some((node, _)) => {
                let operation = Operation::Command(&command);
                self.connection.run_on(&node, OPERATION_TIMEOUT, operation).await?
            }
            None => self.query(&key, &command).await?,
        };
        // Negative if there is no key, or it has no expiry.
        let left = u64::try_from(left).ok();
        Ok(left.map(|left| Duration::from_millis(lifetime().saturating_sub(left))))
    }
}
