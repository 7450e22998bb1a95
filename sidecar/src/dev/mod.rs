//! `dev`: the same service without Kubernetes. Enters: manifests on disk and the environment.
//! Leaves: a running sidecar that is its own publisher, into memory or into Redis.

pub mod manifests;
pub mod settings;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_core::key::{MasterKey, RealmKeys};
use twofactor_core::names::{Caller, Installation, RealmId, RealmNames};
use twofactor_core::otpauth;
use twofactor_core::qr::QrPicture;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod;
use twofactor_server::startup::read_certificate_authority;
use twofactor_store::clock::Clock;
use twofactor_store::memory::MemoryStore;
use twofactor_store::publisher::Publisher;
use twofactor_store::redis::{RedisStore, RedisTargetError};
use twofactor_store::{Decisions, Store, StoreError};

use self::manifests::{SeedBook, Users};
use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::otp::background::Work;
use crate::otp::records::Records;
use crate::otp::service::{Current, Service};
use crate::process::listen::{Addresses, Listeners};
use crate::process::{Background, RunError, run};

/// How often the manifests are looked at and the store is checked.
const WATCH: Duration = Duration::from_secs(1);
/// How many looks there are between two fillings that nothing asked for, should single keys have
/// been lost.
const SAFETY_NET: u32 = 30;

/// What `dev` was told.
pub struct DevOptions {
    /// Files and folders with manifests.
    pub paths: Vec<PathBuf>,
    /// Redis, or memory when absent. May hold a password.
    pub redis_url: Option<String>,
    /// File with what the certificates of Redis are checked against; what the system trusts when
    /// absent.
    pub redis_ca_file: Option<PathBuf>,
    /// Where the master key is kept when Redis is used.
    pub master_key_file: Option<PathBuf>,
    /// The realm's name in Redis.
    pub realm_id: RealmId,
    /// The namespace that this process asks for.
    pub caller: Caller,
    /// Policy and providers.
    pub realm: RealmRecord,
    /// Whether answers contain the code.
    pub expose_codes: bool,
}

/// Serves until it is told to stop.
///
/// # Errors
/// When a path, an address or the configuration is unusable. A manifest that is wrong is reported,
/// and the others are served.
pub async fn dev(
    addresses: &Addresses,
    options: DevOptions,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let listeners = Listeners::bind(addresses)?;
    let master = match &options.redis_url {
        Some(_) => kept_master_key(options.master_key_file.as_deref())?,
        // The records go with the process, and so may their key.
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
            let store = RedisStore::with_authority(url, authority.as_deref(), names, Clock::System);
            let store = store.map_err(|error| {
                RunError::Configuration(match error {
                    RedisTargetError::Url(error) => format!("--redis-url {error}"),
                    RedisTargetError::Authority(error) => format!("--redis-ca-file {error}"),
                })
            })?;
            Store::Redis(store)
        }
        None => Store::Memory(MemoryStore::new(Clock::System)),
    };
    let metrics = Metrics::new().map_err(|error| RunError::Configuration(error.to_string()))?;
    let decisions = Decisions::new(store.clone(), Arc::new(metrics.store().clone()));
    let current = Current::new(Service {
        records: Records::new(decisions.clone(), keys(), metrics.clone()),
        store: decisions,
        delivery: Delivery::new(true),
        caller: options.caller,
        expose_codes: options.expose_codes,
        metrics,
        work: Work::default(),
        public_keys: Arc::default(),
    });

    let files = read_files(&options.paths)?;
    let mut source = Source {
        publisher: Publisher::new(store, keys()),
        realm: options.realm,
        paths: options.paths,
        users: report(&files),
        files,
        book: SeedBook::default(),
        available: true,
    };
    if source.is_somebody_elses().await {
        return Err(RunError::Configuration(format!(
            "the realm {} in this Redis is sealed with another master key, and its users would be lost: name \
             the file with that key with --master-key-file, or another realm with --realm",
            options.realm_id
        )));
    }
    source.fill().await;
    announce(&source, &listeners, options.expose_codes);
    let publishing =
        Background { name: "publisher", task: source.watch(stop.clone()), check: None };
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
    /// Whether the store answered last time; a change is worth a log line.
    available: bool,
}

impl Source {
    /// Looks after manifests and store until it is told to stop.
    async fn watch(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(WATCH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since_filled = 0;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            since_filled += 1;
            let changed = self.reread();
            let filled = self.available
                && self.publisher.store().inspect().await.is_ok_and(|found| found.ready);
            if changed || !filled || since_filled >= SAFETY_NET {
                self.fill().await;
                since_filled = 0;
            }
        }
    }

    /// Reads the manifests again. Tells whether anything is different.
    fn reread(&mut self) -> bool {
        // A file that vanished or is being written is looked at again next time; who was served
        // stays served.
        let Ok(files) = read_files(&self.paths) else { return false };
        if files == self.files {
            return false;
        }
        tracing::info!("the manifests have changed");
        self.users = report(&files);
        self.files = files;
        true
    }

