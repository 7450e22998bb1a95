//! Stores records and decisions in Redis.
//!
//! A decision is one `EVALSHA`: the script reads, decides and writes, and nothing can come between.
//! The clock that counts is Redis' own. Its difference to the local clock is learned from a reply
//! that decides nothing and kept, so that the next request is right at once. The checked nodes are
//! kept in the same way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

mod busy;
mod checks;
mod decide;
#[cfg(test)]
mod fuzz;
mod heartbeat;
mod history;
mod load_scripts;
mod node_status;
mod numbers;
mod owner;
mod publish;
pub mod scripts;
mod search;
mod settings;
mod usage;
mod user_checks;
mod users;

use arc_swap::ArcSwap;
use redis::{FromRedisValue, Pipeline};
use twofactor_core::decision::Undecided;
use twofactor_core::names::{Pseudonym, RealmNames};
use twofactor_core::seal::BEGINNING_BYTES;
use twofactor_core::secret::SecretText;
use twofactor_core::time::UnixMillis;

pub use self::node_status::Nodes;
use self::numbers::WriteNumbers;
use self::scripts::{Script, ScriptCall, Source};
pub use self::search::FoundRealm;
pub use self::settings::{Setting, SettingsWatch, Strength, Strengths};
pub use self::usage::Usage;
use crate::clock::Clock;
use crate::connection::{Connection, Operation};
use crate::decisions::compare;
use crate::url::Target;
pub use crate::url::{
    ClientIdentity, RedisAccess, RedisAuthorityError, RedisIdentityError, RedisTargetError,
    RedisUrlError,
};
use crate::{RealmRead, RealmSnapshot, StoreError};

/// Timeout for one operation, retries included. A calling service gets its answer within a second.
pub(crate) const OPERATION_TIMEOUT: Duration = Duration::from_millis(700);
/// Timeout for an operation that also waits for replicas.
const ACKNOWLEDGED_TIMEOUT: Duration = Duration::from_millis(850);
/// Timeout for a publisher's operation on a batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of users in one pipeline: enough that the round trip does not matter, and few enough that
/// other operations are not delayed.
pub(crate) const BATCH: usize = 200;

/// Maximum length of a node's identity.
const LONGEST_IDENTITY: usize = 128;

/// A store in Redis; clones share one connection.
#[derive(Clone)]
pub struct RedisStore {
    pub(crate) connection: Arc<Connection>,
    names: RealmNames,
    clock: Clock,
    selects_database: bool,
    scripts: Arc<Scripts>,
    view: Arc<RealmView>,
    /// The numbers of this process' writes.
    numbers: Arc<WriteNumbers>,
    /// Set if Redis has rejected `CONFIG`.
    refused: Arc<OnceLock<()>>,
}

struct Scripts {
    verify: Script,
    issue: Script,
    record_delivery: Script,
    count_delivery: Script,
    publish: Script,
    check_user: Script,
    check_counts: Script,
    confirm_node: Script,
    complete_fill: Script,
    number_write: Script,
    confirm_number: Script,
    accept_nodes: Script,
    claim_owner: Script,
}

impl Scripts {
    fn new(source: Source) -> Self {
        Self {
            verify: scripts::Verify::script(source),
            issue: scripts::Issue::script(source),
            record_delivery: scripts::RecordDelivery::script(source),
            count_delivery: scripts::CountDelivery::script(source),
            publish: scripts::Publish::script(source),
            check_user: scripts::CheckUser::script(source),
            check_counts: scripts::CheckCounts::script(source),
            confirm_node: scripts::ConfirmNode::script(source),
            complete_fill: scripts::CompleteFill::script(source),
            number_write: scripts::NumberWrite::script(source),
            confirm_number: scripts::ConfirmNumber::script(source),
            accept_nodes: scripts::AcceptNodes::script(source),
            claim_owner: scripts::ClaimOwner::script(source),
        }
    }
}

