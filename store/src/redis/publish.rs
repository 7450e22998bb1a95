//! Reads and writes the records of users and of the realm in Redis.

use std::sync::Arc;

use redis::Pipeline;
use twofactor_core::names::{Pseudonym, UserNames};
use twofactor_core::seal::Revision;

use super::scripts::{self, Script, ScriptCall};
use super::{Answer, BATCH, BATCH_TIMEOUT, RedisStore, read};
use crate::connection::{Node, Operation};
use crate::{Publication, Published, StoreError};

/// A pipeline to one node, with the positions of its users.
type Part = (Arc<Node>, Vec<usize>);

impl RedisStore {
    /// Splits users into pipelines of a reasonable length, each to one node.
    pub(super) async fn parts(
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

    pub(super) async fn send<T: redis::FromRedisValue>(
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
        let users = || batch.iter().map(|publication| &publication.pseudonym);
        let mut written: Vec<Arc<Node>> = self.remember_users(users()).await?.into_iter().collect();
        let names: Vec<UserNames> = users().map(|user| self.names.user(user)).collect();
        for (node, positions) in self.parts(users()).await? {
            let call = |position: &usize| {
                let (publication, names) = (&batch[*position], &names[*position]);
                scripts::Publish {
                    record_key: &names.record,
                    state_key: &names.state,
                    otp_key: &names.otp,
                    expected: publication
                        .expected
                        .map(|revision| revision.0.to_string())
                        .unwrap_or_default(),
                    revision: publication.revision.0.to_string(),
                    sealed: &publication.sealed,
                    fresh: publication.fresh,
                    revoke: publication.revoke,
                    reset: publication.reset.as_deref().unwrap_or_default(),
                }
            };
            let calls: Vec<_> = positions.iter().map(call).collect();
            let answers = self.call_all(&node, &self.scripts.publish, &calls).await?;
            for (position, (word, _)) in positions.into_iter().zip(answers) {
                results[position] = match word.as_str() {
                    "published" => Ok(()),
                    "conflict" => Err(StoreError::Conflict),
                    _ => Err(StoreError::Protocol),
                };
            }
            add(&mut written, node);
        }
        self.number_writes(&written).await?;
        Ok(results)
    }

    /// Calls a script on one node, many times at once.
    pub(super) async fn call_all<C: ScriptCall>(
        &self,
        node: &Node,
        script: &Script,
        calls: &[C],
    ) -> Result<Vec<Answer>, StoreError> {
        let mut answers = Vec::with_capacity(calls.len());
        for part in calls.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            // Every time, because a pipeline cannot be repeated if Redis does not know the script.
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text()).ignore();
            for call in part {
                pipeline
                    .cmd("EVALSHA")
                    .arg(script.hash())
                    .arg(C::KEYS.len())
                    .arg(call.keys())
                    .arg(call.arguments());
            }
            answers.extend(self.send::<Vec<Answer>>(node, &pipeline).await?);
        }
        Ok(answers)
    }

    pub(crate) async fn publish_realm(&self, sealed: &[u8]) -> Result<(), StoreError> {
        let record = self.names.realm_record();
        let owner = self.connection.owner(&record, BATCH_TIMEOUT).await?;
        self.query::<()>(&record, redis::cmd("SET").arg(&record).arg(sealed)).await?;
        self.number_writes(&[owner]).await
    }
}

/// Adds a node to those that were written to.
pub(super) fn add(written: &mut Vec<Arc<Node>>, node: Arc<Node>) {
    if !written.iter().any(|known| Arc::ptr_eq(known, &node)) {
        written.push(node);
    }
}
