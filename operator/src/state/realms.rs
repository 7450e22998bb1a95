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
    Away,
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
    /// The realm's store, for what concerns Redis alone.
    pub store: RedisStore,
    /// Its key, as the credentials of services hold it.
    pub key: RealmKey,
    /// Publishing one user: shared. Publishing from a list, or removing: alone. Whoever holds it
    /// alone reads and writes without anything coming between, so that a list never overwrites what
    /// a reconciliation has just published.
    pub gate: RwLock<()>,
    readiness: watch::Sender<Readiness>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Usernames that lost their owner: their keys have to go before anybody is published there.
    vacated: HashSet<Pseudonym>,
    /// UIDs of users whom this process has published: a refill has to bring them back.
    settled: HashSet<String>,
    /// Whether a refill is under way.
    refilling: bool,
    /// How often the realm's own record has become another one.
    changes: u64,
    /// The changes that had happened when this process last published it.
    introduced: Option<u64>,
}

impl Realm {
    /// Whether the realm is complete in the store.
    #[must_use]
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
    pub fn vacate(&self, user: Pseudonym) {
        self.memory().vacated.insert(user);
    }

    /// The usernames whose keys have to go.
    #[must_use]
    pub fn vacated(&self) -> Vec<Pseudonym> {
        self.memory().vacated.iter().copied().collect()
    }

    /// Whether the keys of this user have to go first.
    #[must_use]
    pub fn is_vacated(&self, user: &Pseudonym) -> bool {
        self.memory().vacated.contains(user)
    }

    /// The keys of these users are gone.
    pub fn cleared(&self, users: &[Pseudonym]) {
        let mut memory = self.memory();
        for user in users {
            memory.vacated.remove(user);
        }
    }

    /// A user was published.
    pub fn settle(&self, uid: &str) {
        let mut memory = self.memory();
        if !memory.settled.contains(uid) {
            memory.settled.insert(uid.to_owned());
        }
    }

    /// A user is gone.
    pub fn unsettle(&self, uid: &str) {
        self.memory().settled.remove(uid);
    }

    /// Whether this process has published the user.
    #[must_use]
    pub fn is_settled(&self, uid: &str) -> bool {
        self.memory().settled.contains(uid)
    }

    /// Whether this process has published the realm's own record as it should be now.
    #[must_use]
    pub fn is_introduced(&self) -> bool {
        let memory = self.memory();
        memory.introduced == Some(memory.changes)
    }

    /// The realm's own record should be another one.
    pub fn outdate(&self) {
        self.memory().changes += 1;
    }

    /// Ask before working out what the realm's own record should be, and give it to
    /// [`Realm::introduce`] when that is published.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.memory().changes
    }

    /// The realm's own record is published as it should have been after so many changes.
    pub fn introduce(&self, changes: u64) {
        self.memory().introduced = Some(changes);
    }

    /// Begins a refill, unless one is under way.
    #[must_use]
    pub fn begin_refill(&self) -> bool {
        !std::mem::replace(&mut self.memory().refilling, true)
    }

    /// Ends a refill.
    pub fn end_refill(&self) {
        self.memory().refilling = false;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub news: Notify,
}

#[derive(Default)]
struct State {
    /// The UID of each namespace that is known.
    namespaces: HashMap<String, String>,
    realms: HashMap<String, Arc<Realm>>,
    /// Realms whose namespace is gone, but not yet their keys.
    abandoned: HashSet<RealmId>,
    /// Namespaces whose realm was asked for once.
    asked_for: HashSet<String>,
}

impl Realms {
    /// No realms yet. `store` is of no realm in particular.
    #[must_use]
    pub fn new(
        client: Client,
        master: MasterKey,
        installation: Installation,
        store: RedisStore,
    ) -> Self {
        Self { client, master, installation, store, state: Mutex::default(), news: Notify::new() }
    }

