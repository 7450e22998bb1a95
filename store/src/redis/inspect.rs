//! Who the Redis nodes are, and what they know of realms. Enters: names of realms. Leaves: what has to be filled, and the
//! stamp that says that a realm is complete on nodes that were checked.

use twofactor_core::decision::Undecided;
use twofactor_core::names::{Pseudonym, RealmNames, UserNames};

use super::{Answer, BATCH, BATCH_TIMEOUT, Fields, OPERATION_TIMEOUT, RedisStore, read};
use crate::{Inspection, StoreError};

impl RedisStore {
    pub(crate) async fn inspect(&self) -> Result<Inspection, StoreError> {
        self.inspect_realms(std::slice::from_ref(&self.names)).await?.pop().ok_or(StoreError::Protocol)
    }

    /// [`crate::Store::inspect`] for several realms at once, in their order.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn inspect_realms(&self, realms: &[RealmNames]) -> Result<Vec<Inspection>, StoreError> {
        let mut node = redis::pipe();
        node.cmd("INFO").arg("server").cmd("INFO").arg("replication").cmd("DBSIZE");
        let (server, replication, keys): (String, String, u64) =
            self.query_pipeline(&node, BATCH_TIMEOUT).await?;
        let node = node_identity(&server, &replication)?;
        let guard = format!("guard:{node}");
        let mut inspections = Vec::with_capacity(realms.len());
        for part in realms.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for realm in part {
                pipeline.cmd("HMGET").arg(realm.realm_meta()).arg("complete").arg(&guard);
                pipeline.exists(realm.realm_record());
            }
            let answers: Vec<redis::Value> = self.query_pipeline(&pipeline, BATCH_TIMEOUT).await?;
            for pair in answers.chunks_exact(2) {
                let (complete, guard): (Option<String>, Option<String>) = read(&pair[0])?;
                // A realm that was stamped after it was flushed has no record of its own.
                let ready = complete.is_some() && guard.is_some() && read(&pair[1])?;
                inspections.push(Inspection {
                    node: node.clone(),
                    ready,
                    empty: keys == 0,
                    filling: String::new(),
                });
            }
        }
        Ok(inspections)
    }

    pub(crate) async fn begin_filling(&self, mark: &str) -> Result<(), StoreError> {
        self.query(redis::cmd("HSET").arg(self.names.realm_meta()).arg("filling").arg(mark)).await
    }

    pub(crate) async fn stamp(&self, inspection: &Inspection) -> Result<(), StoreError> {
        let mut call = self.scripts.stamp.prepare_invoke();
        call.key(self.names.realm_meta())
            .arg(&inspection.node)
            .arg(u8::from(inspection.empty))
            .arg(&inspection.filling);
        let (word, _): Answer =
            self.link.run(OPERATION_TIMEOUT, async |mut link| call.invoke_async(&mut link).await).await?;
        match word.as_str() {
            "stamped" => Ok(()),
            "another-node" => Err(Undecided::Unguarded.into()),
            "lost" => Err(Undecided::NoState.into()),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn confirm_absence(&self, user: &Pseudonym) -> Result<bool, StoreError> {
        let UserNames { record, state, .. } = self.names.user(user);
        let mut pipeline = redis::pipe();
        // In one transaction: a refill between two of these would make a loss look like an absence.
        pipeline.atomic().cmd("INFO").arg("server").cmd("INFO").arg("replication");
        pipeline.exists(&record).exists(&state).hgetall(self.names.realm_meta());
        let (server, replication, record, state, meta): (String, String, bool, bool, Fields) =
            self.query_pipeline(&pipeline, OPERATION_TIMEOUT).await?;
        if !meta.contains_key(&format!("guard:{}", node_identity(&server, &replication)?)) {
            return Err(Undecided::Unguarded.into());
        }
        // Half a user, or a realm that is being filled, is a loss and not an absence.
        if !meta.contains_key("complete") || record != state {
            return Err(Undecided::NoState.into());
        }
        Ok(!record)
    }
}

/// Who a node is: its process, and its reign as a master. The scripts compute the same.
fn node_identity(server: &str, replication: &str) -> Result<String, StoreError> {
    let field = |information: &str, name: &str| {
        information
            .lines()
            .find_map(|line| line.strip_prefix(name).map(str::to_owned))
            .ok_or(StoreError::Protocol)
    };
    Ok(format!("{}.{}", field(server, "run_id:")?, field(replication, "master_replid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_its_process_and_its_reign() {
        let identity =
            node_identity("# Server\r\nrun_id:ab12\r\n", "role:master\r\nmaster_replid:cd34\r\n").unwrap();
        assert_eq!(identity, "ab12.cd34");
    }
}
