//! Records which user owns each username, and which users a change affects. No I/O.
//!
//! Within a namespace the oldest user with a username owns it. The others wait, and take over in
//! the order of their age.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;
use twofactor_api::TwoFactorUser;
use twofactor_core::user::Username;

/// The user object that claims a username.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    // The order of the fields is the order of precedence.
    created: Timestamp,
    /// The object's UID.
    pub uid: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

/// A claim on a username.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsernameClaim {
    claim: Claimant,
    /// Absent if the username is invalid; then nothing is claimed.
    username: Option<Username>,
}

/// All users, by namespace.
#[derive(Debug, Default)]
pub struct Usernames(HashMap<String, Users>);

#[derive(Debug, Default)]
struct Users {
    names: HashMap<Arc<str>, UsernameClaim>,
    /// Those who claim each username, in the order of precedence.
    claims: HashMap<Username, Vec<Claimant>>,
    /// Objects that could never be read, so that their usernames are not known.
    unreadable: HashSet<Arc<str>>,
}

/// What the removal of a claim means for other users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The username whose owner has changed or that has none now.
    pub released: Option<Username>,
    /// Users that have to be reconciled.
    pub affected: Vec<String>,
}

impl UsernameClaim {
    /// Returns the claim of `user`, whose object has this name.
    pub fn of(user: &TwoFactorUser, name: Arc<str>) -> Self {
        let username = user.spec.username.clone().unwrap_or_else(|| user.name_any());
        Self {
            claim: Claimant {
                created: user.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
                uid: user.uid().unwrap_or_default().into(),
                name,
            },
            username: Username::try_from(username).ok(),
        }
    }
}

impl Usernames {
    /// Records a user. Returns the other users that have to be reconciled.
    pub fn apply(&mut self, namespace: &str, entry: UsernameClaim) -> Vec<String> {
        let users = self.0.entry(namespace.to_owned()).or_default();
        let name = entry.claim.name.clone();
        users.unreadable.remove(&name);
        if users.names.get(&name) == Some(&entry) {
            return Vec::new();
        }
        let mut affected = users.remove(&name).affected;
        if let Some(username) = &entry.username {
            // Almost every username has one claim, so no room is reserved for others.
            let claims =
                users.claims.entry(username.clone()).or_insert_with(|| Vec::with_capacity(1));
            let position = claims.partition_point(|other| *other < entry.claim);
            claims.insert(position, entry.claim.clone());
            // An older user takes the username from the previous owner.
            let others = claims.iter().map(|claim| &claim.name).filter(|other| **other != name);
            affected.extend(others.map(|other| other.as_ref().to_owned()));
        }
        users.names.insert(name, entry);
        affected.sort();
        affected.dedup();
        affected
    }

    /// Records a user that cannot be read. What was known of it stays.
    pub fn apply_unreadable(&mut self, namespace: &str, name: &str) {
        let users = self.0.entry(namespace.to_owned()).or_default();
        if !users.names.contains_key(name) {
            users.unreadable.insert(name.into());
        }
    }

    /// Removes a deleted user.
    pub fn remove(&mut self, namespace: &str, name: &str) -> Removal {
        let Some(users) = self.0.get_mut(namespace) else { return Removal::default() };
        users.unreadable.remove(name);
        let removal = users.remove(name);
        if users.names.is_empty() && users.unreadable.is_empty() {
            self.0.remove(namespace);
        }
        removal
    }

    /// The UID of a user's object.
    pub fn uid(&self, namespace: &str, name: &str) -> Option<&str> {
        Some(&self.0.get(namespace)?.names.get(name)?.claim.uid)
    }

    /// The username that an object claims, and whether it owns it.
    pub fn claim_of(&self, namespace: &str, name: &str) -> Option<(Username, bool)> {
        let users = self.0.get(namespace)?;
        let entry = users.names.get(name)?;
        let username = entry.username.clone()?;
        let owns =
            users.claims.get(&username).and_then(|claims| claims.first()) == Some(&entry.claim);
        Some((username, owns))
    }

    /// The owner of a username.
    pub fn owner(&self, namespace: &str, username: &Username) -> Option<&Claimant> {
        self.0.get(namespace)?.claims.get(username)?.first()
    }

    /// The usernames of a namespace with their owners, or nothing if a username is not known.
    pub fn owners(&self, namespace: &str) -> Option<Vec<(&Username, &Claimant)>> {
        let Some(users) = self.0.get(namespace) else { return Some(Vec::new()) };
        if !users.unreadable.is_empty() {
            return None;
        }
        Some(
            users
                .claims
                .iter()
                .filter_map(|(username, claims)| claims.first().map(|claim| (username, claim)))
                .collect(),
        )
    }

