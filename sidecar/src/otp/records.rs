//! Reads the records of users and of the realm, opens them, and caches them while they are current.
//!
//! A record that does not open, or is older than one seen before, is never used: the request is
//! answered with 503, and a metric counts it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use quick_cache::sync::Cache;
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use thiserror::Error;
use twofactor_core::key::RealmKeys;
use twofactor_core::names::{Pseudonym, RealmNames};
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::{RecordError, UserRecord};
use twofactor_core::seal::{BEGINNING_BYTES, OpenError, Revision};
use twofactor_core::seed::Seed;
use twofactor_core::totp::TotpParameters;
use twofactor_core::user::{DeliveryMethod, EmailAddress, UserDefinition, Username};
use twofactor_store::{Decisions, RealmRead, StoreError};

use crate::metrics::Metrics;
use crate::refusal::Refusal;

/// Maximum number of users whose opened records are cached. At about half a kilobyte each they are
/// some ten megabytes, which have to fit into a container beside every service.
const CACHED_USERS: usize = 20_000;

/// Maximum age of the realm's record; a request reads an older one again. It bounds how long a
/// namespace that is no longer allowed goes on, because nothing else reads an idle realm in time.
const REALM_MAX_AGE: Duration = Duration::from_secs(2);

/// Time after the last request from which the realm counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(10);
/// Interval between two reads of an idle realm, for the metrics and the log. The next request reads
/// the realm itself.
const IDLE_REFRESH: Duration = Duration::from_secs(15);
/// Minimum interval between two reads of the heartbeat by requests that find it too old.
const HEARTBEAT_RETRY: Duration = Duration::from_secs(1);

const NOT_CERTAIN: &str = "it is not certain that there is no such user";

/// A user with their current record.
#[derive(Clone, Debug)]
pub struct CurrentUser {
    /// The user's name in the store.
    pub pseudonym: Pseudonym,
    pub revision: Revision,
    pub record: Arc<UserRecord>,
}

/// A name that was looked up with the same work for every name.
#[derive(Debug)]
pub enum Lookup {
    /// An enabled user.
    Enabled(CurrentUser),
    /// No user, or a disabled one, with a dummy record to do the same work on.
    Unknown(CurrentUser),
}

/// How a realm's requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Each outcome has its own answer.
    Precise,
    /// Answers do not show which names are users.
    Uniform,
}

/// The realm as it was read.
#[derive(Debug)]
pub struct Realm {
    pub revision: Revision,
    pub record: RealmRecord,
    pub answers: Answers,
    /// The beginning of the sealed record.
    beginning: Vec<u8>,
}

impl Realm {
    fn new(revision: Revision, record: RealmRecord, sealed: &[u8]) -> Self {
        let answers = if record.uniform_answers { Answers::Uniform } else { Answers::Precise };
        let beginning = sealed.iter().take(BEGINNING_BYTES).copied().collect();
        Self { revision, record, answers, beginning }
    }
}

/// When the realm was used.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    /// When the store was last asked for the realm and answered.
    read_at: Option<Instant>,
    /// When a request last needed it.
    needed_at: Option<Instant>,
    /// The age that the heartbeat last had, and when.
    heartbeat: Option<(Duration, Instant)>,
}

#[derive(Clone)]
struct Seen {
    /// The highest revision seen, also of a user who was removed: no older one is accepted again.
    highest: Revision,
    record: Option<Arc<UserRecord>>,
}

/// The records of one realm.
pub struct Records {
    store: Decisions,
    keys: Arc<Keys>,
    known: Arc<Known>,
    realm_uses: Mutex<Uses>,
    /// When the store was last asked for the heartbeat of the operator. It is held while one
    /// request reads the heartbeat, and the others wait for what that one reads.
    heartbeat_read_at: tokio::sync::Mutex<Option<Instant>>,
    metrics: Metrics,
    /// Whether the operator shows that it works.
    has_heartbeat: bool,
}

/// The keys that records are opened with.
struct Keys {
    realm: RealmKeys,
    dummy: DummyRecord,
}

/// What was read of one realm. It outlives the connection that it was read over, and the keys.
struct Known {
    names: Option<RealmNames>,
    users: Cache<Pseudonym, Seen>,
    realm: ArcSwapOption<Realm>,
}

/// A record that belongs to no user, so that a name that is no user's takes the same work.
struct DummyRecord {
    record: Arc<UserRecord>,
    pseudonym: Pseudonym,
    sealed: Vec<u8>,
}

