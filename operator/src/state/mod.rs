//! Holds what the leader process knows and shares between its tasks. Nothing here starts anything.
//!
//! [`Context`] is the sum of four groups. A loop takes the sum, a step takes the groups it needs.

pub mod asking;
pub mod credentials;
pub mod imports;
pub mod limit_ranges;
pub mod own_writes;
pub mod queue;
pub mod realm_keys;
pub mod realm_policies;
pub mod realm_secrets;
pub mod realms;
pub mod redis_owner;
pub mod refused_watches;
pub mod user_objects;
pub mod user_ref;
pub mod usernames;
pub mod watched_namespaces;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Client;
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::sync::{Notify, watch};
use twofactor_core::names::RealmId;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::Username;
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisAccess;

use self::asking::AskingPods;
use self::credentials::{CredentialsQueue, ForeignSecrets, Isolation, SharedLogin};
use self::imports::Imports;
use self::own_writes::OwnWrites;
use self::queue::Queue;
use self::realm_policies::Policies;
use self::realm_secrets::{Records, SharedKey};
use self::realms::{Realm, Realms};
use self::redis_owner::RedisOwner;
use self::refused_watches::RefusedWatches;
use self::user_objects::UserObjects;
use self::user_ref::UserRef;
use self::usernames::Usernames;
use self::watched_namespaces::WatchedNamespaces;
use crate::k8s::backoff::Backoff;
use crate::k8s::events::Events;
use crate::metrics::Metrics;

/// Everything that the tasks of the leader share.
pub struct Context {
    pub runtime: Runtime,
    pub users: UserState,
    pub realms: RealmsState,
    pub services: ServicesState,
}

/// The process and what it talks to.
pub struct Runtime {
    pub client: Client,
    pub clock: Clock,
    pub events: Events,
    pub metrics: Metrics,
    pub watched: WatchedNamespaces,
    /// Whether this operator owns the installation's data in Redis.
    pub owner: Arc<RedisOwner>,
    /// Whether no new seeds are made, because Secrets are being restored.
    pub hold_new_seeds: bool,
    /// Watches that the API server refuses.
    pub refused: RefusedWatches,
    /// Start of this process, in milliseconds of Unix time.
    pub started: i64,
    /// The Redis nodes that answered last, and their replicas; empty before the first answer.
    pub node: watch::Sender<String>,
    /// Wakes the task that removes users from Redis.
    pub removals: Notify,
    /// Wakes the task that removes realms from Redis, and searches it if `is_search_due`.
    pub realm_removals: Notify,
    /// Whether keys may have been left behind that only a search of all of Redis finds.
    pub is_search_due: AtomicBool,
    /// Wakes the task that compares the users in Redis.
    pub comparisons: Notify,
    /// Wakes the task that follows the access to Redis, because Redis does not answer.
    pub redis_failed: Notify,
    /// Whether Redis refuses the operator's login.
    pub is_login_refused: AtomicBool,
}

/// What is known of users.
pub struct UserState {
    /// Every user object, as the watch last reported it.
    pub objects: UserObjects,
    pub usernames: Mutex<Usernames>,
    /// Users that have to be reconciled.
    pub queue: Queue,
    pub own_writes: OwnWrites,
    pub imports: Imports,
    /// Failures in a row of each user.
    pub backoff: Backoff<UserRef>,
}

/// What is known of realms.
pub struct RealmsState {
    pub registry: Realms,
    /// The policies of realms, and the namespaces that they allow.
    pub policies: Arc<Policies>,
    /// What was read of the Secrets that realms refer to.
    pub secrets: Records,
    /// Policy and providers of realms that set none.
    pub defaults: watch::Sender<RealmRecord>,
    pub shared_key: SharedKey,
}

/// What is known of the services that verify users.
pub struct ServicesState {
    pub credentials_queue: CredentialsQueue,
    pub isolation: watch::Sender<Isolation>,
    pub foreign_secrets: ForeignSecrets,
    /// The pods that ask for credentials.
    pub asking: AskingPods,
    /// Namespaces that never get credentials.
    pub excluded: BTreeSet<String>,
    /// The namespaces in which the operator has rights on credentials and pods.
    pub within_reach: WatchedNamespaces,
    /// Number of pods whose sidecar has another version, by realm.
    pub outdated_pods: Mutex<HashMap<String, usize>>,
    /// What connections to Redis are made with. Services get the same, with another login where
    /// there can be one.
    pub redis: watch::Sender<RedisAccess>,
    /// What they get where there can be none.
    pub shared_login: SharedLogin,
}

impl Context {
    /// Has the keys of a realm removed again that this process has written to, if its namespace was
    /// deleted meanwhile.
    pub fn realm_written(&self, realm: &Realm) {
        if realm.written() {
            self.runtime.realm_removals.notify_one();
        }
    }
}

impl UserState {
    pub fn usernames(&self) -> MutexGuard<'_, Usernames> {
        self.usernames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the name of the object that owns a username.
    pub fn owner(&self, namespace: &str, username: &Username) -> Option<String> {
        self.usernames().owner(namespace, username).map(|owner| owner.name.as_ref().to_owned())
    }

    /// Whether the object with this UID owns a username.
    pub fn owns(&self, namespace: &str, username: &Username, uid: &str) -> bool {
        self.usernames().owner(namespace, username).is_some_and(|owner| *owner.uid == *uid)
    }
}

impl RealmsState {
    /// Whether the namespace has a policy, or this process has used it as a realm.
    pub fn is_realm(&self, namespace: &str) -> bool {
        self.policies.has_policy(namespace) || self.registry.get(namespace).is_some()
    }

    /// Has what services of a realm can write in Redis checked at once, if that realm was requested
    /// before. In Redis 6.2, that includes records.
    pub fn check_realm(&self, realm: &RealmId, with_records: bool) {
        let namespace = self.registry.namespace_of(realm);
        if let Some(realm) = namespace.and_then(|namespace| self.registry.get(&namespace)) {
            realm.request_check();
            self.registry.check_requested.notify_one();
            if with_records {
                realm.compare_next(None);
                realm.policy_changed();
                self.registry.changed.notify_one();
            }
        }
    }

    /// Has the record of a realm published again, if that realm was requested before.
    pub fn policy_changed(&self, namespace: &str) {
        if let Some(realm) = self.registry.get(namespace) {
            realm.policy_changed();
            self.registry.changed.notify_one();
        }
    }
}

/// Returns the system's source of randomness.
pub fn random() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}