/// What this process knows about a realm's Redis from earlier replies.
#[derive(Default)]
struct RealmView {
    /// Difference of Redis' clock to the local one, in milliseconds.
    offset: AtomicI64,
    /// The checked nodes, as the scripts read them: `node=since`, separated by spaces.
    checked_nodes: ArcSwap<String>,
    /// Number of replicas that must acknowledge an accepted code.
    replicas: AtomicU8,
    /// Until when histories are not written, because the login may not use their keys, in
    /// milliseconds.
    without_history_until: AtomicU64,
}

/// Reply of a publisher's script: a word and a number.
type Answer = (String, i64);
/// The fields of a realm's `meta`. What is no text is replaced, because in Redis 6.2 sidecars may
/// write anything.
struct Fields(HashMap<String, String>);

impl FromRedisValue for Fields {
    fn from_redis_value(value: redis::Value) -> Result<Self, redis::ParsingError> {
        let fields = HashMap::<Vec<u8>, Vec<u8>>::from_redis_value(value)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self(fields.into_iter().map(|(name, value)| (text(name), text(value))).collect()))
    }
}

impl RedisStore {
    /// Checks that this is a URL of Redis, without connecting.
    ///
    /// # Errors
    /// If it is not one.
    pub fn check_url(url: &str) -> Result<(), RedisUrlError> {
        match RedisAccess::by_url(SecretText::new(url.to_owned())).check() {
            Err(RedisTargetError::Url(error)) => Err(error),
            Ok(()) | Err(RedisTargetError::Authority(_) | RedisTargetError::Identity(_)) => Ok(()),
        }
    }

    /// Prepares the connection to `url`; it is opened, and opened again, when it is needed. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// If `url` is not a Redis URL.
    pub fn new(url: &str, names: RealmNames, clock: Clock) -> Result<Self, RedisTargetError> {
        Self::with_access(&RedisAccess::by_url(SecretText::new(url.to_owned())), names, clock)
    }

