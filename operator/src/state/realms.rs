//! The realms: a namespace with users is one. Enters: namespaces as they come and go, and the
//! master key. Leaves: for each realm its keys, its publisher, and what is going on in it.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use tokio::sync::{Notify, RwLock, watch};
use twofactor_core::key::{Login, MasterKey, RealmKey};
use twofactor_core::names::{Installation, Pseudonym, RealmId, RealmNames};
use twofactor_core::token::Ed25519Key;
use twofactor_store::Store;
use twofactor_store::publisher::Publisher;
use twofactor_store::redis::RedisStore;

use crate::k8s::request::{self, ApiError};

/// The generation of realm keys: there is only the first yet.
const GENERATION: u32 = 1;

/// What is known about a realm's content in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Nothing yet, or it is being published.
    Pending,
    /// Complete, on a node that was checked.
    Ready,
    /// The store does not answer.
    Unavailable,
}

/// One realm.
#[derive(Debug)]
pub struct Realm {
    /// The namespace of its users.
    pub namespace: String,
    /// The namespace's UID.
    pub id: RealmId,
    /// Publishes users and the realm's record.
    pub publisher: Publisher,
    /// Its key, as the credentials of services hold it.
    pub key: RealmKey,
    /// Publishing one user: shared. Publishing from a list, or removing: alone. Whoever holds it
    /// alone reads and writes without anything coming between, so that a list never overwrites what
    /// a reconciliation has just published.
    pub publish_lock: RwLock<()>,
    readiness: watch::Sender<Readiness>,
    state: Mutex<RealmState>,
}

#[derive(Debug, Default)]
struct RealmState {
    /// Usernames that lost their owner: their keys have to go before anybody is published there.
    pending_removals: HashSet<Pseudonym>,
    /// UIDs of users whom this process has published: a refill has to bring them back.
    published: HashSet<String>,
    /// Whether a refill is under way.
    refilling: bool,
    /// How often the realm's own record has become another one.
    policy_version: u64,
    /// The changes that had happened when this process last published it.
    published_version: Option<u64>,
}

impl Realm {
    /// Whether the realm is complete in the store.
    pub fn readiness(&self) -> Readiness {
        *self.readiness.borrow()
    }

    /// Tells how the realm is.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.send_if_modified(|known| std::mem::replace(known, readiness) != readiness);
    }

    /// Waits for at most `patience` until the realm is ready; gives up at once when the store is
    /// away.
    pub async fn wait_until_ready(&self, patience: Duration) -> Readiness {
        let mut readiness = self.readiness.subscribe();
        let decided = readiness.wait_for(|readiness| *readiness != Readiness::Pending);
        match tokio::time::timeout(patience, decided).await {
            Ok(Ok(readiness)) => *readiness,
            _ => Readiness::Pending,
        }
    }

    /// A username has lost its owner.
    pub fn schedule_removal(&self, user: Pseudonym) {
        self.state().pending_removals.insert(user);
    }

    /// The usernames whose keys have to go.
    pub fn pending_removals(&self) -> Vec<Pseudonym> {
        self.state().pending_removals.iter().copied().collect()
    }

    /// Whether the keys of this user have to go first.
    pub fn is_removal_pending(&self, user: &Pseudonym) -> bool {
        self.state().pending_removals.contains(user)
    }

    /// The keys of these users are gone.
    pub fn removed(&self, users: &[Pseudonym]) {
        let mut state = self.state();
        for user in users {
            state.pending_removals.remove(user);
        }
    }

    /// A user was published.
    pub fn remember_published(&self, uid: &str) {
        let mut state = self.state();
        if !state.published.contains(uid) {
            state.published.insert(uid.to_owned());
        }
    }

    /// A user is gone.
    pub fn forget_published(&self, uid: &str) {
        self.state().published.remove(uid);
    }

    /// Whether this process has published the user.
    pub fn was_published(&self, uid: &str) -> bool {
        self.state().published.contains(uid)
    }

    /// Whether this process has published the realm's own record as it should be now.
    pub fn is_policy_published(&self) -> bool {
        let state = self.state();
        state.published_version == Some(state.policy_version)
    }

    /// The realm's own record should be another one.
    pub fn policy_changed(&self) {
        self.state().policy_version += 1;
    }

    /// Ask before working out what the realm's own record should be, and give it to
    /// [`Realm::introduce`] when that is published.
    pub fn policy_version(&self) -> u64 {
        self.state().policy_version
    }

    /// The realm's own record is published as it should have been after so many changes.
    pub fn policy_published(&self, version: u64) {
        self.state().published_version = Some(version);
    }

    /// Begins a refill, unless one is under way.
    pub fn begin_refill(&self) -> bool {
        !std::mem::replace(&mut self.state().refilling, true)
    }

    /// Ends a refill.
    pub fn end_refill(&self) {
        self.state().refilling = false;
    }

    fn state(&self) -> MutexGuard<'_, RealmState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no realm for a namespace.
