//! Manages users of Redis: the services of each namespace log in as a user who can do what a
//! sidecar does with the keys of one realm, and nothing else.
//!
//! These users exist only in the Redis process and are lost when it ends.

use std::collections::{BTreeSet, HashSet};

use redis::{Cmd, ErrorKind, FromRedisValue, ServerErrorKind};
use twofactor_core::names::RealmNames;

use crate::StoreError;
use crate::connection::{Node, Operation};
use crate::redis::{BATCH, OPERATION_TIMEOUT, RedisStore};
pub use crate::url::{has_login, tls_host, with_login};

/// Commands that the store sends, and those that its deciding scripts call. Logging in requires no
/// permission. There is no `EVAL`, `SCRIPT` or `FUNCTION`, because a service with a script of its
/// own could stop Redis for every realm.
const COMMANDS: [&str; 21] = [
    "+get",
    "+getrange",
    "+exists",
    "+pttl",
    "+hgetall",
    "+info",
    "+wait",
    "+multi",
    "+exec",
    "+evalsha",
    // Called by scripts.
    "+time",
    "+hmget",
    "+hget",
    "+hset",
    "+hdel",
    "+pexpireat",
    "+pexpire",
    "+rpush",
    "+lindex",
    "+lpop",
    // Called by scripts of version 0.1, which wrote histories to a stream.
    "+xadd",
];

/// Commands that find the node of a cluster that has a key.
const CLUSTER_COMMANDS: [&str; 2] = ["+cluster|slots", "+asking"];

/// A user of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclUser {
    /// The name to log in with.
    pub name: String,
    /// The SHA-256 of the password, in hexadecimal digits.
    pub password_hash: String,
    /// The realm whose keys the user may use.
    pub realm: RealmNames,
}

/// Whether Redis supports keys that can only be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separation {
    /// It does, so services can only read records (Redis 7).
    ReadAndWrite,
    /// It does not. Realms are separated, but within one, services could overwrite records.
    RealmsOnly,
}

/// Reason why the users of Redis could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// This login may not change users, or this Redis has no users, or not of this kind.
    #[error("Redis does not allow this login to use ACL")]
    NotPermitted,
    /// Redis does not support keys that can only be read.
    #[error("Redis does not support read-only permissions")]
    NoReadOnlyKeys,
    /// Redis does not answer, or sent an unexpected reply.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The names of users that the servers of a Redis know. Each server has its own users, so one
/// server of a cluster may know more than another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclNames {
    /// Names that at least one server knows.
    pub anywhere: BTreeSet<String>,
    /// Names that every server knows.
    pub everywhere: BTreeSet<String>,
}

impl RedisStore {
    /// Lists the names of all users that Redis knows.
    ///
    /// # Errors
    /// If Redis does not answer, or this login may not ask.
    pub async fn acl_users(&self) -> Result<AclNames, AclError> {
        let mut command = redis::cmd("ACL");
        command.arg("USERS");
        let mut names = AclNames::default();
        for (index, known) in
            self.on_every_server::<HashSet<String>>(&command).await?.into_iter().enumerate()
        {
            if index == 0 {
                names.everywhere = known.iter().cloned().collect();
            }
            names.everywhere.retain(|name| known.contains(name));
            names.anywhere.extend(known);
        }
        Ok(names)
    }

    /// Sets the password and the permissions of a user, at once and regardless of what they were
    /// before. The user's connections stay open.
    ///
    /// # Errors
    /// If Redis does not answer, or this login may not do it. On a single server, nothing has
    /// changed then.
    pub async fn acl_set(&self, user: &AclUser, separation: Separation) -> Result<(), AclError> {
        let mut command = redis::cmd("ACL");
        let rules = rules(user, separation, self.selects_database(), self.connection.is_cluster());
        command.arg("SETUSER").arg(&user.name).arg(rules);
        self.on_every_server::<()>(&command).await.map(drop)
    }