impl DummyRecord {
    fn new(keys: &RealmKeys) -> Self {
        let random = &mut UnwrapErr(SysRng);
        let definition = UserDefinition {
            username: "dummy"
                .parse()
                .unwrap_or_else(|_| unreachable!("a plain word is a username")),
            enabled: true,
            delivery_method: DeliveryMethod::Email,
            email: EmailAddress::try_from("dummy@example.org".to_owned()).ok(),
            phone_number: None,
            totp: TotpParameters::default(),
            issuer: None,
            locale: None,
        };
        let pseudonym = keys.pseudonym(&definition.username);
        let record = UserRecord {
            definition,
            seed: Some(Seed::generate(random)),
            provenance: None,
            source: None,
        };
        let sealed = record.seal(keys, pseudonym, Revision::default(), random);
        Self { record: Arc::new(record), pseudonym, sealed }
    }
}

/// Why a record in the store was not used.
#[derive(Clone, Copy, Debug, Error)]
enum Rejected {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the record has revision {found}, revision {seen} was seen before")]
    RolledBack { found: u64, seen: u64 },
}

impl Rejected {
    const fn reason(self) -> &'static str {
        match self {
            Self::Record(RecordError::Open(OpenError::Truncated)) => "truncated",
            Self::Record(RecordError::Open(OpenError::Format(_))) => "format",
            Self::Record(RecordError::Open(OpenError::Generation { .. })) => "key-generation",
            Self::Record(RecordError::Open(OpenError::NotAuthentic)) => "not-authentic",
            Self::Record(RecordError::Content) => "content",
            Self::RolledBack { .. } => "rolled-back",
        }
    }
}

impl Records {
    pub fn new(
        store: Decisions,
        keys: RealmKeys,
        names: Option<RealmNames>,
        metrics: Metrics,
    ) -> Self {
        let known = Known { names, users: Cache::new(CACHED_USERS), realm: ArcSwapOption::empty() };
        Self::with(store, keys, Arc::new(known), metrics)
    }

    fn with(store: Decisions, keys: RealmKeys, known: Arc<Known>, metrics: Metrics) -> Self {
        let keys = Arc::new(Keys { dummy: DummyRecord::new(&keys), realm: keys });
        Self {
            store,
            keys,
            known,
            realm_uses: Mutex::default(),
            heartbeat_read_at: tokio::sync::Mutex::default(),
            metrics,
            has_heartbeat: true,
        }
    }

    /// The same records, published by an operator of version 0.1, which does not show that it
    /// works. A rollback to it must fail no verify, so the time that the realm demands is ignored.
    pub fn without_heartbeat(self) -> Self {
        Self { has_heartbeat: false, ..self }
    }

    /// Returns the same realm's records, read from another store and with other keys from now on.
    /// What was read stays known, because no older revision may be accepted.
    pub fn moved_to(&self, store: Decisions, keys: RealmKeys) -> Self {
        Self::with(store, keys, self.known.clone(), self.metrics.clone())
    }

    /// Whether records under these keys and names are records of the same realm.
    pub fn have_names_of(&self, keys: &RealmKeys, names: &RealmNames) -> bool {
        self.known.names.as_ref() == Some(names) && self.keys.realm.has_names_of(keys)
    }

    pub fn keys(&self) -> &RealmKeys {
        &self.keys.realm
    }

    /// Returns an enabled user: the cached record, which the decision checks, or one read now.
    ///
    /// The error is [`Refusal::UnknownUser`] if it is certain that there is no such user or that
    /// they are disabled, and [`Refusal::Unavailable`] if it is not.
    pub async fn enabled_user(&self, username: &Username) -> Result<CurrentUser, Refusal> {
        let pseudonym = self.keys.realm.pseudonym(username);
        let user = match self.known.users.get(&pseudonym) {
            Some(Seen { highest, record: Some(record) }) => {
                CurrentUser { pseudonym, revision: highest, record }
            }
            _ => self.reload(pseudonym).await?,
        };
        // A cached record may be outdated, and no decision would show it, because no decision is
        // asked for about a disabled user.
        if user.record.definition.enabled { Ok(user) } else { self.reload_enabled(pseudonym).await }
    }