#[derive(Debug, Error)]
pub enum RealmError {
    /// There is no such namespace, or no more.
    #[error("the namespace is gone")]
    Gone,
    /// Its UID is not one.
    #[error("the UID of the namespace cannot be used as the name of a realm")]
    Identifier,
    /// The API server did not tell.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// All realms.
pub struct Realms {
    client: Client,
    master: MasterKey,
    /// Which installation this is.
    pub installation: Installation,
    store: RedisStore,
    state: Mutex<State>,
    /// Wakes the guard: there is a new realm.
    pub changed: Notify,
}

#[derive(Default)]
struct State {
    /// The UID of each namespace that is known.
    namespaces: HashMap<String, String>,
    realms: HashMap<String, Arc<Realm>>,
    /// Realms whose namespace is gone, but not yet their keys.
    deleted: HashSet<RealmId>,
    /// Namespaces whose realm was asked for once.
    asked_for: HashSet<String>,
}

impl Realms {
    /// No realms yet. `store` is of no realm in particular.
    pub fn new(
        client: Client,
        master: MasterKey,
        installation: Installation,
        store: RedisStore,
    ) -> Self {
        Self {
            client,
            master,
            installation,
            store,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The realm of `namespace`, made when it is asked for first.
    pub async fn get_or_create(&self, namespace: &str) -> Result<Arc<Realm>, RealmError> {
        if let Some(realm) = self.get(namespace) {
            return Ok(realm);
        }
        let known = self.state().namespaces.get(namespace).cloned();
        let uid = if let Some(uid) = known {
            uid
        } else {
            // Its users were seen before it was: the watches are not in step.
            let namespaces = Api::<Namespace>::all(self.client.clone());
            let found =
                request::optional(request::within(namespaces.get_metadata(namespace)).await)?;
            found.and_then(|namespace| namespace.uid()).ok_or(RealmError::Gone)?
        };
        let id = RealmId::from_str(&uid).map_err(|_| RealmError::Identifier)?;
        let mut state = self.state();
        if state.namespaces.get(namespace).is_some_and(|known| *known != uid) {
            // Another one has taken its place meanwhile.
            return Err(RealmError::Gone);
        }
        state.asked_for.insert(namespace.to_owned());
        let realm = state
            .realms
            .entry(namespace.to_owned())
            .or_insert_with(|| Arc::new(self.realm(namespace, id)));
        self.changed.notify_one();
        Ok(realm.clone())
    }

    fn realm(&self, namespace: &str, id: RealmId) -> Realm {
        let key = self.master.realm_key(&id, GENERATION);
        Realm {
            namespace: namespace.to_owned(),
            publisher: Publisher::new(Store::Redis(self.store_of(&id)), key.keys(&id)),
            key,
            id,
            publish_lock: RwLock::default(),
            readiness: watch::Sender::new(Readiness::Pending),
            state: Mutex::default(),
        }
    }

    /// How the services of the namespace with this UID log in to Redis for a realm.
    pub fn login(&self, id: &RealmId, namespace: &str) -> Login {
        self.master.login(id, GENERATION, namespace)
    }

    /// The key that tokens of a realm are signed with where nobody gave another one.
    pub fn token_key(&self, id: &RealmId) -> Ed25519Key {
        self.master.token_key(id, GENERATION)
    }

    fn names(&self, id: &RealmId) -> RealmNames {
        RealmNames::new(&self.installation, id)
    }

    /// The store of any realm.
    pub fn store_of(&self, id: &RealmId) -> RedisStore {
        self.store.for_realm(self.names(id))
    }

    /// The store, for what concerns no realm in particular.
    pub fn store(&self) -> &RedisStore {
        &self.store
    }

    /// The names in Redis of these realms.
    pub fn all_names(&self, realms: &[Arc<Realm>]) -> Vec<RealmNames> {
        realms.iter().map(|realm| self.names(&realm.id)).collect()
    }

    /// The realm of `namespace`, if it was asked for before.
    pub fn get(&self, namespace: &str) -> Option<Arc<Realm>> {
        self.state().realms.get(namespace).cloned()
    }

    /// Every realm that was asked for.
    pub fn all(&self) -> Vec<Arc<Realm>> {
        self.state().realms.values().cloned().collect()
    }

    /// A namespace is there. Tells whether it takes the place of another one of the same name,
    /// whose realm is given up, so that its users have to be looked at again.
    pub fn namespace_seen(&self, name: &str, uid: &str) -> bool {
        let mut state = self.state();
        if state.namespaces.get(name).is_some_and(|known| known == uid) {
            return false;
        }
        state.delete(name, Some(uid));
        state.namespaces.insert(name.to_owned(), uid.to_owned());
        let is_realm = state.realms.get(name).is_some_and(|realm| realm.id.as_str() == uid);
        state.asked_for.contains(name) && !is_realm
    }

    /// The namespace that is this realm.
    pub fn namespace_of(&self, realm: &RealmId) -> Option<String> {
        let state = self.state();
        let found = state.namespaces.iter().find(|(_, uid)| uid.as_str() == realm.as_str());
        found.map(|(name, _)| name.clone())
    }

    /// A namespace is gone.
    pub fn namespace_gone(&self, name: &str) {
        let mut state = self.state();
        state.namespaces.remove(name);
        state.delete(name, None);
    }

    /// Of `realms`, those that are of no namespace: to be cleared. Call it only with a complete
    /// list of namespaces.
    pub fn orphaned(&self, realms: impl IntoIterator<Item = RealmId>) -> Vec<RealmId> {
        let state = self.state();
        let live: HashSet<&str> = state
            .namespaces
            .values()
            .map(String::as_str)
            .chain(state.realms.values().map(|realm| realm.id.as_str()))
            .collect();
        realms.into_iter().filter(|realm| !live.contains(realm.as_str())).collect()
    }

    /// The realms whose namespace is gone, but not yet their keys.
    pub fn deleted(&self) -> Vec<RealmId> {
        self.state().deleted.iter().cloned().collect()
    }

    /// The keys of an deleted realm are gone.
    pub fn forget(&self, realm: &RealmId) {
        self.state().deleted.remove(realm);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives up the realm of a namespace, unless it is the one with this UID. Tells whether there
    /// was one.
    fn delete(&mut self, namespace: &str, except: Option<&str>) -> bool {
        let other =
            self.realms.get(namespace).is_some_and(|realm| except != Some(realm.id.as_str()));
        let realm = if other { self.realms.remove(namespace) } else { None };
        let deleted = realm.map(|realm| self.deleted.insert(realm.id.clone()));
        deleted.is_some()
    }
}

impl std::fmt::Debug for Realms {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Realms({})", self.installation)
    }
}
