//! Ends a script that stops Redis: Redis answers `BUSY` to everything after a script has run for
//! `busy-reply-threshold`.

use super::{OPERATION_TIMEOUT, RedisStore};
use crate::StoreError;
use crate::connection::Operation;

impl StoreError {
    /// Returns whether Redis serves nothing, because a script runs for too long.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        // The error of a pipeline only quotes those of its commands.
        error.to_string().contains("BUSY")
    }
}

impl RedisStore {
    /// Ends the script that runs on each master, unless it has written something: then Redis ends
    /// it only together with itself. Returns how many were ended.
    ///
    /// # Errors
    /// If the masters cannot be found.
    pub async fn kill_scripts(&self) -> Result<usize, StoreError> {
        let mut kill = redis::cmd("SCRIPT");
        kill.arg("KILL");
        let mut killed = 0;
        for master in self.connection.masters(OPERATION_TIMEOUT).await? {
            let operation = Operation::Command(&kill);
            let answer =
                self.connection.run_on::<()>(&master.node, OPERATION_TIMEOUT, operation).await;
            killed += usize::from(answer.is_ok());
        }
        Ok(killed)
    }
}