    /// The realm of `namespace`, made when it is asked for first.
    ///
    /// # Errors
    /// When there is no such namespace, or the API server does not tell.
    pub async fn of(&self, namespace: &str) -> Result<Arc<Realm>, RealmError> {
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
        self.news.notify_one();
        Ok(realm.clone())
    }

    fn realm(&self, namespace: &str, id: RealmId) -> Realm {
        let key = self.master.realm_key(&id, GENERATION);
        let store = self.store_of(&id);
        Realm {
            namespace: namespace.to_owned(),
            publisher: Publisher::new(Store::Redis(store.clone()), key.keys(&id)),
            store,
            key,
            id,
            gate: RwLock::default(),
            readiness: watch::Sender::new(Readiness::Pending),
            memory: Mutex::default(),
        }
    }

    /// How the services of the namespace with this UID log in to Redis for a realm.
    #[must_use]
    pub fn login(&self, id: &RealmId, namespace: &str) -> Login {
        self.master.login(id, GENERATION, namespace)
    }

    /// The key that tokens of a realm are signed with where nobody gave another one.
    #[must_use]
    pub fn token_key(&self, id: &RealmId) -> Ed25519Key {
        self.master.token_key(id, GENERATION)
    }

    fn names(&self, id: &RealmId) -> RealmNames {
        RealmNames::new(&self.installation, id)
    }

    /// The store of any realm.
    #[must_use]
    pub fn store_of(&self, id: &RealmId) -> RedisStore {
        self.store.for_realm(self.names(id))
    }

    /// The store, for what concerns no realm in particular.
    #[must_use]
    pub fn store(&self) -> &RedisStore {
        &self.store
    }

    /// The names in Redis of these realms.
    #[must_use]
    pub fn all_names(&self, realms: &[Arc<Realm>]) -> Vec<RealmNames> {
        realms.iter().map(|realm| self.names(&realm.id)).collect()
    }

    /// The realm of `namespace`, if it was asked for before.
    #[must_use]
    pub fn get(&self, namespace: &str) -> Option<Arc<Realm>> {
        self.state().realms.get(namespace).cloned()
    }

    /// Every realm that was asked for.
    #[must_use]
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
        state.abandon(name, Some(uid));
        state.namespaces.insert(name.to_owned(), uid.to_owned());
        let is_realm = state.realms.get(name).is_some_and(|realm| realm.id.as_str() == uid);
        state.asked_for.contains(name) && !is_realm
    }

    /// The namespace that is this realm.
    #[must_use]
    pub fn namespace_of(&self, realm: &RealmId) -> Option<String> {
        let state = self.state();
        let found = state.namespaces.iter().find(|(_, uid)| uid.as_str() == realm.as_str());
        found.map(|(name, _)| name.clone())
    }

    /// A namespace is gone.
    pub fn namespace_gone(&self, name: &str) {
        let mut state = self.state();
        state.namespaces.remove(name);
        state.abandon(name, None);
    }

    /// Of `realms`, those that are of no namespace: to be cleared. Call it only with a complete
    /// list of namespaces.
    #[must_use]
    pub fn strangers(&self, realms: impl IntoIterator<Item = RealmId>) -> Vec<RealmId> {
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
    #[must_use]
    pub fn abandoned(&self) -> Vec<RealmId> {
        self.state().abandoned.iter().cloned().collect()
    }

    /// The keys of an abandoned realm are gone.
    pub fn forget(&self, realm: &RealmId) {
        self.state().abandoned.remove(realm);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives up the realm of a namespace, unless it is the one with this UID. Tells whether there
    /// was one.
    fn abandon(&mut self, namespace: &str, except: Option<&str>) -> bool {
        let other =
            self.realms.get(namespace).is_some_and(|realm| except != Some(realm.id.as_str()));
        let realm = if other { self.realms.remove(namespace) } else { None };
        let given_up = realm.map(|realm| self.abandoned.insert(realm.id.clone()));
        given_up.is_some()
    }
}

impl std::fmt::Debug for Realms {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Realms({})", self.installation)
    }
}
