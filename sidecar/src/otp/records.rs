//! Records of users and of the realm, opened once and kept while they are current.
//!
//! Enters: a username. Leaves: the opened record, or the certainty that there is no such user. A
//! record that does not open, or is older than one seen before, is never used: that is an answer of
//! 503 and a metric.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use quick_cache::sync::Cache;
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use thiserror::Error;
use twofactor_core::key::RealmKeys;
use twofactor_core::names::Pseudonym;
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::{RecordError, UserRecord};
use twofactor_core::seal::{OpenError, Revision};
use twofactor_core::seed::Seed;
use twofactor_core::totp::TotpParameters;
use twofactor_core::user::{DeliveryMethod, EmailAddress, UserDefinition, Username};
use twofactor_store::{Decisions, StoreError};

use crate::metrics::Metrics;
use crate::otp::uniform::Found;
use crate::refusal::Refusal;

/// Users whose opened records are kept; beyond that, those not asked about for longest are read
/// again. At about half a kilobyte each they are some ten megabytes, which has to fit into what a
/// container next to every service may take.
const CACHED_USERS: usize = 20_000;

/// For so long, what was last read of the realm is believed; then a request reads it again itself.
/// It bounds how long a namespace that is no longer let in goes on, whatever keeps the sidecar from
/// looking every second.
const REALM_BELIEVED: Duration = Duration::from_secs(2);

/// A user as they are now.
#[derive(Clone, Debug)]
pub struct CurrentUser {
    /// What they are called in the store.
    pub pseudonym: Pseudonym,
    /// The revision of the record.
    pub revision: Revision,
    /// The record.
    pub record: Arc<UserRecord>,
}

#[derive(Clone)]
struct Seen {
    /// The highest revision seen, also of a user who is gone: nothing older is accepted again.
    highest: Revision,
    record: Option<Arc<UserRecord>>,
}

/// The records of one realm.
pub struct Records {
    store: Decisions,
    known: Arc<Known>,
    /// When the store was last asked for the realm and answered.
    looked_at: Mutex<Option<Instant>>,
    metrics: Metrics,
}

/// What was seen with the keys of one realm. It outlives the connection that it was read over.
struct Known {
    keys: RealmKeys,
    users: Cache<Pseudonym, Seen>,
    realm: ArcSwapOption<(Revision, RealmRecord)>,
    stand_in: StandIn,
}

/// A record that nobody has, to do the same work on for a name that is no user's.
struct StandIn {
    record: Arc<UserRecord>,
    pseudonym: Pseudonym,
    sealed: Vec<u8>,
}

impl StandIn {
    fn new(keys: &RealmKeys) -> Self {
        let random = &mut UnwrapErr(SysRng);
        let definition = UserDefinition {
            username: "stand-in"
                .parse()
                .unwrap_or_else(|_| unreachable!("a plain word is a username")),
            enabled: true,
            delivery_method: DeliveryMethod::Email,
            email: EmailAddress::try_from("stand-in@example.org".to_owned()).ok(),
            phone_number: None,
            totp: TotpParameters::default(),
            issuer: None,
        };
        let pseudonym = keys.pseudonym(&definition.username);
        let record =
            UserRecord { definition, seed: Some(Seed::generate(random)), provenance: None };
        let sealed = record.seal(keys, pseudonym, Revision::default(), random);
        Self { record: Arc::new(record), pseudonym, sealed }
    }
}

