//! Holds for each realm its keys, its publisher, and the state of its content in Redis. A namespace
//! with users is a realm.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use tokio::sync::{Notify, RwLock};
use twofactor_core::names::{Installation, Pseudonym, RealmId, RealmNames};
use twofactor_core::proof::ProofKeys;
use twofactor_store::Store;
use twofactor_store::publisher::Publisher;
use twofactor_store::redis::RedisStore;

use super::realm_keys::{KeyRing, KeyState};
use crate::k8s::request::{self, ApiError};

/// The state of a realm in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Unknown, or being filled.
    Pending,
    /// Complete on a checked node.
    Ready,
    /// Redis does not answer.
    Unavailable,
    /// Another operator owns the data in Redis.
    OwnedByAnother,
}

/// What users and realms report while another operator owns the data in Redis.
pub const OWNED_BY_ANOTHER: &str =
    "Another operator of this installation owns the data in Redis, so nothing is published";

/// One realm.
#[derive(Debug)]
pub struct Realm {
    /// The namespace of its users.
    pub namespace: String,
    /// The namespace's UID.
    pub id: RealmId,
    /// Publishes users and the record of the realm.
    pub publisher: Publisher,
    /// The store that `publisher` writes to.
    pub store: RedisStore,
    /// The keys that prove the Secrets of users.
    pub proofs: Arc<ProofKeys>,
    /// Held shared to publish one user, and exclusively to publish from a list. An exclusive holder
    /// reads and writes without a change in between, so that a list never overwrites what a
    /// reconciliation has just published.
    pub publish_lock: RwLock<()>,
    /// Held shared to publish, and exclusively to remove, so that a removal never deletes what was
    /// just published for the next owner of a username. It is never held while the API server is
    /// asked, because a removal waits for it.
    pub removal_lock: RwLock<()>,
    /// The state in Redis, and since when.
    readiness: Mutex<(Readiness, Instant)>,
    /// When credentials of this realm were changed last, as far as this process knows.
    credentials_changed: Mutex<Instant>,
    /// Wakes the task that requeues users of realms that are ready.
    became_ready: Arc<Notify>,
    /// Whether the namespace was deleted.
    is_deleted: AtomicBool,
    deleted: Arc<DeletedRealms>,
    state: Mutex<RealmState>,
}

/// Realms whose namespace was deleted, but not yet their keys.
type DeletedRealms = Mutex<HashSet<RealmId>>;

#[derive(Debug, Default)]
struct RealmState {
    /// Usernames without an owner, whose keys must be removed before another user is published
    /// there.
    pending_removals: HashSet<Pseudonym>,
    /// UIDs of users that this process has published. A refill has to publish them again.
    published: HashSet<String>,
    /// Whether a refill is running.
    refilling: bool,
    /// Whether the users in Redis have to be checked at once.
    is_check_requested: bool,
    /// When the users in Redis are compared next; at once if nothing is set.
    next_comparison: Option<Instant>,
    /// Counts the changes of the realm's record.
    policy_version: u64,
    /// The `policy_version` that this process published last.
    published_version: Option<u64>,
}

impl Realm {
    /// The state of the realm in Redis.
    pub fn readiness(&self) -> Readiness {
        self.readiness_since().0
    }

    /// The state of the realm in Redis, and for how long it has had it.
    pub fn readiness_since(&self) -> (Readiness, Duration) {
        let (readiness, since) = *self.readiness.lock().unwrap_or_else(PoisonError::into_inner);
        (readiness, since.elapsed())
    }

    /// Sets the state of the realm in Redis. Returns whether it has changed.
    pub fn set_readiness(&self, readiness: Readiness) -> bool {
        let mut known = self.readiness.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = known.0 != readiness;
        if changed {
            *known = (readiness, Instant::now());
            self.became_ready.notify_one();
        }
        changed
    }

    /// Records that credentials of this realm were changed, which sidecars read only when the
    /// kubelet has updated them.
    pub fn credentials_changed(&self) {
        *self.last_change() = Instant::now();
    }

