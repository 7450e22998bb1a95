//! The store in Redis. Enters and leaves: as in [`crate::Store`].
//!
//! A decision is one `EVALSHA`: the script looks, decides and remembers, and nothing comes between. The clock
//! that counts is Redis'; the difference to the local one is learned from a refused request and kept, so that
//! the next one is right at once. The guards of checked nodes are kept in the same way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

mod inspect;
mod publish;

use arc_swap::ArcSwap;
use redis::{Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, Script};
use twofactor_core::decision::{
    CLOCK_TOLERANCE, Factor, Issuance, Issue, THROTTLE, Undecided, Verdict, Verification,
};
use twofactor_core::names::{Pseudonym, RealmNames, UserNames};
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;

use crate::clock::Clock;
use crate::link::Link;
use crate::{RealmSnapshot, StoreError};

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
    format!("{}{body}", include_str!("../scripts/ground.lua"))
}

/// The script that decides about a submitted code, for measuring what Redis alone takes for it. Its arguments are
/// described at its beginning.
#[must_use]
pub fn verify_script() -> String {
    text(include_str!("../scripts/verify.lua"))
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
        let publish_text = text(include_str!("../scripts/publish.lua"));
        let scripts = Scripts {
            verify: Script::new(&verify_script()),
            issue: Script::new(&text(include_str!("../scripts/issue.lua"))),
            publish: Script::new(&publish_text),
            publish_text,
            stamp: Script::new(&text(include_str!("../scripts/stamp.lua"))),
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
