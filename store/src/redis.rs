//! The store in Redis. Enters and leaves: as in [`crate::Store`].
//!
//! A decision is one `EVALSHA`: the script looks, decides and remembers, and nothing comes between. The clock
//! that counts is Redis'; the difference to the local one is learned from a refused request and kept, so that
//! the next one is right at once. The guards of checked nodes are kept in the same way.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::{Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, Script};
use twofactor_core::decision::{
    CLOCK_TOLERANCE, Factor, Issuance, Issue, THROTTLE, Undecided, Verdict, Verification,
};
use twofactor_core::names::{Installation, Pseudonym, RealmId, RealmNames, UserNames};
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;

use crate::clock::Clock;
use crate::link::Link;
use crate::{Inspection, Publication, Published, RealmSnapshot, StoreError};

/// How long one operation may take, retries included: a service behind us has its answer within a second.
const OPERATION_TIMEOUT: Duration = Duration::from_millis(700);
/// How long a publisher's operation on a batch may take.
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Users in one pipeline: enough to hide the round trip, few enough to leave room for others between.
const BATCH: usize = 200;

/// Why a URL gives no store. The URL, which may hold a password, is not part of the message.
#[derive(Debug, thiserror::Error)]
#[error("is not a Redis URL: write it like redis://user:password@host:6379/0, or rediss:// for TLS")]
pub struct RedisUrlError;

/// A store in Redis; clones share one connection.
#[derive(Clone)]
pub struct RedisStore {
    link: Arc<Link>,
    names: RealmNames,
    clock: Clock,
    selects_database: bool,
    scripts: Arc<Scripts>,
    learned: Arc<Learned>,
}

struct Scripts {
    verify: Script,
    issue: Script,
    publish: Script,
    publish_text: String,
    stamp: Script,
}

/// What a realm's decisions have taught.
#[derive(Default)]
struct Learned {
    /// Redis' clock less ours, in milliseconds.
    offset: AtomicI64,
    /// The checked nodes, as the scripts read them: `node=since`, separated by spaces.
    guards: ArcSwap<String>,
}

/// What every script answers: a word and a number.
type Answer = (String, i64);
/// The fields of a hash.
type Fields = HashMap<String, String>;

fn text(body: &str) -> String {
    format!("{}{body}", include_str!("scripts/ground.lua"))
}