    /// For how long no credentials of this realm have changed.
    pub fn credentials_unchanged_for(&self) -> Duration {
        self.last_change().elapsed()
    }

    fn last_change(&self) -> MutexGuard<'_, Instant> {
        self.credentials_changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that this process has written to the realm. Returns whether its keys have to be
    /// removed again, because the namespace was deleted meanwhile.
    pub fn written(&self) -> bool {
        let is_deleted = self.is_deleted.load(Ordering::SeqCst);
        if is_deleted {
            locked(&self.deleted).insert(self.id.clone());
        }
        is_deleted
    }

    /// Schedules the removal of the keys of a username without an owner.
    pub fn schedule_removal(&self, user: Pseudonym) {
        self.state().pending_removals.insert(user);
    }

    /// The users whose keys have to be removed.
    pub fn pending_removals(&self) -> Vec<Pseudonym> {
        self.state().pending_removals.iter().copied().collect()
    }

    /// The number of users whose keys have to be removed.
    pub fn removals(&self) -> usize {
        self.state().pending_removals.len()
    }

    /// Whether the keys of this user have to be removed first.
    pub fn is_removal_pending(&self, user: &Pseudonym) -> bool {
        self.state().pending_removals.contains(user)
    }

    /// Records that the keys of these users were removed.
    pub fn removed(&self, users: &[Pseudonym]) {
        let mut state = self.state();
        for user in users {
            state.pending_removals.remove(user);
        }
    }

    /// Remembers that this process has published the user.
    pub fn remember_published(&self, uid: &str) {
        let mut state = self.state();
        if !state.published.contains(uid) {
            state.published.insert(uid.to_owned());
        }
    }

    /// Forgets a deleted user.
    pub fn forget_published(&self, uid: &str) {
        self.state().published.remove(uid);
    }

    /// Whether this process has published the user.
    pub fn was_published(&self, uid: &str) -> bool {
        self.state().published.contains(uid)
    }

    /// Whether this process has published the current record of the realm.
    pub fn is_policy_published(&self) -> bool {
        let state = self.state();
        state.published_version == Some(state.policy_version)
    }

    /// Records that the realm's record has changed.
    pub fn policy_changed(&self) {
        self.state().policy_version += 1;
    }

    /// The version of the realm's record. Read it before the record is built, and pass it to
    /// [`Realm::policy_published`] afterwards.
    pub fn policy_version(&self) -> u64 {
        self.state().policy_version
    }

    /// Records that the record of this version was published.
    pub fn policy_published(&self, version: u64) {
        self.state().published_version = Some(version);
    }

    /// Requests a check of the users at once, for spoilt data.
    pub fn request_check(&self) {
        self.state().is_check_requested = true;
    }

    /// Takes the request of [`Realm::request_check`].
    pub fn take_check_request(&self) -> bool {
        std::mem::take(&mut self.state().is_check_requested)
    }

    /// When the users in Redis are compared next; nothing if at once.
    pub fn next_comparison(&self) -> Option<Instant> {
        self.state().next_comparison
    }

    /// Sets when the users in Redis are compared next.
    pub fn compare_next(&self, at: Option<Instant>) {
        self.state().next_comparison = at;
    }

    /// Whether a refill is running.
    pub fn is_refilling(&self) -> bool {
        self.state().refilling
    }

    /// Starts a refill, unless one is running.
    pub fn begin_refill(&self) -> bool {
        !std::mem::replace(&mut self.state().refilling, true)
    }

    /// Records the end of a refill.
    pub fn end_refill(&self) {
        self.state().refilling = false;
    }

