//! Makes the users of Redis match the logins that services should have, each limited to the keys of
//! its realm, as far as this Redis can.
//!
//! All users are compared each time, because Redis loses its users when it restarts and other
//! programs can change them.

use std::collections::{HashMap, HashSet};

use twofactor_core::names::{Installation, RealmId, RealmNames};
use twofactor_store::acl::{AclError, AclUser, Separation};
use twofactor_store::redis::RedisStore;

use crate::state::credentials::Isolation;

/// The users of Redis, as this process knows them.
#[derive(Debug)]
pub struct RedisLogins {
    store: RedisStore,
    installation: Installation,
    separation: Separation,
    /// Users that this process has set and that have existed since then.
    applied: HashMap<String, AclUser>,
    /// Realms whose logins were removed since they were taken last.
    removed_from: HashSet<RealmId>,
}

impl RedisLogins {
    pub fn new(store: RedisStore, installation: Installation) -> Self {
        Self {
            store,
            installation,
            separation: Separation::ReadAndWrite,
            applied: HashMap::new(),
            removed_from: HashSet::new(),
        }
    }

    /// Takes the realms of which [`RedisLogins::apply`] has removed logins.
    pub fn take_removed_from(&mut self) -> HashSet<RealmId> {
        std::mem::take(&mut self.removed_from)
    }

    /// Forgets the known users, because another Redis process may have other ones.
    pub fn forget(&mut self) {
        self.applied.clear();
        self.separation = Separation::ReadAndWrite;
    }

    /// Makes the users of Redis match `wanted`. Other users are removed if `is_ours` says that this
    /// operator watches their realm. After an error, part of it may be done.
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
        let not_wanted = known.anywhere.iter().filter(|name| !wanted.contains_key(*name));
        let (orphaned, realms): (Vec<String>, Vec<RealmId>) = not_wanted
            .filter_map(|name| {
                let realm = RealmNames::realm_of_login(&self.installation, name)?;
                is_ours(&realm).then(|| (name.clone(), realm))
            })
            .unzip();
        // Logins that are no longer allowed are removed first, because a withdrawal must not wait.
        self.store.acl_delete(&orphaned).await?;
        self.removed_from.extend(realms);
        if !orphaned.is_empty() {
            tracing::info!(
                logins = orphaned.len(),
                "removed logins to Redis of services whose namespace is not allowed"
            );
        }
        self.applied
            .retain(|name, user| wanted.get(name) == Some(user) && known.everywhere.contains(name));
        let missing: Vec<&AclUser> =
            wanted.values().filter(|user| !self.applied.contains_key(&user.name)).collect();
        if !missing.is_empty() {
            tracing::debug!(logins = missing.len(), "setting logins to Redis");
        }
        // The first one shows what this Redis can, the others follow together.
        let Some((first, others)) = missing.split_first() else { return Ok(()) };
        self.set(first).await?;
        self.store.acl_set_all(others, self.separation).await?;
        let set = missing.into_iter().map(|user| (user.name.clone(), user.clone()));
        self.applied.extend(set.collect::<Vec<_>>());
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
