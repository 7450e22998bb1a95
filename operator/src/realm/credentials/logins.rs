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

/// How well Redis keeps services apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Nobody knows yet: Redis has not answered.
    Unknown,
    /// Each service has the keys of its realm only, and only reads what it must not write.
    Isolated,
    /// As before, but services could overwrite the records of their own realm: Redis is older than
    /// version 7.
    RealmsOnly,
    /// Every service has the operator's own login.
    NotPermitted,
    /// Services have logins of their own, which the operator may not look after any more. They are
    /// not given the operator's.
    Withheld,
}

impl Isolation {
    /// What it is now, when it was `before`. Whoever had a login of its own is never given the
    /// operator's, which could use the keys of every realm, and would be known for good.
    #[must_use]
    pub const fn after(self, before: Self) -> Self {
        match (self, before) {
            (Self::NotPermitted, Self::Isolated | Self::RealmsOnly | Self::Withheld) => {
                Self::Withheld
            }
            (now, _) => now,
        }
    }

    /// Whether services have logins of their own; presumed while nobody knows.
    #[must_use]
    pub const fn has_logins(self) -> bool {
        !matches!(self, Self::NotPermitted)
    }
}

/// The users in Redis, as this process knows them.
#[derive(Debug)]
pub struct Access {
    store: RedisStore,
    installation: Installation,
    separation: Separation,
    /// The users that this process has set, and that were there ever since.
    applied: HashMap<String, AclUser>,
}

impl Access {
    /// Of the Redis of `store`.
    #[must_use]
    pub fn new(store: RedisStore, installation: Installation) -> Self {
        Self { store, installation, separation: Separation::ReadAndWrite, applied: HashMap::new() }
    }

    /// It may be another process, whose users may be another's.
    pub fn forget(&mut self) {
        self.applied.clear();
        self.separation = Separation::ReadAndWrite;
    }

    /// Makes Redis have the users `wanted` and, of realms that are ours to look after, no others.
    ///
    /// # Errors
    /// When Redis does not answer. Part of it may be done then.
    pub async fn apply(
        &mut self,
        wanted: &HashMap<String, AclUser>,
        is_ours: impl Fn(&RealmId) -> bool,
    ) -> Result<Isolation, AclError> {
        match self.try_apply(wanted, is_ours).await {
            Ok(()) if self.separation == Separation::RealmsOnly => Ok(Isolation::RealmsOnly),
            Ok(()) => Ok(Isolation::Isolated),
            Err(AclError::NotPermitted) => {
                self.applied.clear();
                Ok(Isolation::NotPermitted)
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
        let strangers: Vec<String> = known
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
        self.store.acl_delete(&strangers).await?;
        if !strangers.is_empty() {
            tracing::info!(
                logins = strangers.len(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_a_login_of_its_own_does_not_get_the_operators() {
        let now = Isolation::NotPermitted;
        assert!(!now.after(Isolation::Unknown).has_logins());
        for before in [Isolation::Isolated, Isolation::RealmsOnly, Isolation::Withheld] {
            assert!(now.after(before).has_logins());
        }
        assert_eq!(Isolation::Isolated.after(Isolation::Withheld), Isolation::Isolated);
    }
}