    /// Whether a namespace has users.
    pub fn has_users(&self, namespace: &str) -> bool {
        self.0.contains_key(namespace)
    }

    /// The namespaces that have users.
    pub fn namespaces(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The names of a namespace's users.
    pub fn names(&self, namespace: &str) -> Vec<String> {
        self.0
            .get(namespace)
            .map(|users| users.names.keys().map(|name| name.as_ref().to_owned()).collect())
            .unwrap_or_default()
    }
}

impl Users {
    fn remove(&mut self, name: &str) -> Removal {
        let Some(UsernameClaim { claim, username: Some(username) }) = self.names.remove(name)
        else {
            return Removal::default();
        };
        let Some(claims) = self.claims.get_mut(&username) else { return Removal::default() };
        let owned = claims.first() == Some(&claim);
        claims.retain(|other| *other != claim);
        let affected = claims.iter().map(|claim| claim.name.as_ref().to_owned()).collect();
        if claims.is_empty() {
            self.claims.remove(&username);
        }
        Removal { released: owned.then_some(username), affected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, created: i64, username: &str) -> UsernameClaim {
        let claim = Claimant {
            created: Timestamp::from_second(created).unwrap(),
            uid: format!("uid-{name}-{created}").into(),
            name: name.into(),
        };
        UsernameClaim { claim, username: username.parse().ok() }
    }

    fn owner(usernames: &Usernames, username: &str) -> Option<String> {
        usernames
            .owner("people", &username.parse().unwrap())
            .map(|claim| claim.name.as_ref().to_owned())
    }

    #[test]
    fn the_oldest_user_owns_a_name_whatever_the_order_in_which_they_are_seen() {
        let mut usernames = Usernames::default();
        assert!(usernames.apply("people", entry("b", 20, "alice")).is_empty());
        assert_eq!(usernames.apply("people", entry("a", 10, "alice")), ["b"]);
        assert_eq!(owner(&usernames, "alice").as_deref(), Some("a"));
        assert!(
            usernames.apply("people", entry("a", 10, "alice")).is_empty(),
            "nothing has changed"
        );
        assert!(usernames.owner("others", &"alice".parse().unwrap()).is_none());
    }

    #[test]
    fn of_two_that_are_equally_old_the_uid_decides() {
        let mut usernames = Usernames::default();
        usernames.apply("people", entry("b", 10, "alice"));
        usernames.apply("people", entry("a", 10, "alice"));
        assert_eq!(owner(&usernames, "alice").as_deref(), Some("a"));
    }

    #[test]
    fn the_next_user_owns_the_name_when_the_owner_is_deleted() {
        let mut usernames = Usernames::default();
        for (name, created) in [("a", 10), ("b", 20), ("c", 30)] {
            usernames.apply("people", entry(name, created, "alice"));
        }
        let removal = usernames.remove("people", "b");
        assert_eq!(
            (removal.released, removal.affected),
            (None, vec!["a".to_owned(), "c".to_owned()])
        );
        let removal = usernames.remove("people", "a");
        assert_eq!(removal.released, Some("alice".parse().unwrap()));
        assert_eq!(removal.affected, ["c"]);
        assert_eq!(owner(&usernames, "alice").as_deref(), Some("c"));
        usernames.remove("people", "c");
        assert!(!usernames.has_users("people"));
        assert_eq!(usernames.remove("people", "c"), Removal::default());
    }

    #[test]
    fn an_invalid_username_is_not_claimed() {
        let mut usernames = Usernames::default();
        usernames.apply("people", entry("a", 10, "a\nb"));
        assert_eq!(usernames.owners("people").unwrap(), []);
        assert!(usernames.has_users("people"));
    }

    #[test]
    fn an_unreadable_user_keeps_what_was_known_of_them_or_stops_the_sweep() {
        let mut usernames = Usernames::default();
        usernames.apply("people", entry("a", 10, "alice"));
        usernames.apply_unreadable("people", "a");
        assert_eq!(usernames.owners("people").unwrap().len(), 1);
        usernames.apply_unreadable("people", "b");
        assert!(usernames.owners("people").is_none());
        usernames.apply("people", entry("b", 20, "bob"));
        assert_eq!(usernames.owners("people").unwrap().len(), 2);
        usernames.apply_unreadable("people", "c");
        usernames.remove("people", "c");
        assert!(usernames.owners("people").is_some());
    }
}
