//! Runs `dev`: the same service without Kubernetes, which publishes users from manifests on disk
//! itself, into memory or into Redis.

mod announce;
mod manifests;
mod master_key;
pub mod settings;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_api::manifest::LeftOut;
use twofactor_core::key::{MasterKey, RealmKeys};
use twofactor_core::names::{Caller, Installation, RealmId, RealmNames};
use twofactor_core::otpauth;
use twofactor_core::realm::RealmRecord;
use twofactor_core::secret::SecretText;
use twofactor_core::user::DeliveryMethod;
use twofactor_server::startup::read_certificate_authority;
use twofactor_store::clock::Clock;
use twofactor_store::memory::MemoryStore;
use twofactor_store::publisher::Publisher;
use twofactor_store::redis::{RedisAccess, RedisStore, RedisTargetError};
use twofactor_store::{Decisions, Store, StoreError};

use self::manifests::{SeedBook, Users};
use crate::delivery::Delivery;
use crate::error::RunError;
use crate::metrics::Metrics;
use crate::otp::background::BackgroundWork;
use crate::otp::records::Records;
use crate::otp::service::{CurrentService, Service};
use crate::process::listen::{Addresses, Listeners};
use crate::process::{ModeTask, run};

/// Interval between two checks of the manifests and the store.
const INTERVAL: Duration = Duration::from_secs(1);
/// Number of checks after which the store is filled even if nothing has changed, because single
/// keys may have been lost.
const REFILL_AFTER: u32 = 30;

/// Maximum number of names of kept users in a log line.
const MOST_NAMES: usize = 20;

/// The options of `dev`.
pub struct DevOptions {
    /// Files and folders with manifests.
    pub paths: Vec<PathBuf>,
    /// The URL of Redis, which may contain a password. Without one, memory is used.
    pub redis_url: Option<String>,
    /// File with the CA certificates of Redis, in place of those that the system trusts.
    pub redis_ca_file: Option<PathBuf>,
    /// File with the master key, which is used with Redis.
    pub master_key_file: Option<PathBuf>,
    /// The realm's name in Redis.
    pub realm_id: RealmId,
    /// The namespace of this process.
    pub caller: Caller,
    /// Policy and providers.
    pub realm: RealmRecord,
    /// Whether answers contain the code.
    pub expose_codes: bool,
}

/// Serves until `stop`. Fails if a path, an address or the configuration is invalid. An invalid
/// manifest is reported, and the others are served.
pub async fn dev(
    addresses: &Addresses,
    options: DevOptions,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let listeners = Listeners::bind(addresses)?;
    let master = match &options.redis_url {
        Some(_) => master_key::read_or_create(options.master_key_file.as_deref())?,
        // The records end with the process, so their key may as well.
        None => MasterKey::generate(&mut UnwrapErr(SysRng)),
    };
    let keys = || -> RealmKeys { master.realm_key(&options.realm_id, 1).keys(&options.realm_id) };
    let store = match &options.redis_url {
        Some(url) => {
            let installation: Installation = "dev"
                .parse()
                .map_err(|error| RunError::Configuration(format!("installation {error}")))?;
            let names = RealmNames::new(&installation, &options.realm_id);
            let authority =
                read_certificate_authority("--redis-ca-file", options.redis_ca_file.as_deref())
                    .map_err(RunError::Configuration)?;
            let url = SecretText::new(url.clone());
            let access = RedisAccess { url, authority, identity: None };
            let store = RedisStore::with_access(&access, names, Clock::System);
            let store = store.map_err(|error| {
                RunError::Configuration(match error {
                    RedisTargetError::Url(error) => format!("--redis-url {error}"),
                    RedisTargetError::Authority(error) => format!("--redis-ca-file {error}"),
                    RedisTargetError::Identity(error) => error.to_string(),
                })
            })?;
            Store::Redis(store)
        }
        None => Store::Memory(MemoryStore::new(Clock::System)),
    };
    let metrics = Metrics::new().map_err(|error| RunError::Configuration(error.to_string()))?;
    metrics.codes_exposed(options.expose_codes);
    if options.expose_codes {
        tracing::warn!(
            "codes exposed in answers: every process on this machine can be any user; for development only"
        );
    }
    let decisions = Decisions::new(store.clone(), Arc::new(metrics.store().clone()));
    let current = CurrentService::new(Service {
        records: Records::new(decisions.clone(), keys(), None, metrics.clone()),
        store: decisions,
        delivery: Delivery::new(true),
        caller: options.caller,
        expose_codes: options.expose_codes,
        metrics,
        background: BackgroundWork::default(),
        public_keys: Arc::default(),
    });

    let files = read_files(&options.paths)?;
    let mut source = Source {
        publisher: Publisher::new(store, keys()),
        realm: options.realm,
        paths: options.paths,
        users: report(&files),
        files,
        kept: BTreeSet::new(),
        book: SeedBook::default(),
        available: true,
    };
    if source.is_foreign().await {
        return Err(RunError::Configuration(format!(
            "the realm {} in this Redis is sealed with another master key, and its users would be lost: name \
             the file with that key with --master-key-file, or another realm with --realm",
            options.realm_id
        )));
    }
    source.fill().await;
    if let Some(address) = listeners.api_address() {
        announce::show_commands(&source.users, address, options.expose_codes);
    }
    let publishing = ModeTask { name: "publisher", task: source.watch(stop.clone()), check: None };
    run(current, listeners, publishing, stop).await
}

