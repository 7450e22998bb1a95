//! Redis users for services. Enters: which namespaces are let in where. Leaves: a Redis that lets
//! exactly their services in, each to the keys of its realm; or the knowledge that this Redis
//! cannot.
//!
//! Everything is compared each time: Redis forgets its users when it ends, and others may add or
//! remove some.

use std::collections::HashMap;

use twofactor_core::names::{Installation, RealmId, RealmNames};
use twofactor_store::acl::{AclError, AclUser, Separation};
use twofactor_store::redis::RedisStore;

use crate::state::credentials::Isolation;

/// The users in Redis, as this process knows them.
#[derive(Debug)]
pub struct RedisLogins {
    store: RedisStore,
    installation: Installation,
    separation: Separation,
    /// The users that this process has set, and that were there ever since.
    applied: HashMap<String, AclUser>,
}

impl RedisLogins {
    /// Of the Redis of `store`.
    pub fn new(store: RedisStore, installation: Installation) -> Self {
        Self { store, installation, separation: Separation::ReadAndWrite, applied: HashMap::new() }
    }

    /// It may be another process, whose users may be another's.
    pub fn forget(&mut self) {
        self.applied.clear();
        self.separation = Separation::ReadAndWrite;
    }

    /// Makes Redis have the users `wanted` and, of realms that are ours to look after, no others.
    pub async fn apply(
        &mut self,
        wanted: &HashMap<String, AclUser>,
        is_ours: impl Fn(&RealmId) -> bool,
    ) -> Result<Isolation, AclError> {
        match self.try_apply(wanted, is_ours).await {
            Ok(()) if self.separation == Separation::RealmsOnly => Ok(Isolation::PerRealm),
            Ok(()) => Ok(Isolation::Full),
            Err(AclError::NotPermitted) => {
                self.applied.clear();
                Ok(Isolation::SharedLogin)
            }
            Err(error) => Err(error),
        }
    }

    async fn try_apply(
        &mut self,
        wanted: &HashMap<String, AclUser>,
        is_ours: impl Fn(&RealmId) -> bool,
    ) -> Result<(), AclError> {
        let known = self.store.acl_users().await?;
        let orphaned: Vec<String> = known
            .anywhere
            .iter()
            .filter(|name| !wanted.contains_key(*name))
            .filter(|name| {
                RealmNames::realm_of_login(&self.installation, name)
                    .is_some_and(|realm| is_ours(&realm))
            })
            .cloned()
            .collect();
        // Those who are not let in any more come first.
        self.store.acl_delete(&orphaned).await?;
        if !orphaned.is_empty() {
            tracing::info!(
                logins = orphaned.len(),
                "removed the logins to Redis of services that are not let in"
            );
        }
        self.applied
            .retain(|name, user| wanted.get(name) == Some(user) && known.everywhere.contains(name));
        let missing: Vec<&AclUser> =
            wanted.values().filter(|user| !self.applied.contains_key(&user.name)).collect();
        if !missing.is_empty() {
            tracing::debug!(logins = missing.len(), "setting logins to Redis");
        }
        for user in missing {
            self.set(user).await?;
            self.applied.insert(user.name.clone(), user.clone());
        }
        Ok(())
    }

    async fn set(&mut self, user: &AclUser) -> Result<(), AclError> {
        match self.store.acl_set(user, self.separation).await {
            Err(AclError::NoReadOnlyKeys) => {
                self.separation = Separation::RealmsOnly;
                self.store.acl_set(user, self.separation).await
            }
            result => result,
        }
    }
}
