//! Redis' own access control: a user for the services of each namespace, who can do what a sidecar does with the keys of one
//! realm, and nothing else.
//!
//! Enters: names, hashes of passwords and the names of a realm's keys. Leaves: users in the Redis process, where they are lost when
//! it ends; and URLs to log in with.

use redis::{ErrorKind, ServerErrorKind};
use twofactor_core::names::RealmNames;
use twofactor_core::secret::SecretText;

use crate::StoreError;
use crate::redis::RedisStore;

/// What the store sends of itself, and what its deciding scripts call. Logging in needs no permission.
const COMMANDS: [&str; 15] = [
    "+get",
    "+exists",
    "+hgetall",
    "+info",
    "+multi",
    "+exec",
    "+evalsha",
    "+script|load",
    // In scripts.
    "+time",
    "+hmget",
    "+hget",
    "+hset",
    "+hdel",
    "+pexpireat",
    "+xadd",
];

/// A user as Redis should know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclUser {
    /// The name to log in with.
    pub name: String,
    /// The SHA-256 of the password, in hexadecimal digits.
    pub password_hash: String,
    /// The realm whose keys they may use.
    pub realm: RealmNames,
}

/// Whether Redis can tell reading from writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separation {
    /// It can: records are only read (Redis 7).
    ReadAndWrite,
    /// It cannot: realms are kept apart, but within one, services could overwrite records.
    RealmsOnly,
}

/// Why Redis does not do it.
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// This login may not change users, or this Redis has none, or not such ones.
    #[error("Redis does not let this login use ACL")]
    NotPermitted,
    /// Redis does not know the difference between reading and writing.
    #[error("Redis does not know permissions to read only")]
    NoReadOnlyKeys,
    /// Redis does not answer, or answers something else.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RedisStore {
    /// The names of all users that Redis knows.
    ///
    /// # Errors
    /// When Redis does not answer, or this login may not ask.
    pub async fn acl_users(&self) -> Result<Vec<String>, AclError> {
        self.query(redis::cmd("ACL").arg("USERS")).await.map_err(error)
    }

    /// Makes a user what they should be, at once and whatever they were before. Connections that they have stay.
    ///
    /// # Errors
    /// When Redis does not answer, or this login may not do it; nothing has changed then.
    pub async fn acl_set(&self, user: &AclUser, separation: Separation) -> Result<(), AclError> {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg(&user.name).arg(rules(user, separation, self.selects_database()));
        self.query::<()>(&command).await.map_err(error)
    }

    /// Removes users and ends their connections.
    ///
    /// # Errors
    /// When Redis does not answer, or this login may not do it.
    pub async fn acl_delete(&self, names: &[String]) -> Result<(), AclError> {
        if names.is_empty() {
            return Ok(());
        }
        self.query::<i64>(redis::cmd("ACL").arg("DELUSER").arg(names)).await.map(drop).map_err(error)
    }
}

fn rules(user: &AclUser, separation: Separation, selects_database: bool) -> Vec<String> {
    let mut rules = ["reset", "on", "resetkeys", "resetchannels", "-@all"].map(str::to_owned).to_vec();
    rules.push(format!("#{}", user.password_hash));
    let read = if separation == Separation::ReadAndWrite { "%R~" } else { "~" };
    rules.extend(user.realm.keys_to_read().into_iter().map(|pattern| format!("{read}{pattern}")));
    rules.extend(user.realm.keys_to_write().into_iter().map(|pattern| format!("~{pattern}")));
    rules.extend(COMMANDS.map(str::to_owned));
    if selects_database {
        rules.push("+select".to_owned());
    }
    rules
}

fn error(error: StoreError) -> AclError {
    let StoreError::Unavailable(cause) = &error else { return error.into() };
    let detail = cause.detail().unwrap_or_default();
    match cause.kind() {
        ErrorKind::Server(ServerErrorKind::ResponseError) if detail.contains("ACL SETUSER modifier '%R~") => {
            AclError::NoReadOnlyKeys
        }
        ErrorKind::Server(ServerErrorKind::NoPerm) => AclError::NotPermitted,
        // Unknown, wholly or in part: something that is not Redis, or older than 6.2. Any other error may pass.
        ErrorKind::Server(ServerErrorKind::ResponseError)
            if detail.to_ascii_lowercase().contains("unknown") =>
        {
            AclError::NotPermitted
        }
        _ => error.into(),
    }
}

/// `url` with this login in place of the one that it has; everything else stays. Nothing when the URL has no place for a
/// login: that of a socket.
#[must_use]
pub fn with_login(url: &str, name: &str, password: &SecretText) -> Option<SecretText> {
    let (scheme, rest) = url.split_once("://")?;
    if !matches!(scheme, "redis" | "rediss" | "valkey" | "valkeys") {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (name, password) = (encoded(name), encoded(password.expose_secret()));
    Some(SecretText::new(format!("{scheme}://{name}:{password}@{host}{path}")))
}

/// Whether a URL has a login.
#[must_use]
pub fn has_login(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

fn encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_login_of_a_url_changes() {
        let password = SecretText::new("p:@/w".to_owned());
        for (url, expected) in [
            ("redis://host", "redis://a%3Ab:p%3A%40%2Fw@host"),
            ("redis://host:6380/2", "redis://a%3Ab:p%3A%40%2Fw@host:6380/2"),
            (
                "rediss://:old@host/0?protocol=resp3#insecure",
                "rediss://a%3Ab:p%3A%40%2Fw@host/0?protocol=resp3#insecure",
            ),
            ("redis://user:o%40ld@[::1]:6379/", "redis://a%3Ab:p%3A%40%2Fw@[::1]:6379/"),
            ("redis://host/?x=a@b", "redis://a%3Ab:p%3A%40%2Fw@host/?x=a@b"),
        ] {
            let changed = with_login(url, "a:b", &password).unwrap();
            assert_eq!(changed.expose_secret(), expected);
            redis::IntoConnectionInfo::into_connection_info(changed.expose_secret()).unwrap();
        }
        for url in ["unix:///run/redis.sock", "redis+unix:///run/redis.sock?db=1", "host"] {
            assert_eq!(with_login(url, "a", &password), None, "{url}");
        }
    }

    #[test]
    fn a_login_is_seen() {
        assert!(has_login("redis://:p@host/0") && has_login("redis://u@host"));
        assert!(!has_login("redis://host/0?x=a@b") && !has_login("redis://host"));
    }

    #[test]
    fn nothing_is_allowed_that_is_not_said() {
        let realm = RealmNames::new(&"cluster".parse().unwrap(), &"a-realm".parse().unwrap());
        let user = AclUser { name: "n".to_owned(), password_hash: "ab".to_owned(), realm };
        let said = rules(&user, Separation::ReadAndWrite, false);
        assert_eq!(said[..6], ["reset", "on", "resetkeys", "resetchannels", "-@all", "#ab"]);
        assert!(said.iter().all(|rule| !rule.contains('*') && rule != "+select"), "{said:?}");
        assert_eq!(said.iter().filter(|rule| rule.starts_with("%R~")).count(), 3);
        assert!(rules(&user, Separation::ReadAndWrite, true).contains(&"+select".to_owned()));
        assert!(!rules(&user, Separation::RealmsOnly, false).iter().any(|rule| rule.starts_with('%')));
    }
}
