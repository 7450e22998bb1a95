//! The store in Redis. Enters and leaves: as in [`crate::Store`].
//!
//! A decision is one `EVALSHA`: the script looks, decides and remembers, and nothing comes between. The clock
//! that counts is Redis'; the difference to the local one is learned from a refused request and kept, so that
//! the next one is right at once. The guards of checked nodes are kept in the same way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

mod decide;
mod inspect;
mod publish;

use arc_swap::ArcSwap;
use redis::{Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, Script};
use twofactor_core::names::{Pseudonym, RealmNames};
use twofactor_core::time::UnixMillis;

pub use self::decide::verify_script;
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
    deciding: decide::Scripts,
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

/// What the publisher's scripts answer: a word and a number.
type Answer = (String, i64);
/// The fields of a hash.
type Fields = HashMap<String, String>;

fn text(body: &str) -> String {
    format!("{}{body}", include_str!("../scripts/ground.lua"))
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
            deciding: decide::Scripts::default(),
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
