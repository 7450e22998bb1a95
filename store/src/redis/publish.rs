//! Writes, lists and removes what a publisher maintains in Redis.

use std::collections::BTreeSet;
use std::sync::Arc;

use redis::Pipeline;
use twofactor_core::names::{Installation, Pseudonym, RealmId, RealmNames, UserNames};
use twofactor_core::seal::Revision;

use super::scripts::{self, ScriptCall};
use super::{Answer, BATCH, BATCH_TIMEOUT, RedisStore, read};
use crate::connection::{Node, Operation};
use crate::{Publication, Published, StoreError};

/// A pipeline to one node, with the positions of its users.
type Part = (Arc<Node>, Vec<usize>);

impl RedisStore {
    /// Lists every realm of an installation of which Redis holds any key.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn realms(
        &self,
        installation: &Installation,
    ) -> Result<BTreeSet<RealmId>, StoreError> {
        let mut realms = BTreeSet::new();
        self.scan(&RealmNames::every_key_of(installation), |key| {
            realms.extend(RealmNames::realm_of(installation, key));
        })
        .await?;
        Ok(realms)
    }

    /// Deletes everything of this store's realm: its users, its record and its checked nodes. Only
    /// for a realm that was deleted.
    ///
    /// # Errors
    /// If Redis does not answer. A part may have been deleted.
    pub async fn remove_realm(&self) -> Result<(), StoreError> {
        // The keys that make the realm complete are deleted first, because half a realm is a loss
        // and not an absence.
        let meta = self.names.realm_meta();
        let own = [meta.clone(), self.names.realm_record(), self.names.realm_deliveries()];
        self.query::<()>(&meta, redis::cmd("UNLINK").arg(&own)).await?;
        self.remove(&self.users().await?).await?;
        if self.connection.is_cluster() {
            let mut fill_ids = BTreeSet::new();
            let is_fill_id = |key: &str| self.names.user_of(key).is_none();
            self.scan(&self.names.every_user_key(), |key| {
                fill_ids.extend(is_fill_id(key).then(|| key.to_owned()));
            })
            .await?;
            for fill_id in fill_ids {
                self.query::<()>(&fill_id, redis::cmd("UNLINK").arg(&fill_id)).await?;
            }
        }
        Ok(())
    }

    /// Splits users into pipelines of a reasonable length, each to one node.
    async fn parts(
        &self,
        users: impl Iterator<Item = &Pseudonym>,
    ) -> Result<Vec<Part>, StoreError> {
        let states: Vec<String> = users.map(|user| self.names.user(user).state).collect();
        let groups =
            self.connection.grouped(states.iter().map(String::as_str), BATCH_TIMEOUT).await?;
        let parts = groups.iter().flat_map(|(node, positions)| {
            positions.chunks(BATCH).map(|part| (node.clone(), part.to_vec()))
        });
        Ok(parts.collect())
    }

    async fn send<T: redis::FromRedisValue>(
        &self,
        node: &Node,
        pipeline: &Pipeline,
    ) -> Result<T, StoreError> {
        self.connection.run_on(node, BATCH_TIMEOUT, Operation::Pipeline(pipeline)).await
    }

    pub(crate) async fn published(
        &self,
        users: &[Pseudonym],
    ) -> Result<Vec<Published>, StoreError> {
        let mut all = vec![Published { revision: None, reset: None, sealed: None }; users.len()];
        for (node, positions) in self.parts(users.iter()).await? {
            let mut pipeline = redis::pipe();
            for position in &positions {
                let UserNames { record, state, .. } = self.names.user(&users[*position]);
                pipeline.cmd("HMGET").arg(state).arg("revision").arg("reset").get(record);
            }
            let replies: Vec<redis::Value> = self.send(&node, &pipeline).await?;
            for (position, pair) in positions.into_iter().zip(replies.chunks_exact(2)) {
                let (revision, reset): (Option<u64>, Option<String>) = read(&pair[0])?;
                all[position] =
                    Published { revision: revision.map(Revision), reset, sealed: read(&pair[1])? };
            }
        }
        Ok(all)
    }

    pub(crate) async fn disabled(&self, users: &[Pseudonym]) -> Result<Vec<bool>, StoreError> {
        let mut all = vec![false; users.len()];
        for (node, positions) in self.parts(users.iter()).await? {
            let mut pipeline = redis::pipe();
            for position in &positions {
                pipeline.hexists(self.names.user(&users[*position]).state, "disabled");
            }
            let replies: Vec<bool> = self.send(&node, &pipeline).await?;
            for (position, disabled) in positions.into_iter().zip(replies) {
                all[position] = disabled;
            }
        }
        Ok(all)
    }

    pub(crate) async fn publish(
        &self,
        batch: &[Publication],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut results: Vec<Result<(), StoreError>> =
            batch.iter().map(|_| Err(StoreError::Protocol)).collect();
        for (node, positions) in
            self.parts(batch.iter().map(|publication| &publication.pseudonym)).await?
        {
            let mut pipeline = redis::pipe();
            // Every time, because a pipeline cannot be repeated if Redis does not know the script.
            pipeline.cmd("SCRIPT").arg("LOAD").arg(&self.scripts.publish_text).ignore();
            for position in &positions {
                let publication = &batch[*position];
                let UserNames { record, state, otp, .. } = self.names.user(&publication.pseudonym);
                let call = scripts::Publish {
                    record_key: &record,
                    state_key: &state,
                    otp_key: &otp,
                    expected: publication
                        .expected
                        .map(|revision| revision.0.to_string())
                        .unwrap_or_default(),
                    revision: publication.revision.0.to_string(),
                    sealed: &publication.sealed,
                    fresh: publication.fresh,
                    revoke: publication.revoke,
                    reset: publication.reset.as_deref().unwrap_or_default(),
                };
                pipeline
                    .cmd("EVALSHA")
                    .arg(self.scripts.publish.get_hash())
                    .arg(scripts::Publish::KEYS.len())
                    .arg(call.keys())
                    .arg(call.arguments());
            }
            let answers: Vec<Answer> = self.send(&node, &pipeline).await?;
            for (position, (word, _)) in positions.into_iter().zip(answers) {
                results[position] = match word.as_str() {
                    "published" => Ok(()),
                    "conflict" => Err(StoreError::Conflict),
                    _ => Err(StoreError::Protocol),
                };
            }
        }
        Ok(results)
    }

    pub(crate) async fn publish_realm(&self, sealed: &[u8]) -> Result<(), StoreError> {
        let record = self.names.realm_record();
        self.query(&record, redis::cmd("SET").arg(&record).arg(sealed)).await
    }

    pub(crate) async fn users(&self) -> Result<Vec<Pseudonym>, StoreError> {
        let mut users = BTreeSet::new();
        self.scan(&self.names.every_user_key(), |key| users.extend(self.names.user_of(key)))
            .await?;
        Ok(users.into_iter().collect())
    }

    /// Passes every key that matches a pattern, on every master, to `found`.
    async fn scan(&self, pattern: &str, mut found: impl FnMut(&str)) -> Result<(), StoreError> {
        for master in self.connection.servers(BATCH_TIMEOUT).await?.masters {
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
                let (next, keys): (u64, Vec<String>) = self
                    .connection
                    .run_on(&master, BATCH_TIMEOUT, Operation::Command(&scan))
                    .await?;
                for key in &keys {
                    found(key);
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn remove(&self, users: &[Pseudonym]) -> Result<(), StoreError> {
        for (node, positions) in self.parts(users.iter()).await? {
            let mut pipeline = redis::pipe();
            for position in positions {
                let UserNames { record, state, otp, history, log } =
                    self.names.user(&users[position]);
                pipeline.cmd("UNLINK").arg(&[record, state, otp, history, log]).ignore();
            }
            self.send::<()>(&node, &pipeline).await?;
        }
        Ok(())
    }
}
