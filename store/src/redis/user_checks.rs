//! Deletes what sidecars may write and no version of them writes: keys of another type or of an
//! unreasonable size, and states that cannot be parsed. The publisher then publishes the user
//! again.

use twofactor_core::audit::MAXIMUM_ENTRIES;
use twofactor_core::names::{Pseudonym, UserNames};
use twofactor_core::seal::{Revision, beginning_revision};

use super::scripts::{self, ScriptCall};
use super::{Answer, OPERATION_TIMEOUT, RedisStore};
use crate::connection::Operation;
use crate::{Found, StoreError, UserCheck};

/// Maximum number of entries of a history that sidecars write. They remove a bounded number at a
/// time.
const MOST_ENTRIES: u64 = MAXIMUM_ENTRIES as u64 + 100;
/// Maximum number of fields of a realm's counts of deliveries: more than sidecars write.
const MOST_COUNTS: u64 = 4096;

/// Reply of the script: a word, whether failures have disabled the user, the revision in the state,
/// and the beginning of the record.
pub(super) type Reply = (String, u8, u64, Vec<u8>);

impl RedisStore {
    pub(crate) async fn check_users(
        &self,
        users: &[Pseudonym],
    ) -> Result<Vec<UserCheck>, StoreError> {
        let fine = UserCheck { found: Found::Fine, disabled: false };
        let mut all = vec![fine; users.len()];
        let names: Vec<UserNames> = users.iter().map(|user| self.names.user(user)).collect();
        for (node, positions) in self.parts(users.iter()).await? {
            let call = |position: &usize| {
                let UserNames { record, state, otp, history, log } = &names[*position];
                scripts::CheckUser {
                    record_key: record,
                    state_key: state,
                    otp_key: otp,
                    history_key: history,
                    log_key: log,
                    most_entries: MOST_ENTRIES,
                }
            };
            let calls: Vec<_> = positions.iter().map(call).collect();
            let replies: Vec<Reply> =
                self.call_all(&node, &self.scripts.check_user, &calls).await?;
            for (position, reply) in positions.into_iter().zip(replies) {
                all[position] = evaluate(&reply);
            }
        }
        Ok(all)
    }

    pub(crate) async fn check_counts(&self) -> Result<bool, StoreError> {
        let deliveries = self.names.realm_deliveries();
        let call = scripts::CheckCounts { deliveries_key: &deliveries, most_fields: MOST_COUNTS };
        let call = call.of(&self.scripts.check_counts);
        let (word, _): Answer =
            self.connection.run(&deliveries, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
        Ok(word == "repaired")
    }
}

pub(super) fn evaluate((word, disabled, revision, beginning): &Reply) -> UserCheck {
    let of_record = beginning_revision(beginning);
    let found = match word.as_str() {
        "repaired" => Found::Repaired,
        // A user who was never published, or was removed, has neither.
        "lost" if of_record.is_none() => Found::Fine,
        "fine" if of_record == Some(Revision(*revision)) => Found::Fine,
        _ => Found::Incomplete,
    };
    UserCheck { found, disabled: *disabled == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_and_a_record_of_different_revisions_are_incomplete() {
        let record = |revision: u64| {
            let mut beginning = vec![1, 0, 0, 0, 1];
            beginning.extend(revision.to_be_bytes());
            beginning
        };
        let found = |word: &str, revision, beginning| {
            evaluate(&(word.to_owned(), 0, revision, beginning)).found
        };
        assert_eq!(found("fine", 7, record(7)), Found::Fine);
        assert_eq!(found("fine", 8, record(7)), Found::Incomplete);
        assert_eq!(found("fine", 7, vec![]), Found::Incomplete);
        assert_eq!(found("lost", 0, record(7)), Found::Incomplete);
        assert_eq!(found("lost", 0, vec![]), Found::Fine);
        assert_eq!(found("repaired", 7, record(7)), Found::Repaired);
    }
}