    /// [`RedisStore::acl_set`] for many users, in a few round trips.
    ///
    /// # Errors
    /// If Redis does not answer, or this login may not do it. A part may have been set.
    pub async fn acl_set_all(
        &self,
        users: &[&AclUser],
        separation: Separation,
    ) -> Result<(), AclError> {
        let is_cluster = self.connection.is_cluster();
        for part in users.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for user in part {
                let rules = rules(user, separation, self.selects_database(), is_cluster);
                pipeline.cmd("ACL").arg("SETUSER").arg(&user.name).arg(rules).ignore();
            }
            self.ask_every_server::<()>(Operation::Pipeline(&pipeline)).await?;
        }
        Ok(())
    }

    /// Removes users and closes their connections.
    ///
    /// # Errors
    /// If Redis does not answer, or this login may not do it.
    pub async fn acl_delete(&self, names: &[String]) -> Result<(), AclError> {
        if names.is_empty() {
            return Ok(());
        }
        self.on_every_server::<i64>(redis::cmd("ACL").arg("DELUSER").arg(names)).await.map(drop)
    }

    async fn on_every_server<T: FromRedisValue>(&self, command: &Cmd) -> Result<Vec<T>, AclError> {
        self.ask_every_server(Operation::Command(command)).await
    }

    /// Runs an operation on all masters and on the replicas that answer, because users are not
    /// replicated and a promoted replica has those that it knows. A replica that is unreachable is
    /// updated with the next check.
    async fn ask_every_server<T: FromRedisValue>(
        &self,
        operation: Operation<'_>,
    ) -> Result<Vec<T>, AclError> {
        let servers = self.connection.servers(OPERATION_TIMEOUT).await.map_err(error)?;
        let mut answers = Vec::with_capacity(servers.masters.len() + servers.replicas.len());
        let ask = async |node: &Node| {
            let answer = self.connection.run_on::<T>(node, OPERATION_TIMEOUT, operation).await;
            answer.map_err(error)
        };
        for master in &servers.masters {
            answers.push(ask(master).await?);
        }
        for replica in &servers.replicas {
            match ask(replica).await {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    tracing::debug!(%error, "failed to reach a replica about users");
                }
            }
        }
        Ok(answers)
    }
}

fn rules(
    user: &AclUser,
    separation: Separation,
    selects_database: bool,
    is_cluster: bool,
) -> Vec<String> {
    let mut rules =
        ["reset", "on", "resetkeys", "resetchannels", "-@all"].map(str::to_owned).to_vec();
    rules.push(format!("#{}", user.password_hash));
    let read = if separation == Separation::ReadAndWrite { "%R~" } else { "~" };
    rules.extend(user.realm.keys_to_read().into_iter().map(|pattern| format!("{read}{pattern}")));
    if separation == Separation::ReadAndWrite {
        let shared = user.realm.shared_keys_to_read().into_iter();
        rules.extend(shared.map(|pattern| format!("%R~{pattern}")));
    }
    rules.extend(user.realm.keys_to_write().into_iter().map(|pattern| format!("~{pattern}")));
    rules.extend(COMMANDS.map(str::to_owned));
    if selects_database {
        rules.push("+select".to_owned());
    }
    if is_cluster {
        rules.extend(CLUSTER_COMMANDS.map(str::to_owned));
    }
    rules
}

fn error(error: StoreError) -> AclError {
    let StoreError::Unavailable(cause) = &error else { return error.into() };
    let detail = cause.detail().unwrap_or_default();
    match cause.kind() {
        ErrorKind::Server(ServerErrorKind::ResponseError)
            if detail.contains("ACL SETUSER modifier '%R~") =>
        {
            AclError::NoReadOnlyKeys
        }
        ErrorKind::Server(ServerErrorKind::NoPerm) => AclError::NotPermitted,
        // The command or a part of it is unknown: this is not Redis, or older than 6.2. Any other
        // error may be temporary.
        ErrorKind::Server(ServerErrorKind::ResponseError)
            if detail.to_ascii_lowercase().contains("unknown") =>
        {
            AclError::NotPermitted
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_user_has_only_the_listed_permissions() {
        let realm = RealmNames::new(&"cluster".parse().unwrap(), &"a-realm".parse().unwrap());
        let user = AclUser { name: "n".to_owned(), password_hash: "ab".to_owned(), realm };
        let said = rules(&user, Separation::ReadAndWrite, false, false);
        assert_eq!(said[..6], ["reset", "on", "resetkeys", "resetchannels", "-@all", "#ab"]);
        assert!(said.iter().all(|rule| !rule.contains('*') && rule != "+select"), "{said:?}");
        assert_eq!(said.iter().filter(|rule| rule.starts_with("%R~")).count(), 6);
        assert!(
            rules(&user, Separation::ReadAndWrite, true, false).contains(&"+select".to_owned())
        );
        assert!(
            rules(&user, Separation::ReadAndWrite, false, true)
                .contains(&"+cluster|slots".to_owned())
        );
        let said = rules(&user, Separation::RealmsOnly, false, false);
        // No key that other realms use too.
        let is_of_realm = |rule: &String| rule.starts_with("~2fa1:cluster:a-realm:");
        assert_eq!(said.iter().filter(|rule| is_of_realm(rule)).count(), 10);
        assert!(!said.iter().any(|rule| rule.contains('~') && !is_of_realm(rule)), "{said:?}");
    }
}
