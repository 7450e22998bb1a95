//! Reads and writes the records of users and of the realm in Redis.

use std::sync::Arc;

use redis::Pipeline;
use twofactor_core::names::{Pseudonym, UserNames};
use twofactor_core::seal::Revision;

use super::scripts::{self, Script, ScriptCall};
use super::{Answer, BATCH, BATCH_TIMEOUT, RedisStore, clock_off, read};
use crate::connection::{Node, Operation};
use crate::{Publication, Published, StoreError};

/// The code of Redis' errors about a key of another type.
pub(super) const WRONG_TYPE: &str = "WRONGTYPE";

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

    /// [`RedisStore::send`] for keys that may be of another type, because sidecars can write them.
    /// The reply of a command about such a key is nothing.
    pub(super) async fn send_to_spoilt_keys(
        &self,
        node: &Node,
        pipeline: &mut Pipeline,
    ) -> Result<Vec<redis::Value>, StoreError> {
        match self.send(node, pipeline).await {
            Err(StoreError::Unavailable(error)) if is_of_wrong_types(&error) => {}
            result => return result,
        }
        let replies: Vec<redis::Value> = self.send(node, pipeline.ignore_errors()).await?;
        let of_any_type = |reply| match reply {
            redis::Value::ServerError(error) if error.code() == WRONG_TYPE => Ok(redis::Value::Nil),
            redis::Value::ServerError(error) => Err(StoreError::Unavailable(error.into())),
            reply => Ok(reply),
        };
        replies.into_iter().map(of_any_type).collect()
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
                pipeline.cmd("HMGET").arg(state).arg("revision").arg("since").arg("until");
                pipeline.arg("reset").get(record);
            }
            let replies = self.send_to_spoilt_keys(&node, &mut pipeline).await?;
            for (position, pair) in positions.into_iter().zip(replies.chunks_exact(2)) {
                all[position] = published(&pair[0], &pair[1]);
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
            let replies = self.send_to_spoilt_keys(&node, &mut pipeline).await?;
            for (position, disabled) in positions.into_iter().zip(replies) {
                all[position] = read(&disabled).unwrap_or_default();
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
                    asked_at: self.clock.now().millis(),
                    expected: publication
                        .expected
                        .map(|revision| revision.0.to_string())
                        .unwrap_or_default(),
                    revision: publication.revision.0.to_string(),
                    sealed: &publication.sealed,
                    fresh: publication.fresh,
                    revoke: publication.revoke,
                    is_disabled: publication.disabled,
                    reset: publication.reset.as_deref().unwrap_or_default(),
                }
            };
            let calls: Vec<_> = positions.iter().map(call).collect();
            let answers: Vec<Answer> = self.call_all(&node, &self.scripts.publish, &calls).await?;
            for (position, (word, number)) in positions.into_iter().zip(answers) {
                results[position] = match word.as_str() {
                    "published" => Ok(()),
                    "conflict" => Err(StoreError::Conflict),
                    "clock-off" => Err(clock_off(number)),
                    _ => Err(StoreError::Protocol),
                };
            }
            add(&mut written, node);
        }
        self.number_writes(&written).await?;
        Ok(results)
    }

    /// Calls a script on one node, many times at once.
    pub(super) async fn call_all<C: ScriptCall, T: redis::FromRedisValue>(
        &self,
        node: &Node,
        script: &Script,
        calls: &[C],
    ) -> Result<Vec<T>, StoreError> {
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
            answers.extend(self.send::<Vec<T>>(node, &pipeline).await?);
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

/// Whether every failed command of a pipeline was about a key of another type.
fn is_of_wrong_types(error: &redis::RedisError) -> bool {
    let errors = error.clone().into_server_errors().unwrap_or_default();
    !errors.is_empty() && errors.iter().all(|(_, error)| error.code() == WRONG_TYPE)
}

/// Parses what Redis holds of a user. The state is absent if the script that publishes would not
/// accept it either.
pub(super) fn published(state: &redis::Value, sealed: &redis::Value) -> Published {
    let fields: Vec<Option<Vec<u8>>> = read(state).unwrap_or_default();
    let mut fields = fields.into_iter().map(|field| String::from_utf8(field?).ok());
    let mut field = || fields.next().flatten();
    let (revision, since, until) = (field(), field(), field());
    let is_valid = [since, until].iter().all(|moment| moment.as_deref().is_some_and(is_moment));
    Published {
        revision: revision.filter(|_| is_valid).and_then(|text| revision_of(&text)),
        reset: field(),
        sealed: read(sealed).ok().flatten(),
    }
}

/// Parses a revision as publishers write it, and as the scripts parse it.
fn revision_of(text: &str) -> Option<Revision> {
    let is_revision = is_moment(text) && !text.starts_with('0');
    is_revision.then(|| text.parse().ok().map(Revision))?
}

/// Whether a text is a moment as the scripts write it, and as those of publishers parse it.
fn is_moment(text: &str) -> bool {
    text.len() <= 15 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Adds a node to those that were written to.
pub(super) fn add(written: &mut Vec<Arc<Node>>, node: Arc<Node>) {
    if !written.iter().any(|known| Arc::ptr_eq(known, &node)) {
        written.push(node);
    }
}
