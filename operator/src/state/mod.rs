//! What every step of a reconciliation works with. Enters: what `run` has put together. Leaves: the
//! same, shared; and the ledger of what this process wrote itself, so that its own writes do not
//! wake it up again.

pub mod credentials;
pub mod own_writes;
pub mod queue;
pub mod realm_policies;
pub mod realm_secrets;
pub mod realms;
pub mod usernames;
pub mod watched_namespaces;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Client;
use kube::runtime::reflector::Store;
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::sync::watch;
use twofactor_api::TwoFactorUser;
use twofactor_core::realm::RealmRecord;
use twofactor_core::secret::SecretText;
use twofactor_core::user::Username;
use twofactor_store::clock::Clock;

use self::credentials::{CredentialsQueue, ForeignSecrets, Isolation};
use self::own_writes::OwnWrites;
use self::queue::{Queue, UserRef};
use self::realm_policies::Policies;
use self::realm_secrets::{Records, SharedKey};
use self::realms::Realms;
use self::usernames::Usernames;
use self::watched_namespaces::WatchedNamespaces;
use crate::k8s::backoff::Backoff;
use crate::k8s::events::Events;
use crate::metrics::Metrics;

/// Shared by everything in the process.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Every user, as last seen.
    pub users: Store<TwoFactorUser>,
    /// Whose username is whose.
    pub usernames: Mutex<Usernames>,
    /// The realms.
    pub realms: Realms,
    /// Policy and providers of realms that say nothing themselves.
    pub defaults: RealmRecord,
    /// What the realms say, and whom they let in.
    pub policies: Arc<Policies>,
    /// The realms' own providers.
    pub records: Records,
    /// Which Redis node answered last; empty before.
    pub node: watch::Sender<String>,
    /// How well Redis keeps services apart.
    pub isolation: watch::Sender<Isolation>,
    /// Credentials that somebody else's Secret is in the way of.
    pub foreign_secrets: ForeignSecrets,
    /// Users by namespace: how many, and how many of them are ready.
    pub counts: Mutex<HashMap<String, (usize, usize)>>,
    /// Pods with a sidecar of another version, by the realm that they verify.
    pub outdated: Mutex<HashMap<String, usize>>,
    /// The ecosystem's shared key.
    pub shared_key: SharedKey,
    /// What services are told to connect to.
    pub redis_url: SecretText,
    /// What they are to check the certificates of Redis against (PEM).
    pub redis_authority: Option<String>,
    /// Who has to be looked at.
    pub queue: Queue,
    /// Credentials that have to be looked at.
    pub credentials_queue: CredentialsQueue,
    /// Wakes the removal of keys that belong to nobody.
    pub removals: tokio::sync::Notify,
    /// Who failed how often.
    pub backoff: Backoff<UserRef>,
    /// What this process wrote itself.
    pub own_writes: OwnWrites,
    /// Where notices are left.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// The clock.
    pub clock: Clock,
    /// When this process began, in milliseconds since the epoch.
    pub started: i64,
    /// The namespaces that are looked at.
    pub watched: WatchedNamespaces,
}

impl Context {
    /// The index.
    pub fn usernames(&self) -> MutexGuard<'_, Usernames> {
        self.usernames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the record of a realm should say has changed: it will be published, if there is such a
    /// realm.
    pub fn policy_changed(&self, namespace: &str) {
        if let Some(realm) = self.realms.get(namespace) {
            realm.policy_changed();
            self.realms.changed.notify_one();
        }
    }

    /// Users of a namespace: how many, and how many of them are ready.
    pub fn count(&self, namespace: &str) -> (usize, usize) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(namespace).copied().unwrap_or_default()
    }

    /// The name of the object that owns a username.
    pub fn owner(&self, namespace: &str, username: &Username) -> Option<String> {
        self.usernames().owner(namespace, username).map(|claim| claim.name.clone())
    }

    /// Whether the object with this UID owns a username.
    pub fn owns(&self, namespace: &str, username: &Username, uid: &str) -> bool {
        self.usernames().owner(namespace, username).is_some_and(|claim| claim.uid == uid)
    }
}

/// Returns the system's source of randomness.
pub fn random() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}