/// Why a record that is there was not used.
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
    /// Records of the realm that `keys` open, read from `store`.
    #[must_use]
    pub fn new(store: Decisions, keys: RealmKeys, metrics: Metrics) -> Self {
        let stand_in = StandIn::new(&keys);
        let known = Known {
            keys,
            users: Cache::new(CACHED_USERS),
            realm: ArcSwapOption::empty(),
            stand_in,
        };
        Self { store, known: Arc::new(known), looked_at: Mutex::default(), metrics }
    }

    /// The same realm's records, read from another store from now on. What is known stays known,
    /// and with it the revisions below which nothing is accepted.
    #[must_use]
    pub fn moved_to(&self, store: Decisions) -> Self {
        let known = self.known.clone();
        Self { store, known, looked_at: Mutex::default(), metrics: self.metrics.clone() }
    }

    /// The keys of the realm.
    #[must_use]
    pub fn keys(&self) -> &RealmKeys {
        &self.known.keys
    }

    /// An enabled user: the record last seen, which the decision checks, or a newly read one.
    ///
    /// # Errors
    /// [`Refusal::UnknownUser`] when it is certain that there is none or that they are disabled;
    /// [`Refusal::Unavailable`] when it is not.
    pub async fn enabled_user(&self, username: &Username) -> Result<CurrentUser, Refusal> {
        let pseudonym = self.known.keys.pseudonym(username);
        let user = match self.known.users.get(&pseudonym) {
            Some(Seen { highest, record: Some(record) }) => {
                CurrentUser { pseudonym, revision: highest, record }
            }
            _ => self.reload(pseudonym).await?,
        };
        // A record that was kept may be outdated, and no decision will tell: a disabled user is not
        // decided about.
        if user.record.definition.enabled { Ok(user) } else { self.reload_enabled(pseudonym).await }
    }

    /// Looks a name up so that it takes the same whether it is a user's: the record is read, and
    /// the store asked whether there is such a user, each time and of every name.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] when it is not certain.
    pub async fn find(&self, username: &Username) -> Result<Found, Refusal> {
        let pseudonym = self.known.keys.pseudonym(username);
        let seen =
            self.known.users.get(&pseudonym).map_or(Revision::default(), |seen| seen.highest);
        let (sealed, absent) = tokio::try_join!(
            self.store.record(&pseudonym),
            self.store.confirm_absence(&pseudonym)
        )?;
        let Some(sealed) = sealed else {
            if !absent {
                return Err(Refusal::Unavailable);
            }
            if seen > Revision::default() {
                self.known.users.insert(pseudonym, Seen { highest: seen, record: None });
            }
            let StandIn { pseudonym: own, sealed, .. } = &self.known.stand_in;
            let _ = std::hint::black_box(self.open(*own, sealed, Revision::default()));
            return Ok(Found::Nobody(self.stand_in(pseudonym)));
        };
        let user = self.accept(pseudonym, &sealed, seen)?;
        let enabled = user.record.definition.enabled;
        Ok(if enabled { Found::User(user) } else { Found::Nobody(self.stand_in(pseudonym)) })
    }

    /// A record that nobody has, in the place of that of `pseudonym`. Its revision is never a
    /// current one.
    #[must_use]
    pub fn stand_in(&self, pseudonym: Pseudonym) -> CurrentUser {
        CurrentUser {
            pseudonym,
            revision: Revision::default(),
            record: self.known.stand_in.record.clone(),
        }
    }

    /// Reads an enabled user's record again.
    ///
    /// # Errors
    /// As in [`Records::enabled_user`].
    pub async fn reload_enabled(&self, pseudonym: Pseudonym) -> Result<CurrentUser, Refusal> {
        let user = self.reload(pseudonym).await?;
        if user.record.definition.enabled { Ok(user) } else { Err(Refusal::UnknownUser) }
    }

    /// Reads a user's record again: it has changed, or is not known here.
    ///
    /// # Errors
    /// As in [`Records::enabled_user`].
    pub async fn reload(&self, pseudonym: Pseudonym) -> Result<CurrentUser, Refusal> {
        // Before the reading: of two that overlap, the one that ends later may have read what came
        // earlier.
        let seen =
            self.known.users.get(&pseudonym).map_or(Revision::default(), |seen| seen.highest);
        let Some(sealed) = self.store.record(&pseudonym).await? else {
            return Err(self.missing(pseudonym).await?);
        };
        self.accept(pseudonym, &sealed, seen)
    }

    /// Opens a record that was read after `seen` was the highest revision, and keeps it.
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
        let (revision, record) = UserRecord::open(&self.known.keys, pseudonym, sealed)?;
        if revision < seen {
            return Err(Rejected::RolledBack { found: revision.0, seen: seen.0 });
        }
        Ok((revision, record))
    }

    /// No record: either there is no such user, or the store has lost them.
    async fn missing(&self, pseudonym: Pseudonym) -> Result<Refusal, StoreError> {
        if !self.store.confirm_absence(&pseudonym).await? {
            // Published in this very moment: the next request finds it.
            return Ok(Refusal::Unavailable);
        }
        if let Some(seen) = self.known.users.get(&pseudonym) {
            self.known.users.insert(pseudonym, Seen { highest: seen.highest, record: None });
        }
        Ok(Refusal::UnknownUser)
    }

    /// The realm's policy and credentials, as they were at most two seconds ago.
    ///
    /// # Errors
    /// When there are none: Redis does not answer, or nothing was published.
    pub async fn realm(&self) -> Result<Arc<(Revision, RealmRecord)>, Refusal> {
        let looked_at = *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = looked_at.is_some_and(|at| at.elapsed() < REALM_BELIEVED);
        match self.known_realm() {
            Some(realm) if believed => Ok(realm),
            _ => {
                self.refresh_realm().await?;
                self.known_realm().ok_or(Refusal::Unavailable)
            }
        }
    }

    /// The realm as last read, however long ago.
    #[must_use]
    pub fn known_realm(&self) -> Option<Arc<(Revision, RealmRecord)>> {
        self.known.realm.load_full()
    }

    /// Reads the realm's record again; keeps the one known when there is no better one.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn refresh_realm(&self) -> Result<(), StoreError> {
        // The moment of the question: the answer may be as old as that.
        let asked_at = Instant::now();
        let snapshot = self.store.realm().await?;
        *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked_at);
        let Some(sealed) = snapshot.sealed else { return Ok(()) };
        let known = self.known_realm();
        let seen = known.as_ref().map_or(Revision::default(), |known| known.0);
        match RealmRecord::open(&self.known.keys, &sealed).map_err(Rejected::from) {
            Ok((revision, _)) if revision < seen => {
                self.reject("realm", Rejected::RolledBack { found: revision.0, seen: seen.0 });
            }
            Ok((revision, record)) => {
                self.store.require_replicas(record.redis_wait);
                if revision > seen || known.is_none() {
                    self.known.realm.store(Some(Arc::new((revision, record))));
                }
            }
            Err(rejected) => self.reject("realm", rejected),
        }
        Ok(())
    }

    fn reject(&self, kind: &'static str, rejected: Rejected) {
        self.metrics.refused_record(rejected.reason());
        tracing::error!(kind, reason = rejected.reason(), error = %rejected, "a record in Redis was not used");
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Records({:?})", self.known.keys)
    }
}
