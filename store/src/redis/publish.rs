//! What the publisher writes, and looks for. Enters: sealed records, and users who are to be gone. Leaves: one outcome for each.

use std::collections::BTreeSet;

use twofactor_core::names::{Installation, Pseudonym, RealmId, RealmNames, UserNames};
use twofactor_core::seal::Revision;

use super::{Answer, BATCH, BATCH_TIMEOUT, RedisStore, read};
use crate::{Publication, Published, StoreError};

impl RedisStore {
    /// Every realm of an installation of which there is any key.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn realms(&self, installation: &Installation) -> Result<BTreeSet<RealmId>, StoreError> {
        let mut realms = BTreeSet::new();
        self.scan(&RealmNames::every_key_of(installation), |key| {
            realms.extend(RealmNames::realm_of(installation, key));
        })
        .await?;
        Ok(realms)
    }

    /// Leaves nothing of this store's realm: neither users nor the realm's own record and guards. Only for a realm that is gone.
    ///
    /// # Errors
    /// When Redis does not answer; part of it may be gone then.
    pub async fn remove_realm(&self) -> Result<(), StoreError> {
        // First what makes the realm complete: half a realm is a loss and not an absence.
        let own = [self.names.realm_meta(), self.names.realm_record(), self.names.realm_deliveries()];
        self.query::<()>(redis::cmd("UNLINK").arg(&own)).await?;
        self.remove(&self.users().await?).await
    }

    pub(crate) async fn published(&self, users: &[Pseudonym]) -> Result<Vec<Published>, StoreError> {
        let mut all = Vec::with_capacity(users.len());
        for batch in users.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for user in batch {
                let UserNames { record, state, .. } = self.names.user(user);
                pipeline.cmd("HMGET").arg(state).arg("revision").arg("reset").get(record);
            }
            let replies: Vec<redis::Value> = self.query_pipeline(&pipeline, BATCH_TIMEOUT).await?;
            for pair in replies.chunks_exact(2) {
                let (revision, reset): (Option<u64>, Option<String>) = read(&pair[0])?;
                all.push(Published { revision: revision.map(Revision), reset, sealed: read(&pair[1])? });
            }
        }
        Ok(all)
    }

    pub(crate) async fn disabled(&self, users: &[Pseudonym]) -> Result<Vec<bool>, StoreError> {
        let mut all = Vec::with_capacity(users.len());
        for batch in users.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for user in batch {
                pipeline.hexists(self.names.user(user).state, "disabled");
            }
            all.extend(self.query_pipeline::<Vec<bool>>(&pipeline, BATCH_TIMEOUT).await?);
        }
        Ok(all)
    }

    pub(crate) async fn publish(
        &self,
        batch: &[Publication],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut results = Vec::with_capacity(batch.len());
        for part in batch.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            // Every time, for a pipeline cannot be repeated when Redis does not know the script.
            pipeline.cmd("SCRIPT").arg("LOAD").arg(&self.scripts.publish_text).ignore();
            for publication in part {
                let UserNames { record, state, otp, .. } = self.names.user(&publication.pseudonym);
                pipeline
                    .cmd("EVALSHA")
                    .arg(self.scripts.publish.get_hash())
                    .arg(3)
                    .arg(&[record, state, otp]);
                pipeline
                    .arg(publication.expected.map(|revision| revision.0.to_string()).unwrap_or_default())
                    .arg(publication.revision.0)
                    .arg(publication.sealed.as_slice())
                    .arg(u8::from(publication.fresh))
                    .arg(u8::from(publication.revoke))
                    .arg(publication.reset.as_deref().unwrap_or_default());
            }
            let answers: Vec<Answer> = self.query_pipeline(&pipeline, BATCH_TIMEOUT).await?;
            results.extend(answers.into_iter().map(|(word, _)| match word.as_str() {
                "published" => Ok(()),
                "conflict" => Err(StoreError::Conflict),
                _ => Err(StoreError::Protocol),
            }));
        }
        Ok(results)
    }

    pub(crate) async fn publish_realm(&self, sealed: &[u8]) -> Result<(), StoreError> {
        self.query(redis::cmd("SET").arg(self.names.realm_record()).arg(sealed)).await
    }

    pub(crate) async fn users(&self) -> Result<Vec<Pseudonym>, StoreError> {
        let mut users = BTreeSet::new();
        self.scan(&self.names.every_user_key(), |key| users.extend(self.names.user_of(key))).await?;
        Ok(users.into_iter().collect())
    }

    async fn scan(&self, pattern: &str, mut found: impl FnMut(&str)) -> Result<(), StoreError> {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) = self.query(&scan).await?;
            for key in &keys {
                found(key);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    pub(crate) async fn remove(&self, users: &[Pseudonym]) -> Result<(), StoreError> {
        for batch in users.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for user in batch {
                let UserNames { record, state, otp, log } = self.names.user(user);
                pipeline.cmd("UNLINK").arg(&[record, state, otp, log]).ignore();
            }
            self.query_pipeline::<()>(&pipeline, BATCH_TIMEOUT).await?;
        }
        Ok(())
    }
}