    /// Looks up a name with the same work for every name: the record is read and the store is asked
    /// whether there is such a user, each time.
    ///
    /// The error is [`Refusal::Unavailable`] if it is not certain.
    pub async fn look_up(&self, username: &Username) -> Result<Lookup, Refusal> {
        let pseudonym = self.keys.realm.pseudonym(username);
        let seen =
            self.known.users.get(&pseudonym).map_or(Revision::default(), |seen| seen.highest);
        let (sealed, absent) = tokio::try_join!(
            self.store.record(&pseudonym),
            self.store.confirm_absence(&pseudonym)
        )?;
        let Some(sealed) = sealed else {
            if !absent {
                return Err(Refusal::undecided(NOT_CERTAIN));
            }
            if seen > Revision::default() {
                self.known.users.insert(pseudonym, Seen { highest: seen, record: None });
            }
            let DummyRecord { pseudonym: own, sealed, .. } = &self.keys.dummy;
            let _ = std::hint::black_box(self.open(*own, sealed, Revision::default()));
            return Ok(Lookup::Unknown(self.dummy(pseudonym)));
        };
        let user = self.accept(pseudonym, &sealed, seen)?;
        let enabled = user.record.definition.enabled;
        Ok(if enabled { Lookup::Enabled(user) } else { Lookup::Unknown(self.dummy(pseudonym)) })
    }

    /// Returns the dummy record in place of that of `pseudonym`. Its revision is never a current
    /// one.
    pub fn dummy(&self, pseudonym: Pseudonym) -> CurrentUser {
        CurrentUser {
            pseudonym,
            revision: Revision::default(),
            record: self.keys.dummy.record.clone(),
        }
    }

    /// Reads an enabled user's record again. Errors are those of [`Records::enabled_user`].
    pub async fn reload_enabled(&self, pseudonym: Pseudonym) -> Result<CurrentUser, Refusal> {
        let user = self.reload(pseudonym).await?;
        if user.record.definition.enabled { Ok(user) } else { Err(Refusal::UnknownUser) }
    }

    /// Reads a user's record that has changed or is not cached. Errors are those of
    /// [`Records::enabled_user`].
    pub async fn reload(&self, pseudonym: Pseudonym) -> Result<CurrentUser, Refusal> {
        // Before the read, because of two reads that overlap, the one that ends later may return
        // the older record.
        let seen =
            self.known.users.get(&pseudonym).map_or(Revision::default(), |seen| seen.highest);
        let Some(sealed) = self.store.record(&pseudonym).await? else {
            return Err(self.missing(pseudonym).await?);
        };
        self.accept(pseudonym, &sealed, seen)
    }

    /// Opens a record that was read after `seen` was the highest revision, and caches it.
    fn accept(
        &self,
        pseudonym: Pseudonym,
        sealed: &[u8],
        seen: Revision,
    ) -> Result<CurrentUser, Refusal> {
        let (revision, record) = self.open(pseudonym, sealed, seen).map_err(|rejected| {
            self.reject("user", rejected);
            Refusal::Unavailable
        })?;
        if let Some(Seen { highest, record: Some(record) }) = self.known.users.get(&pseudonym)
            && highest > revision
        {
            return Ok(CurrentUser { pseudonym, revision: highest, record });
        }
        let record = Arc::new(record);
        self.known
            .users
            .insert(pseudonym, Seen { highest: revision, record: Some(record.clone()) });
        Ok(CurrentUser { pseudonym, revision, record })
    }

    fn open(
        &self,
        pseudonym: Pseudonym,
        sealed: &[u8],
        seen: Revision,
    ) -> Result<(Revision, UserRecord), Rejected> {
        let (revision, record) = UserRecord::open(&self.keys.realm, pseudonym, sealed)?;
        if revision < seen {
            return Err(Rejected::RolledBack { found: revision.0, seen: seen.0 });
        }
        Ok((revision, record))
    }

    /// Returns the refusal for a missing record: either there is no such user, or the store has
    /// lost the record.
    async fn missing(&self, pseudonym: Pseudonym) -> Result<Refusal, StoreError> {
        if !self.store.confirm_absence(&pseudonym).await? {
            // The record was published just now, so the next request finds it.
            return Ok(Refusal::undecided(NOT_CERTAIN));
        }
        if let Some(seen) = self.known.users.get(&pseudonym) {
            self.known.users.insert(pseudonym, Seen { highest: seen.highest, record: None });
        }
        Ok(Refusal::UnknownUser)
    }

