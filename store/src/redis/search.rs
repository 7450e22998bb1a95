//! Searches all of Redis for keys of an installation, and adds the users that it finds to the sets
//! of their realms.
//!
//! This is the only use of `SCAN`. It finds what an earlier version has published, what another
//! installation of the same name has left behind, and what a cluster has kept of users whose names
//! were lost. It is slow on purpose, so that other operations do not notice it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use twofactor_core::names::{Installation, Pseudonym, RealmId, RealmNames};

use super::{BATCH_TIMEOUT, RedisStore, read};
use crate::StoreError;
use crate::connection::{Master, Operation};

/// Number of keys that Redis looks at in one step.
const KEYS: usize = 500;
/// Pause between two steps: a search looks at 50,000 keys a second at most.
const PAUSE: Duration = Duration::from_millis(10);

/// What a search has found of a realm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundRealm {
    /// Whether the set of users lacked a user.
    pub users_added: bool,
    /// Keys that belong neither to a user nor to the realm as a whole, but to a node of a cluster.
    pub node_keys: Vec<String>,
}

impl RedisStore {
    /// Searches all of Redis once, and returns the realms of `installation` that have any key.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn search(
        &self,
        installation: &Installation,
    ) -> Result<BTreeMap<RealmId, FoundRealm>, StoreError> {
        let pattern = RealmNames::every_key_of(installation);
        let mut found: BTreeMap<RealmId, FoundRealm> = BTreeMap::new();
        for Master { node, .. } in self.connection.masters(BATCH_TIMEOUT).await? {
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(KEYS);
                let (next, keys): (u64, Vec<String>) =
                    self.connection.run_on(&node, BATCH_TIMEOUT, Operation::Command(&scan)).await?;
                let users = sort(installation, keys, &mut found);
                if !users.is_empty() {
                    self.add_found(installation, users, &mut found).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(found)
    }

    /// Adds users to the sets of their realms.
    async fn add_found(
        &self,
        installation: &Installation,
        users: BTreeMap<RealmId, BTreeSet<Pseudonym>>,
        found: &mut BTreeMap<RealmId, FoundRealm>,
    ) -> Result<(), StoreError> {
        let (realms, users): (Vec<RealmId>, Vec<BTreeSet<Pseudonym>>) = users.into_iter().unzip();
        let sets: Vec<String> =
            realms.iter().map(|realm| RealmNames::new(installation, realm).realm_users()).collect();
        for (node, positions) in
            self.connection.grouped(sets.iter().map(String::as_str), BATCH_TIMEOUT).await?
        {
            let mut pipeline = redis::pipe();
            for position in &positions {
                pipeline.cmd("SADD").arg(&sets[*position]);
                for user in &users[*position] {
                    pipeline.arg(user.as_bytes().as_slice());
                }
            }
            let added: Vec<redis::Value> = self
                .connection
                .run_on(&node, BATCH_TIMEOUT, Operation::Pipeline(&pipeline))
                .await?;
            for (position, added) in positions.into_iter().zip(added) {
                let realm = found.entry(realms[position].clone()).or_default();
                realm.users_added |= read::<u64>(&added)? > 0;
            }
        }
        Ok(())
    }
}

/// Returns the users whose keys are among `keys`, by realm, and notes everything else in `found`.
fn sort(
    installation: &Installation,
    keys: Vec<String>,
    found: &mut BTreeMap<RealmId, FoundRealm>,
) -> BTreeMap<RealmId, BTreeSet<Pseudonym>> {
    let mut users: BTreeMap<RealmId, BTreeSet<Pseudonym>> = BTreeMap::new();
    for key in keys {
        let Some(realm) = RealmNames::realm_of(installation, &key) else { continue };
        let names = RealmNames::new(installation, &realm);
        let known = found.entry(realm.clone()).or_default();
        if let Some(user) = names.user_of(&key) {
            users.entry(realm).or_default().insert(user);
        } else if !names.is_of_the_realm(&key) {
            known.node_keys.push(key);
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_by_realm_into_users_and_keys_of_nodes() {
        let installation: Installation = "cluster".parse().unwrap();
        let realm: RealmId = "a-realm".parse().unwrap();
        let names = RealmNames::new(&installation, &realm);
        let user = Pseudonym::from_bytes([7; 16]);
        let keys = vec![
            names.realm_meta(),
            names.user(&user).state,
            names.user(&user).log,
            names.node_fill_id("00012"),
            "2fa1:another:a-realm:{a-realm}:meta".to_owned(),
        ];
        let mut found = BTreeMap::new();
        let users = sort(&installation, keys, &mut found);
        assert_eq!(users, [(realm.clone(), [user].into())].into());
        let node_keys = vec![names.node_fill_id("00012")];
        assert_eq!(found, [(realm, FoundRealm { users_added: false, node_keys })].into());
    }
}
