//! Claims the data of an installation for one operator, so that a copy of its cluster writes
//! nothing into the same Redis.

use twofactor_core::owner::OwnerMark;

use super::scripts::{self, ScriptCall};
use super::{OPERATION_TIMEOUT, RedisStore};
use crate::StoreError;
use crate::connection::Operation;

impl RedisStore {
    /// Reads the mark of the owner among the operators with this Lease (`NAMESPACE/NAME`).
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn owner(&self, lease: &str) -> Result<Option<String>, StoreError> {
        let key = self.names.owner(lease);
        self.query(&key, redis::cmd("GET").arg(&key)).await
    }

    /// Writes `mark`, unless an owner has a mark that `mark` does not continue and that is not
    /// `replaced`. Returns the mark of this other owner.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn claim(
        &self,
        lease: &str,
        mark: &OwnerMark,
        replaced: Option<&str>,
    ) -> Result<Option<String>, StoreError> {
        let key = self.names.owner(lease);
        let call = scripts::ClaimOwner {
            owner_key: &key,
            lineage: mark.lineage(),
            number: mark.number(),
            replaced: replaced.unwrap_or_default(),
        };
        let call = call.of(&self.scripts.claim_owner);
        let other: String =
            self.connection.run(&key, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
        Ok(Some(other).filter(|other| !other.is_empty()))
    }
}