    /// Returns the realm as it was at most [`REALM_MAX_AGE`] ago. Fails if Redis does not answer,
    /// or if nothing was published.
    pub async fn realm(&self) -> Result<Arc<Realm>, Refusal> {
        let now = Instant::now();
        let read_at = self.with_uses(|uses| {
            uses.needed_at = Some(now);
            uses.read_at
        });
        let is_recent = read_at.is_some_and(|at| now - at < REALM_MAX_AGE);
        match self.known_realm() {
            Some(realm) if is_recent => Ok(realm),
            _ => {
                self.refresh_realm().await?;
                self.known_realm()
                    .ok_or_else(|| Refusal::undecided("Redis has no policy of the realm"))
            }
        }
    }

    /// Returns the time since an operator has last shown that it works, if that is known.
    pub fn heartbeat_age(&self) -> Option<Duration> {
        let heartbeat = self.with_uses(|uses| uses.heartbeat);
        heartbeat.map(|(age, read_at)| age + read_at.elapsed())
    }

    /// Whether no operator has worked for longer than the realm allows.
    pub async fn is_stale(&self, realm: &RealmRecord) -> bool {
        let Some(maximum) = realm.max_staleness.filter(|_| self.has_heartbeat) else {
            return false;
        };
        let maximum = Duration::from_secs(maximum.into());
        let is_stale = || self.heartbeat_age().is_none_or(|age| age > maximum);
        if is_stale() {
            self.refresh_heartbeat(HEARTBEAT_RETRY).await;
        }
        is_stale()
    }

    /// Reads the heartbeat of the operator again if it was not read within `interval`.
    pub async fn refresh_heartbeat(&self, interval: Duration) {
        let mut read_at = self.heartbeat_read_at.lock().await;
        if read_at.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        let asked_at = Instant::now();
        let age = self.store.heartbeat_age().await;
        *read_at = Some(asked_at);
        // An operator of version 0.1 neither has a heartbeat nor lets sidecars read one.
        if let Ok(Some(age)) = age {
            self.with_uses(|uses| uses.heartbeat = Some((age, asked_at)));
        }
        self.metrics.heartbeat_age(self.heartbeat_age());
    }

    /// Returns the realm as last read, however long ago.
    pub fn known_realm(&self) -> Option<Arc<Realm>> {
        self.known.realm.load_full()
    }

    /// Whether the realm should be read again: every second while requests need it, and otherwise
    /// every 15 seconds.
    pub fn is_realm_due(&self) -> bool {
        let within = |at: Option<Instant>, bound| at.is_some_and(|at| at.elapsed() < bound);
        self.with_uses(|uses| {
            within(uses.needed_at, IDLE_AFTER) || !within(uses.read_at, IDLE_REFRESH)
        })
    }

    /// Reads the realm's record again if it has changed. The known one stays if the store has no
    /// newer valid one.
    pub async fn refresh_realm(&self) -> Result<(), StoreError> {
        // Before the read, because the record may be as old as the question.
        let asked_at = Instant::now();
        let known = self.known_realm();
        let read = self.store.realm(known.as_ref().map(|known| &*known.beginning)).await?;
        self.with_uses(|uses| uses.read_at = Some(asked_at));
        let sealed = match read {
            RealmRead::Changed(sealed) => sealed,
            RealmRead::Unchanged | RealmRead::Absent => {
                if let Some(known) = known {
                    self.store.require_replicas(known.record.redis_wait);
                }
                return Ok(());
            }
        };
        let seen = known.as_ref().map_or(Revision::default(), |known| known.revision);
        match RealmRecord::open(&self.keys.realm, &sealed).map_err(Rejected::from) {
            Ok((revision, _)) if revision < seen => {
                self.reject("realm", Rejected::RolledBack { found: revision.0, seen: seen.0 });
            }
            Ok((revision, record)) => {
                self.store.require_replicas(record.redis_wait);
                if revision > seen || known.is_none() {
                    self.known.realm.store(Some(Arc::new(Realm::new(revision, record, &sealed))));
                }
            }
            Err(rejected) => self.reject("realm", rejected),
        }
        Ok(())
    }

    fn with_uses<T>(&self, change: impl FnOnce(&mut Uses) -> T) -> T {
        change(&mut self.realm_uses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn reject(&self, kind: &'static str, rejected: Rejected) {
        self.metrics.refused_record(rejected.reason());
        tracing::error!(kind, reason = rejected.reason(), error = %rejected, "record in Redis not used");
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Records({:?})", self.keys.realm)
    }
}