    fn state(&self) -> MutexGuard<'_, RealmState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a namespace has no realm.
#[derive(Debug, Error)]
pub enum RealmError {
    /// The namespace does not exist.
    #[error("the namespace does not exist")]
    Gone,
    /// The UID of the namespace is not a valid identifier.
    #[error("the UID of the namespace cannot be used as the name of a realm")]
    Identifier,
    /// The API server did not answer.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// All realms.
pub struct Realms {
    client: Client,
    /// The keys of realms.
    pub keys: KeyRing,
    proofs: Arc<ProofKeys>,
    /// The name of the installation.
    pub installation: Installation,
    store: RedisStore,
    deleted: Arc<DeletedRealms>,
    state: Mutex<State>,
    /// Wakes the monitor, because a realm is new or its record has changed.
    pub changed: Notify,
    /// Wakes the task that requeues parked users, because a realm may have become ready.
    pub became_ready: Arc<Notify>,
    /// Wakes the task that checks the users of realms for which that was requested.
    pub check_requested: Notify,
}

#[derive(Default)]
struct State {
    /// The UID of each namespace that is known.
    namespaces: HashMap<String, String>,
    realms: HashMap<String, Arc<Realm>>,
    /// Namespaces whose realm was requested once.
    asked_for: HashSet<String>,
}

impl Realms {
    /// Returns the registry without realms. `store` belongs to no realm in particular.
    pub fn new(
        client: Client,
        keys: KeyRing,
        installation: Installation,
        store: RedisStore,
    ) -> Self {
        Self {
            client,
            proofs: Arc::new(keys.proofs()),
            keys,
            installation,
            store,
            deleted: Arc::default(),
            state: Mutex::default(),
            changed: Notify::new(),
            became_ready: Arc::default(),
            check_requested: Notify::new(),
        }
    }