    /// Makes the store hold what the manifests say.
    async fn fill(&mut self) {
        match self.try_fill().await {
            Ok(refilled) => {
                let made = self.book.published();
                for definition in self
                    .users
                    .definitions()
                    .filter(|user| user.delivery_method == DeliveryMethod::App)
                {
                    if let Some(seed) = made.get(&definition.username) {
                        let issuer = definition.issuer.as_deref().unwrap_or(&self.realm.issuer);
                        enrol(
                            &otpauth::uri(&definition.username, issuer, seed, &definition.totp),
                            definition.username.as_str(),
                        );
                    }
                }
                if refilled || !self.available {
                    tracing::info!(users = self.users.len(), "users are published");
                }
                self.available = true;
            }
            Err(StoreError::Conflict) => {
                tracing::info!("another process publishes the same users; looking again");
                self.book.forget_fresh();
            }
            Err(error) => {
                if self.available {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "users cannot be published; trying again every second");
                }
                self.available = false;
            }
        }
    }

    /// Whether the store holds a realm that these keys do not open: filling it would sweep somebody
    /// else's users.
    async fn is_somebody_elses(&self) -> bool {
        let sealed = self.publisher.store().realm().await.ok().and_then(|realm| realm.sealed);
        sealed.is_some_and(|sealed| RealmRecord::open(self.publisher.keys(), &sealed).is_err())
    }

    async fn try_fill(&mut self) -> Result<bool, StoreError> {
        if self.is_somebody_elses().await {
            return Err(StoreError::Foreign);
        }
        let random = &mut UnwrapErr(SysRng);
        let desired = self.users.desired(&mut self.book, random, &self.publisher).await?;
        self.publisher
            .fill(&self.realm, &desired, self.users.others(), Clock::System.now(), random)
            .await
    }
}

fn read_files(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, RunError> {
    manifests::read_files(paths).map_err(|error| RunError::Configuration(error.to_string()))
}

/// Reads users, and says what is wrong with those that cannot be served.
fn report(files: &[(String, Vec<u8>)]) -> Users {
    let (users, problems) = Users::from_manifests(&manifests::parse(files));
    for problem in problems {
        tracing::error!("{problem}");
    }
    users
}

/// The key under which records stay readable from one start to the next: read, or made at the first
/// start.
fn kept_master_key(path: Option<&Path>) -> Result<MasterKey, RunError> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => default_key_path()?,
    };
    let wrong = |error: &dyn ToString| {
        RunError::Configuration(format!(
            "--master-key-file {}: {}",
            path.display(),
            error.to_string()
        ))
    };
    match fs::read_to_string(&path) {
        Ok(text) => return MasterKey::from_base64(&text).map_err(|error| wrong(&error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(&error)),
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| wrong(&error))?;
    }
    let key = MasterKey::generate(&mut UnwrapErr(SysRng));
    // Written elsewhere and then linked: nobody ever sees half of it, and the first of two
    // processes wins.
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| writeln!(file, "{}", key.to_base64().expose_secret()))
        .and_then(|()| fs::hard_link(&draft, &path));
    let _ = fs::remove_file(&draft);
    match written {
        Ok(()) => Ok(key),
        // Another process was quicker; its key is the key.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = fs::read_to_string(&path).map_err(|error| wrong(&error))?;
            MasterKey::from_base64(&text).map_err(|error| wrong(&error))
        }
        Err(error) => Err(wrong(&error)),
    }
}

fn default_key_path() -> Result<PathBuf, RunError> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("fountainai-2fa/master-key"))
        .ok_or_else(|| {
            RunError::Configuration(
                "there is no home directory: name a file with --master-key-file".to_owned(),
            )
        })
}

/// Shows a new seed, once, to be scanned.
fn enrol(uri: &twofactor_core::secret::SecretText, username: &str) {
    say!("Scan this with an authenticator app to be {username:?}, or open {}", uri.expose_secret());
    match QrPicture::encode(uri) {
        Ok(picture) => say!("{}", picture.terminal()),
        Err(error) => say!("{error}"),
    }
}

/// Says what to do next, with lines that work as they stand.
fn announce(source: &Source, listeners: &Listeners, codes_in_answers: bool) {
    let Some(address) = listeners.api_address() else { return };
    let base = format!("http://{address}");
    say!(
        "\nServing {} users at {base} (documentation: {base}/docs). Stop with Ctrl-C.",
        source.users.len()
    );
    // A name that needs no quoting in a shell, and somebody who gets codes sent rather than one
    // with an app.
    let plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
    };
    let mut users: Vec<_> = source
        .users
        .definitions()
        .filter(|user| user.enabled && plain(user.username.as_str()))
        .collect();
    users.sort_by_key(|user| user.delivery_method == DeliveryMethod::App);
    let Some(user) = users.first() else { return };
    let name = user.username.as_str();
    let ask = format!("curl -s -X POST '{base}/auth/generate?username={name}'");
    let verify = format!(
        "curl -s {base}/auth/verify -H 'Content-Type: application/json' \
         -d '{{\"username\":\"{name}\",\"otp_code\":\"'$CODE'\"}}'; echo"
    );
    let read = "read -rp 'Code: ' CODE";
    let (lines, first) = match (user.delivery_method, codes_in_answers) {
        (DeliveryMethod::App, _) => (read.to_owned(), "takes the code that the app shows"),
        (_, true) => {
            let code = "sed -n 's/.*\"otp_code\":\"\\([0-9]*\\)\".*/\\1/p'";
            (format!("CODE=$({ask} | {code})"), "asks for a code")
        }
        (_, false) => {
            (format!("{ask}; echo; {read}"), "asks for a code and takes the one that arrives")
        }
    };
    say!(
        "Paste these lines into another terminal:\n\n{lines}\n{verify}\n{verify}\n\n\
         The first {first}, the second answers {{\"success\":true}}, the third that it is used up.\n"
    );
    if source.users.has_imports() {
        say!(
            "Codes of imported seeds are accepted a minute after the start: earlier ones may have been used before.\n"
        );
    }
}
