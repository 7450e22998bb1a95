//! Loads the scripts that sidecars call into each master, because a sidecar's login may not load
//! any.

use std::sync::{Arc, LazyLock};

use super::scripts::{self, Script};
use super::{OPERATION_TIMEOUT, RedisStore};
use crate::StoreError;
use crate::connection::{Node, Operation};

static SCRIPTS: LazyLock<Vec<Script>> = LazyLock::new(scripts::of_sidecars);

impl RedisStore {
    /// Loads the scripts that a master lacks. It lacks all of them after a restart, because they
    /// are neither stored nor replicated.
    pub(super) async fn load_scripts<'n>(
        &self,
        masters: impl Iterator<Item = &'n Arc<Node>>,
    ) -> Result<(), StoreError> {
        let mut exist = redis::cmd("SCRIPT");
        exist.arg("EXISTS");
        for script in SCRIPTS.iter() {
            exist.arg(script.hash());
        }
        for master in masters {
            let operation = Operation::Command(&exist);
            let known: Vec<bool> =
                self.connection.run_on(master, OPERATION_TIMEOUT, operation).await?;
            let missing = SCRIPTS.iter().zip(known).filter(|(_, known)| !known);
            let mut pipeline = redis::pipe();
            for (script, _) in missing {
                pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text()).ignore();
            }
            if !pipeline.is_empty() {
                self.send::<()>(master, &pipeline).await?;
                tracing::debug!(scripts = pipeline.len(), "scripts of sidecars loaded into Redis");
            }
        }
        Ok(())
    }
}