    /// Returns the realm of `namespace`, and creates it at the first request.
    pub async fn get_or_create(&self, namespace: &str) -> Result<Arc<Realm>, RealmError> {
        if let Some(realm) = self.get(namespace) {
            return Ok(realm);
        }
        let known = self.state().namespaces.get(namespace).cloned();
        let uid = if let Some(uid) = known {
            uid
        } else {
            // The watches are independent, so users may be known before their namespace.
            let namespaces = Api::<Namespace>::all(self.client.clone());
            let found =
                request::optional(request::within(namespaces.get_metadata(namespace)).await)?;
            found.and_then(|namespace| namespace.uid()).ok_or(RealmError::Gone)?
        };
        let id = RealmId::from_str(&uid).map_err(|_| RealmError::Identifier)?;
        let mut state = self.state();
        if state.namespaces.get(namespace).is_some_and(|known| *known != uid) {
            // The namespace was replaced in between.
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
        let store = self.store_of(&id);
        Realm {
            namespace: namespace.to_owned(),
            publisher: Publisher::new(Store::Redis(store.clone()), self.keys.realm_keys(&id)),
            store,
            proofs: self.proofs.clone(),
            id,
            publish_lock: RwLock::default(),
            removal_lock: RwLock::default(),
            readiness: Mutex::new((Readiness::Pending, Instant::now())),
            // An earlier process may have changed them.
            credentials_changed: Mutex::new(Instant::now()),
            became_ready: self.became_ready.clone(),
            is_deleted: AtomicBool::new(false),
            deleted: self.deleted.clone(),
            state: Mutex::default(),
        }
    }

    fn names(&self, id: &RealmId) -> RealmNames {
        RealmNames::new(&self.installation, id)
    }

    /// The store of any realm.
    pub fn store_of(&self, id: &RealmId) -> RedisStore {
        self.store.for_realm(self.names(id))
    }

    /// Names of no realm in particular.
    pub fn names_of_no_realm(&self) -> RealmNames {
        self.store.names().clone()
    }

    /// The store of no realm in particular.
    pub fn store(&self) -> &RedisStore {
        &self.store
    }

    /// The realm of `namespace`, if it was requested before.
    pub fn get(&self, namespace: &str) -> Option<Arc<Realm>> {
        self.state().realms.get(namespace).cloned()
    }

    /// All requested realms.
    pub fn all(&self) -> Vec<Arc<Realm>> {
        self.state().realms.values().cloned().collect()
    }

    /// Forgets the keys of realms that were not requested, if `is_unneeded` says so. A realm that
    /// is requested meanwhile was created either before, and keeps its keys, or after.
    pub fn forget_keys(&self, is_unneeded: impl Fn(&KeyState) -> bool) {
        let state = self.state();
        let used: HashSet<&RealmId> = state.realms.values().map(|realm| &realm.id).collect();
        for (id, keys) in self.keys.all() {
            if !used.contains(&id) && is_unneeded(&keys) {
                self.keys.forget(&id);
            }
        }
    }

    /// Records a namespace. Returns whether it replaces another one of the same name whose realm
    /// was requested, so that its users have to be reconciled again.
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

    /// The namespace of a realm.
    pub fn namespace_of(&self, realm: &RealmId) -> Option<String> {
        let state = self.state();
        let found = state.namespaces.iter().find(|(_, uid)| uid.as_str() == realm.as_str());
        found.map(|(name, _)| name.clone())
    }

    /// Records that a namespace was deleted.
    pub fn namespace_gone(&self, name: &str) {
        let mut state = self.state();
        state.namespaces.remove(name);
        state.delete(name, None);
    }

    /// Returns the realms without a namespace. The list of namespaces must be complete.
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

    /// The realms whose namespace was deleted, but not yet their keys.
    pub fn deleted(&self) -> Vec<RealmId> {
        locked(&self.deleted).iter().cloned().collect()
    }

    /// Records that the keys of a deleted realm are being removed.
    pub fn forget(&self, realm: &RealmId) {
        locked(&self.deleted).remove(realm);
    }

    /// Records that the keys of a deleted realm could not be removed.
    pub fn not_removed(&self, realm: &RealmId) {
        locked(&self.deleted).insert(realm.clone());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Deletes the realm of a namespace, unless it has this UID.
    fn delete(&mut self, namespace: &str, except: Option<&str>) {
        let other =
            self.realms.get(namespace).is_some_and(|realm| except != Some(realm.id.as_str()));
        if other && let Some(realm) = self.realms.remove(namespace) {
            realm.is_deleted.store(true, Ordering::SeqCst);
            realm.written();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Realms {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Realms({})", self.installation)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;
    use twofactor_core::key::MasterKey;
    use twofactor_store::clock::Clock;

    use super::*;

    #[tokio::test]
    async fn the_keys_of_a_realm_that_is_requested_meanwhile_are_not_forgotten() {
        let mut random = UnwrapErr(SysRng);
        let (old, new) = (MasterKey::generate(&mut random), MasterKey::generate(&mut random));
        let first = old.fingerprint();
        let ids = ["requested", "unused", "current"].map(|id| id.parse::<RealmId>().unwrap());
        let masters = [&first, &first, &new.fingerprint()];
        let states = ids.iter().cloned().zip(masters.map(|master| KeyState::first(master)));
        let keys = KeyRing::new(new, Some(old), first, states.collect()).unwrap();
        let installation: Installation = "here".parse().unwrap();
        let names = RealmNames::new(&installation, &ids[0]);
        let store = RedisStore::new("redis://127.0.0.1:1/", names, Clock::System).unwrap();
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let realms = Realms::new(Client::try_from(nowhere).unwrap(), keys, installation, store);
        assert!(!realms.namespace_seen("people", "requested"));
        let realm = realms.get_or_create("people").await.unwrap();
        let before = realms.keys.of(&realm.id);

        realms.forget_keys(|state| realms.keys.needs_previous_master(state));
        assert_eq!(realms.keys.forgotten(), [ids[1].clone()]);
        assert_eq!(realms.keys.of(&realm.id), before);
        assert_eq!(realms.keys.all().len(), 2, "the current master key derives the others");
        // Requested before the old state is removed from the Secret, it has another one.
        realms.keys.set(&ids[1], KeyState::first("new"));
        assert!(realms.keys.forgotten().is_empty());
    }
}