/// Manifests, and the store that they are published into.
struct Source {
    publisher: Publisher,
    realm: RealmRecord,
    paths: Vec<PathBuf>,
    files: Vec<(String, Vec<u8>)>,
    users: Users,
    book: SeedBook,
    /// The names of users who are published although no manifest that can be read has them; a
    /// change is logged.
    kept: BTreeSet<String>,
    /// Whether the store answered last time; a change is logged.
    available: bool,
}

impl Source {
    /// Publishes changes of the manifests, and what the store has lost, until `stop`.
    async fn watch(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since_filled = 0;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            since_filled += 1;
            let changed = self.reread();
            let filled = self.available
                && self.publisher.store().inspect().await.is_ok_and(|found| found.ready);
            if changed || !filled || since_filled >= REFILL_AFTER {
                self.fill().await;
                since_filled = 0;
            }
        }
    }

    /// Reads the manifests again, and returns whether they have changed.
    fn reread(&mut self) -> bool {
        // A file that is missing or being written is read again next time; until then the users
        // stay as they are.
        let Ok(files) = read_files(&self.paths) else { return false };
        if files == self.files {
            return false;
        }
        tracing::info!("manifests changed");
        self.users = report(&files);
        self.files = files;
        true
    }

    /// Publishes the users of the manifests.
    async fn fill(&mut self) {
        match self.try_fill().await {
            Ok(refilled) => {
                let made = self.book.take_published();
                for definition in self
                    .users
                    .definitions()
                    .filter(|user| user.delivery_method == DeliveryMethod::App)
                {
                    if let Some(seed) = made.get(&definition.username) {
                        let issuer = definition.issuer.as_deref().unwrap_or(&self.realm.issuer);
                        announce::show_seed(
                            &otpauth::uri(&definition.username, issuer, seed, &definition.totp),
                            definition.username.as_str(),
                        );
                    }
                }
                if refilled || !self.available {
                    tracing::info!(users = self.users.len(), "users published");
                }
                self.available = true;
            }
            Err(StoreError::Conflict) => {
                tracing::info!("another process publishes the same users, trying again");
                self.book.forget_fresh();
            }
            Err(error) => {
                if self.available {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "failed to publish users, trying again every second");
                }
                self.available = false;
            }
        }
    }

    /// Whether the store holds a realm that these keys do not open, because filling it would remove
    /// the users of another process.
    async fn is_foreign(&self) -> bool {
        let sealed = self.publisher.store().realm().await.ok().and_then(|realm| realm.sealed);
        sealed.is_some_and(|sealed| RealmRecord::open(&self.publisher.keys(), &sealed).is_err())
    }

    async fn try_fill(&mut self) -> Result<bool, StoreError> {
        if self.is_foreign().await {
            return Err(StoreError::Foreign);
        }
        let random = &mut UnwrapErr(SysRng);
        let desired = self.users.desired(&mut self.book, random, &self.publisher).await?;
        let refilled = self
            .publisher
            .fill(&self.realm, &desired, self.users.unlisted(), Clock::System.now(), random)
            .await?;
        self.name_kept().await?;
        Ok(refilled)
    }

    /// Logs who is kept, because their manifest may be the one that cannot be read.
    async fn name_kept(&mut self) -> Result<(), StoreError> {
        let kept = self.users.kept(&self.publisher).await?;
        if kept != self.kept && !kept.is_empty() {
            let names: Vec<_> = kept.iter().take(MOST_NAMES).map(String::as_str).collect();
            tracing::warn!(
                users = kept.len(),
                names = names.join(", "),
                "users kept without a manifest, because a manifest cannot be read and may be theirs"
            );
        }
        self.kept = kept;
        Ok(())
    }
}

fn read_files(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, RunError> {
    manifests::read_files(paths).map_err(|error| RunError::Configuration(error.to_string()))
}

/// Reads users, and logs what is wrong with those that cannot be served.
fn report(files: &[(String, Vec<u8>)]) -> Users {
    let manifests = manifests::parse(files);
    for LeftOut { file, line, kind } in &manifests.left_out {
        tracing::info!(file, line, kind, "document of another kind left out");
    }
    let (users, problems) = Users::from_manifests(&manifests);
    for problem in problems {
        tracing::error!("{problem}");
    }
    users
}