    /// [`RedisStore::new`], with certificates.
    ///
    /// # Errors
    /// If a part of `access` is invalid.
    pub fn with_access(
        access: &RedisAccess,
        names: RealmNames,
        clock: Clock,
    ) -> Result<Self, RedisTargetError> {
        let target = Target::parse(access)?;
        let connection = Arc::new(Connection::new(&target).map_err(|_| RedisUrlError::NotAUrl)?);
        let selects_database = target.selects_database;
        let scripts = Arc::new(Scripts::new(Source::Own));
        let (view, numbers, refused) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Self { connection, names, clock, selects_database, scripts, view, numbers, refused })
    }

    /// Returns the store of a sidecar whose scripts the publisher loads.
    #[must_use]
    pub fn with_scripts_of_the_publisher(self) -> Self {
        Self { scripts: Arc::new(Scripts::new(Source::Publisher)), ..self }
    }

    /// Returns the store of another realm, over the same connection.
    #[must_use]
    pub fn for_realm(&self, names: RealmNames) -> Self {
        Self { names, view: Arc::default(), numbers: Arc::default(), ..self.clone() }
    }

    /// The names of this store's realm.
    #[must_use]
    pub const fn names(&self) -> &RealmNames {
        &self.names
    }

    /// Connects with other access from now on, in all stores that share the connection. Operations
    /// under way end with the previous one. It must be that of the same Redis.
    ///
    /// # Errors
    /// If a part of `access` is invalid.
    pub fn change_access(&self, access: &RedisAccess) -> Result<(), RedisTargetError> {
        let target = Target::parse(access)?;
        self.connection.change(&target).map_err(|_| RedisUrlError::NotAUrl)?;
        Ok(())
    }

    /// From now on, a code is accepted only after this number of replicas has acknowledged the
    /// decision.
    pub fn require_replicas(&self, replicas: u8) {
        self.view.replicas.store(replicas, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now().offset(self.view.offset.load(Ordering::Relaxed))
    }

    pub(crate) async fn record(&self, user: &Pseudonym) -> Result<Option<Vec<u8>>, StoreError> {
        let record = self.names.user(user).record;
        self.query(&record, redis::cmd("GET").arg(&record)).await
    }

    pub(crate) async fn realm(&self) -> Result<RealmSnapshot, StoreError> {
        let (record, meta) = (self.names.realm_record(), self.names.realm_meta());
        let mut pipeline = redis::pipe();
        pipeline.get(record).hgetall(&meta);
        let (sealed, meta): (Option<Vec<u8>>, Fields) =
            self.query_pipeline(&meta, &pipeline, OPERATION_TIMEOUT).await?;
        self.learn_checked_nodes(&meta);
        Ok(RealmSnapshot { sealed, complete: meta.0.contains_key("complete") })
    }

    /// Reads the realm's record if it does not begin with `beginning`, because most of the time it
    /// does, and records of some kilobytes for thousands of sidecars would be most of what Redis
    /// sends.
    pub(crate) async fn changed_realm(&self, beginning: &[u8]) -> Result<RealmRead, StoreError> {
        let (record, meta) = (self.names.realm_record(), self.names.realm_meta());
        let mut pipeline = redis::pipe();
        pipeline.cmd("GETRANGE").arg(&record).arg(0).arg(BEGINNING_BYTES - 1).hgetall(&meta);
        let answer: Result<(Vec<u8>, Fields), _> =
            self.query_pipeline(&meta, &pipeline, OPERATION_TIMEOUT).await;
        match answer {
            Ok((found, meta)) if found == beginning => {
                self.learn_checked_nodes(&meta);
                Ok(RealmRead::Unchanged)
            }
            // An operator of version 0.1 gives no permission to read a part of the record.
            Err(error) if !error.is_access_refused() => Err(error),
            _ => Ok(compare(self.realm().await?.sealed, Some(beginning))),
        }
    }

    fn learn_checked_nodes(&self, meta: &Fields) {
        let checked_nodes: Vec<String> =
            meta.0.iter().filter_map(|(field, since)| checked_node(field, since)).collect();
        self.view.checked_nodes.store(Arc::new(checked_nodes.join(" ")));
    }

    /// Returns whether Redis is a Cluster, whose masters can lose data without the others.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.connection.is_cluster()
    }

    /// Returns whether connections select another database than the first.
    pub(crate) const fn selects_database(&self) -> bool {
        self.selects_database
    }

    /// Sends a command to the node that has `key`.
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        key: &str,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        self.connection.run(key, OPERATION_TIMEOUT, Operation::Command(command)).await
    }

    async fn query_pipeline<T: FromRedisValue>(
        &self,
        key: &str,
        pipeline: &Pipeline,
        bound: Duration,
    ) -> Result<T, StoreError> {
        self.connection.run(key, bound, Operation::Pipeline(pipeline)).await
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RedisStore({})", self.names.prefix())
    }
}

/// Returns a checked node as the scripts read it, or nothing for other fields of a realm's `meta`,
/// which sidecars may write in Redis 6.2.
fn checked_node(field: &str, since: &str) -> Option<String> {
    let identity = field.strip_prefix("guard:")?;
    let is_identity = identity.len() <= LONGEST_IDENTITY
        && identity.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'.');
    (is_identity && moment(since).is_some()).then(|| format!("{identity}={since}"))
}

/// Parses a moment as the publisher writes it. The publisher repairs every other one, so sidecars
/// must not be stricter.
fn moment(text: &str) -> Option<u64> {
    let is_written_so = text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_written_so)
}

/// The error of a script that found that the clocks of Redis and of this process differ.
fn clock_off(now: i64) -> StoreError {
    let now = UnixMillis::new(u64::try_from(now).unwrap_or_default());
    Undecided::ClockOff { now }.into()
}

fn read<T: FromRedisValue>(value: &redis::Value) -> Result<T, StoreError> {
    T::from_redis_value(value.clone()).map_err(|_| StoreError::Protocol)
}
