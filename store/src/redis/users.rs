//! Knows which users of a realm may have keys in Redis, and removes the keys of users.
//!
//! The names of the users are in a set of the realm. A user is added before the first key is
//! written and removed after the last one is deleted, so the set never lacks a user: a server that
//! loses its last writes loses the keys before it loses the name. In a cluster the set and the keys
//! may be on different masters; what that leaves behind is found by a search of all keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use twofactor_core::names::{Pseudonym, UserNames};

use super::publish::add;
use super::{BATCH_TIMEOUT, RedisStore};
use crate::StoreError;
use crate::connection::{Node, Operation};

/// Number of names that Redis is asked for at once. A larger number would delay other operations.
const NAMES: usize = 1000;

impl RedisStore {
    /// Lists every user who may have a key in Redis.
    pub(crate) async fn users(&self) -> Result<Vec<Pseudonym>, StoreError> {
        let key = self.names.realm_users();
        let mut users = BTreeSet::new();
        let mut cursor = 0_u64;
        loop {
            let mut command = redis::cmd("SSCAN");
            command.arg(&key).arg(cursor).arg("COUNT").arg(NAMES);
            let (next, names): (u64, Vec<Vec<u8>>) =
                self.connection.run(&key, BATCH_TIMEOUT, Operation::Command(&command)).await?;
            users.extend(names.into_iter().filter_map(|name| name.try_into().ok()).map(pseudonym));
            cursor = next;
            if cursor == 0 {
                return Ok(users.into_iter().collect());
            }
        }
    }

    /// Adds users to the set, because a key of theirs is about to be written. Returns the node that
    /// was written to, if the set lacked one.
    pub(super) async fn remember_users(
        &self,
        users: impl Iterator<Item = &Pseudonym>,
    ) -> Result<Option<Arc<Node>>, StoreError> {
        let owner = self.connection.owner(&self.names.realm_users(), BATCH_TIMEOUT).await?;
        Ok((self.change_users("SADD", users).await? > 0).then_some(owner))
    }

    /// Runs `SADD` or `SREM` on the set. Returns how many users were added or removed.
    async fn change_users(
        &self,
        name: &str,
        users: impl Iterator<Item = &Pseudonym>,
    ) -> Result<u64, StoreError> {
        let key = self.names.realm_users();
        let users: Vec<&[u8]> = users.map(|user| user.as_bytes().as_slice()).collect();
        let mut changed = 0;
        for part in users.chunks(NAMES) {
            let mut command = redis::cmd(name);
            command.arg(&key).arg(part);
            changed += self
                .connection
                .run::<u64>(&key, BATCH_TIMEOUT, Operation::Command(&command))
                .await?;
        }
        Ok(changed)
    }

    /// Returns whether the set is empty and none of these users has a state.
    pub(crate) async fn has_no_state_of(&self, users: &[Pseudonym]) -> Result<bool, StoreError> {
        let key = self.names.realm_users();
        if self.query::<u64>(&key, redis::cmd("SCARD").arg(&key)).await? > 0 {
            return Ok(false);
        }
        for (node, positions) in self.parts(users.iter()).await? {
            let mut pipeline = redis::pipe();
            for position in positions {
                pipeline.exists(self.names.user(&users[position]).state);
            }
            if self.send::<Vec<bool>>(&node, &pipeline).await?.contains(&true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) async fn remove(&self, users: &[Pseudonym]) -> Result<(), StoreError> {
        let mut written = Vec::new();
        for (node, positions) in self.parts(users.iter()).await? {
            let mut pipeline = redis::pipe();
            for position in positions {
                let UserNames { record, state, otp, history, log } =
                    self.names.user(&users[position]);
                pipeline.cmd("UNLINK").arg(&[record, state, otp, history, log]).ignore();
            }
            self.send::<()>(&node, &pipeline).await?;
            add(&mut written, node);
        }
        // A lost removal would revive a user. A lost change of the set revives only a name.
        self.number_writes(&written).await?;
        self.change_users("SREM", users.iter()).await.map(drop)
    }

    /// Deletes everything of this store's realm: its users, its record and its checked nodes. Only
    /// for a realm that was deleted. `node_keys` are further keys of the realm that a search has
    /// found.
    ///
    /// # Errors
    /// If Redis does not answer. A part may have been deleted.
    pub async fn remove_realm(&self, node_keys: &[String]) -> Result<(), StoreError> {
        self.numbers.forget();
        // The keys that make the realm complete are deleted first, because half a realm is a loss
        // and not an absence.
        let meta = self.names.realm_meta();
        let own = [
            meta.clone(),
            self.names.realm_record(),
            self.names.realm_deliveries(),
            self.names.realm_heartbeat(),
        ];
        self.query::<()>(&meta, redis::cmd("UNLINK").arg(&own)).await?;
        self.remove(&self.users().await?).await?;
        let tags = self.connection.tags(BATCH_TIMEOUT).await?;
        let mut keys = vec![self.names.write_number(self.names.realm().as_str())];
        for (_, tag) in &tags {
            keys.extend([self.names.node_fill_id(tag), self.names.write_number(tag)]);
        }
        for key in keys.iter().chain(node_keys) {
            self.query::<()>(key, redis::cmd("UNLINK").arg(key)).await?;
        }
        Ok(())
    }
}

fn pseudonym(bytes: [u8; 16]) -> Pseudonym {
    Pseudonym::from_bytes(bytes)
}