/// The script that decides about a submitted code, for measuring what Redis alone takes for it. Its arguments are
/// described at its beginning.
#[must_use]
pub fn verify_script() -> String {
    text(include_str!("scripts/verify.lua"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn duration(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or_default())
}

fn moment(number: i64) -> UnixMillis {
    UnixMillis::new(u64::try_from(number).unwrap_or_default())
}

impl RedisStore {
    /// Whether this is the URL of a Redis. Nobody is asked.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_url(url: &str) -> Result<(), RedisUrlError> {
        url.into_connection_info().map(drop).map_err(|_| RedisUrlError)
    }

    /// Prepares the connection to `url`; it is made, and made again, when it is needed. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// When `url` is not a Redis URL.
    pub fn new(url: &str, names: RealmNames, clock: Clock) -> Result<Self, RedisUrlError> {
        let information: ConnectionInfo = url.into_connection_info().map_err(|_| RedisUrlError)?;
        // Its name is nothing that Redis has to know, and telling it needs a permission.
        let settings = information.redis_settings().clone().set_skip_set_lib_name();
        let selects_database = settings.db() != 0;
        let client = Client::open(information.set_redis_settings(settings)).map_err(|_| RedisUrlError)?;
        let link = Arc::new(Link::new(client)?);
        let publish_text = text(include_str!("scripts/publish.lua"));
        let scripts = Scripts {
            verify: Script::new(&verify_script()),
            issue: Script::new(&text(include_str!("scripts/issue.lua"))),
            publish: Script::new(&publish_text),
            publish_text,
            stamp: Script::new(&text(include_str!("scripts/stamp.lua"))),
        };
        Ok(Self { link, names, clock, selects_database, scripts: Arc::new(scripts), learned: Arc::default() })
    }

    /// The store of another realm, over the same connection.
    #[must_use]
    pub fn for_realm(&self, names: RealmNames) -> Self {
        Self { names, learned: Arc::default(), ..self.clone() }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now().offset(self.learned.offset.load(Ordering::Relaxed))
    }

    pub(crate) async fn record(&self, user: &Pseudonym) -> Result<Option<Vec<u8>>, StoreError> {
        self.query(redis::cmd("GET").arg(self.names.user(user).record)).await
    }

    pub(crate) async fn confirm_absence(&self, user: &Pseudonym) -> Result<bool, StoreError> {
        let UserNames { record, state, .. } = self.names.user(user);
        let mut pipeline = redis::pipe();
        // In one transaction: a refill between two of these would make a loss look like an absence.
        pipeline.atomic().cmd("INFO").arg("server").cmd("INFO").arg("replication");
        pipeline.exists(&record).exists(&state).hgetall(self.names.realm_meta());
        let (server, replication, record, state, meta): (String, String, bool, bool, Fields) =
            self.query_pipeline(&pipeline, OPERATION_TIMEOUT).await?;
        if !meta.contains_key(&format!("guard:{}", node_identity(&server, &replication)?)) {
            return Err(Undecided::Unguarded.into());
        }
        // Half a user, or a realm that is being filled, is a loss and not an absence.
        if !meta.contains_key("complete") || record != state {
            return Err(Undecided::NoState.into());
        }
        Ok(!record)
    }

    pub(crate) async fn realm(&self) -> Result<RealmSnapshot, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.get(self.names.realm_record()).hgetall(self.names.realm_meta());
        let (sealed, meta): (Option<Vec<u8>>, Fields) =
            self.query_pipeline(&pipeline, OPERATION_TIMEOUT).await?;
        self.learn_guards(&meta);
        Ok(RealmSnapshot { sealed, complete: meta.contains_key("complete") })
    }

    fn learn_guards(&self, meta: &Fields) {
        let guards: Vec<String> = meta
            .iter()
            .filter_map(|(field, since)| Some(format!("{}={since}", field.strip_prefix("guard:")?)))
            .collect();
        self.learned.guards.store(Arc::new(guards.join(" ")));
    }

    pub(crate) async fn verify(
        &self,
        user: &Pseudonym,
        request: &Verification,
    ) -> Result<Verdict, StoreError> {
        let UserNames { state, otp, .. } = self.names.user(user);
        let matches: Vec<String> = request.matches.iter().map(|step| step.number().to_string()).collect();
        let factor = match request.factor {
            Factor::Delivered => "delivered",
            Factor::Authenticator => "authenticator",
        };
        let (word, number) = self
            .decide(&self.scripts.verify, [&state, &otp], request.revision, request.asked_at, |call| {
                call.arg(factor)
                    .arg(request.caller.as_str())
                    .arg(request.tag.to_string())
                    .arg(matches.join(","))
                    .arg(request.period)
                    .arg(request.skew)
                    .arg(THROTTLE.threshold)
                    .arg(millis(THROTTLE.first_block))
                    .arg(millis(THROTTLE.longest_block));
            })
            .await?;
        match word.as_str() {
            "accepted" => Ok(Verdict::Accepted),
            "used" => Ok(Verdict::Used),
            "never-issued" => Ok(Verdict::NeverIssued),
            "wrong" => Ok(Verdict::Wrong),
            "expired" => Ok(Verdict::Expired),
            "blocked" => Ok(Verdict::Blocked { retry_after: duration(number) }),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn issue(&self, user: &Pseudonym, request: &Issuance) -> Result<Issue, StoreError> {
        let UserNames { state, otp, .. } = self.names.user(user);
        let (word, number) = self
            .decide(&self.scripts.issue, [&state, &otp], request.revision, request.asked_at, |call| {
                call.arg(request.caller.as_str())
                    .arg(request.tag.to_string())
                    .arg(request.step.number())
                    .arg(request.period)
                    .arg(millis(request.lifetime));
            })
            .await?;
        match word.as_str() {
            "issued" => Ok(Issue::Issued { expires_at: moment(number) }),
            "consumed" => Ok(Issue::Consumed { retry_after: duration(number) }),
            _ => Err(StoreError::Protocol),
        }
    }

    /// Runs a deciding script. A node that is not among the guards known here may have been checked since they
    /// were read, so they are read again once.
    async fn decide(
        &self,
        script: &Script,
        keys: [&str; 2],
        revision: Revision,
        asked_at: UnixMillis,
        arguments: impl Fn(&mut redis::ScriptInvocation<'_>),
    ) -> Result<Answer, StoreError> {
        let run = async || {
            let mut call = script.prepare_invoke();
            call.key(&keys)
                .arg(self.learned.guards.load().as_str())
                .arg(revision.0)
                .arg(asked_at.millis())
                .arg(millis(CLOCK_TOLERANCE));
            arguments(&mut call);
            self.link
                .run(OPERATION_TIMEOUT, async |mut link| call.invoke_async::<Answer>(&mut link).await)
                .await
        };
        let mut answer = run().await?;
        if answer.0 == "unguarded" {
            self.realm().await?;
            answer = run().await?;
        }
        match answer.0.as_str() {
            "unguarded" => {
                // It may be a former master, while new connections lead to the present one.
                self.link.renew();
                Err(Undecided::Unguarded.into())
            }
            "no-state" => Err(Undecided::NoState.into()),
            "stale" => {
                Err(Undecided::Stale { current: Revision(answer.1.try_into().unwrap_or_default()) }.into())
            }
            "clock-off" => {
                let now = moment(answer.1);
                let ours = self.clock.now();
                let offset = i64::try_from(now.millis()).unwrap_or_default()
                    - i64::try_from(ours.millis()).unwrap_or_default();
                self.learned.offset.store(offset, Ordering::Relaxed);
                Err(Undecided::ClockOff { now }.into())
            }
            _ => Ok(answer),
        }
    }

    pub(crate) async fn inspect(&self) -> Result<Inspection, StoreError> {
        self.inspect_realms(std::slice::from_ref(&self.names)).await?.pop().ok_or(StoreError::Protocol)
    }

    /// [`crate::Store::inspect`] for several realms at once, in their order.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn inspect_realms(&self, realms: &[RealmNames]) -> Result<Vec<Inspection>, StoreError> {
        let mut node = redis::pipe();
        node.cmd("INFO").arg("server").cmd("INFO").arg("replication").cmd("DBSIZE");
        let (server, replication, keys): (String, String, u64) =
            self.query_pipeline(&node, BATCH_TIMEOUT).await?;
        let node = node_identity(&server, &replication)?;
        let guard = format!("guard:{node}");
        let mut inspections = Vec::with_capacity(realms.len());
        for part in realms.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for realm in part {
                pipeline.cmd("HMGET").arg(realm.realm_meta()).arg("complete").arg(&guard);
                pipeline.exists(realm.realm_record());
            }
            let answers: Vec<redis::Value> = self.query_pipeline(&pipeline, BATCH_TIMEOUT).await?;
            for pair in answers.chunks_exact(2) {
                let (complete, guard): (Option<String>, Option<String>) = read(&pair[0])?;
                // A realm that was stamped after it was flushed has no record of its own.
                let ready = complete.is_some() && guard.is_some() && read(&pair[1])?;
                inspections.push(Inspection {
                    node: node.clone(),
                    ready,
                    empty: keys == 0,
                    filling: String::new(),
                });
            }
        }
        Ok(inspections)
    }

    /// Every realm of an installation of which there is any key.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn realms(&self, installation: &Installation) -> Result<BTreeSet<RealmId>, StoreError> {
        let mut realms = BTreeSet::new();
        self.scan(&RealmNames::every_key_of(installation), |key| {
            realms.extend(RealmNames::realm_of(installation, key));
        })
        .await?;
        Ok(realms)
    }

    /// Leaves nothing of this store's realm: neither users nor the realm's own record and guards. Only for a realm that is gone.
    ///
    /// # Errors
    /// When Redis does not answer; part of it may be gone then.
    pub async fn remove_realm(&self) -> Result<(), StoreError> {
        // First what makes the realm complete: half a realm is a loss and not an absence.
        let own = [self.names.realm_meta(), self.names.realm_record()];
        self.query::<()>(redis::cmd("UNLINK").arg(&own)).await?;
        self.remove(&self.users().await?).await
    }

    pub(crate) async fn begin_filling(&self, mark: &str) -> Result<(), StoreError> {
        self.query(redis::cmd("HSET").arg(self.names.realm_meta()).arg("filling").arg(mark)).await
    }

    pub(crate) async fn published(&self, users: &[Pseudonym]) -> Result<Vec<Published>, StoreError> {
        let mut all = Vec::with_capacity(users.len());
        for batch in users.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for user in batch {
                let UserNames { record, state, .. } = self.names.user(user);
                pipeline.hget(state, "revision").get(record);
            }
            let replies: Vec<redis::Value> = self.query_pipeline(&pipeline, BATCH_TIMEOUT).await?;
            for pair in replies.chunks_exact(2) {
                all.push(Published {
                    revision: read::<Option<u64>>(&pair[0])?.map(Revision),
                    sealed: read(&pair[1])?,
                });
            }
        }
        Ok(all)
    }

    pub(crate) async fn publish(
        &self,
        batch: &[Publication],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut results = Vec::with_capacity(batch.len());
        for part in batch.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            // Every time, for a pipeline cannot be repeated when Redis does not know the script.
            pipeline.cmd("SCRIPT").arg("LOAD").arg(&self.scripts.publish_text).ignore();
            for publication in part {
                let UserNames { record, state, otp, .. } = self.names.user(&publication.pseudonym);
                pipeline
                    .cmd("EVALSHA")
                    .arg(self.scripts.publish.get_hash())
                    .arg(3)
                    .arg(&[record, state, otp]);
                pipeline
                    .arg(publication.expected.map(|revision| revision.0.to_string()).unwrap_or_default())
                    .arg(publication.revision.0)
                    .arg(publication.sealed.as_slice())
                    .arg(u8::from(publication.fresh))
                    .arg(u8::from(publication.revoke));
            }
            let answers: Vec<Answer> = self.query_pipeline(&pipeline, BATCH_TIMEOUT).await?;
            results.extend(answers.into_iter().map(|(word, _)| match word.as_str() {
                "published" => Ok(()),
                "conflict" => Err(StoreError::Conflict),
                _ => Err(StoreError::Protocol),
            }));
        }
        Ok(results)
    }

    pub(crate) async fn publish_realm(&self, sealed: &[u8]) -> Result<(), StoreError> {
        self.query(redis::cmd("SET").arg(self.names.realm_record()).arg(sealed)).await
    }

    pub(crate) async fn users(&self) -> Result<Vec<Pseudonym>, StoreError> {
        let mut users = BTreeSet::new();
        self.scan(&self.names.every_user_key(), |key| users.extend(self.names.user_of(key))).await?;
        Ok(users.into_iter().collect())
    }

    async fn scan(&self, pattern: &str, mut found: impl FnMut(&str)) -> Result<(), StoreError> {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) = self.query(&scan).await?;
            for key in &keys {
                found(key);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    pub(crate) async fn remove(&self, users: &[Pseudonym]) -> Result<(), StoreError> {
        for batch in users.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for user in batch {
                let UserNames { record, state, otp, log } = self.names.user(user);
                pipeline.cmd("UNLINK").arg(&[record, state, otp, log]).ignore();
            }
            self.query_pipeline::<()>(&pipeline, BATCH_TIMEOUT).await?;
        }
        Ok(())
    }

    pub(crate) async fn stamp(&self, inspection: &Inspection) -> Result<(), StoreError> {
        let mut call = self.scripts.stamp.prepare_invoke();
        call.key(self.names.realm_meta())
            .arg(&inspection.node)
            .arg(u8::from(inspection.empty))
            .arg(&inspection.filling);
        let (word, _): Answer =
            self.link.run(OPERATION_TIMEOUT, async |mut link| call.invoke_async(&mut link).await).await?;
        match word.as_str() {
            "stamped" => Ok(()),
            "another-node" => Err(Undecided::Unguarded.into()),
            "lost" => Err(Undecided::NoState.into()),
            _ => Err(StoreError::Protocol),
        }
    }

    /// Whether connections begin with the choice of another database than the first.
    pub(crate) const fn selects_database(&self) -> bool {
        self.selects_database
    }

    pub(crate) async fn query<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, StoreError> {
        self.link.run(OPERATION_TIMEOUT, async |mut link| command.query_async(&mut link).await).await
    }

    async fn query_pipeline<T: FromRedisValue>(
        &self,
        pipeline: &Pipeline,
        bound: Duration,
    ) -> Result<T, StoreError> {
        self.link.run(bound, async |mut link| pipeline.query_async(&mut link).await).await
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RedisStore({})", self.names.prefix())
    }
}

fn read<T: FromRedisValue>(value: &redis::Value) -> Result<T, StoreError> {
    T::from_redis_value(value.clone()).map_err(|_| StoreError::Protocol)
}

/// Who a node is: its process, and its reign as a master. The scripts compute the same.
fn node_identity(server: &str, replication: &str) -> Result<String, StoreError> {
    let field = |information: &str, name: &str| {
        information
            .lines()
            .find_map(|line| line.strip_prefix(name).map(str::to_owned))
            .ok_or(StoreError::Protocol)
    };
    Ok(format!("{}.{}", field(server, "run_id:")?, field(replication, "master_replid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_its_process_and_its_reign() {
        let identity =
            node_identity("# Server\r\nrun_id:ab12\r\n", "role:master\r\nmaster_replid:cd34\r\n").unwrap();
        assert_eq!(identity, "ab12.cd34");
    }
}
