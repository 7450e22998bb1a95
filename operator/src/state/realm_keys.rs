//! Holds the generation of each realm's keys, and derives the keys from the master key. No I/O.
//!
//! A realm gets the next generation in two steps, so that no verify fails: it is announced to the
//! services, which then have both, and then it seals. What the generation before has sealed is
//! sealed again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use twofactor_core::key::{Login, MasterKey, NameKeys, RealmKey, RealmKeys};
use twofactor_core::names::RealmId;
use twofactor_core::proof::ProofKeys;
use twofactor_core::secret::SecretText;
use twofactor_core::token::Ed25519Key;

/// Where a realm is on the way to the next generation of its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Services have one generation.
    #[default]
    Steady,
    /// Services are given the next generation beside the current one, which seals.
    Announced,
    /// The current generation seals, and what the one before has sealed is sealed again. Services
    /// have both.
    Resealing,
}

/// The generation of a realm's keys. What is as in [`KeyState::first`] is not stored, because one
/// Secret holds the states of all realms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    /// The generation that seals records.
    pub generation: u32,
    /// Where the realm is on the way to the next one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub phase: Phase,
    /// Start of the phase, in milliseconds of Unix time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub since: u64,
    /// When the generation that is under way was announced, in milliseconds of Unix time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub announced: u64,
    /// The last request of an administrator that was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Whether another generation was requested in the meantime.
    #[serde(default, skip_serializing_if = "is_default")]
    pub again: bool,
    /// The fingerprint of the master key that the generation is derived from.
    pub master: String,
    /// The same of the generation before, while its keys are in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_master: Option<String>,
    /// The keys of names, if they were derived from a master key that was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<SecretText>,
    /// The newest generation that each allowed namespace may have been given, by its UID. It is
    /// stored before the namespace gets it, so that a withdrawal depends on nothing that an editor
    /// of the namespace can change. The realm's own namespace is not in it, because it cannot be
    /// withdrawn.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub given: BTreeMap<String, u32>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl KeyState {
    /// The state of a realm whose keys were never replaced.
    pub fn first(master: &str) -> Self {
        Self {
            generation: 1,
            phase: Phase::Steady,
            since: 0,
            announced: 0,
            request: None,
            again: false,
            master: master.to_owned(),
            previous_master: None,
            names: None,
            given: BTreeMap::new(),
        }
    }

    /// The newest generation that services are given.
    pub fn newest(&self) -> u32 {
        self.generation + u32::from(self.phase == Phase::Announced)
    }

    /// Announces the next generation, after the one that is under way if there is one.
    pub fn raise(&mut self, now: u64) {
        if self.phase == Phase::Steady {
            (self.phase, self.since, self.announced) = (Phase::Announced, now, now);
        } else {
            self.again = true;
        }
    }

    /// Records that the namespace with this UID gets the newest generation.
    pub fn give(&mut self, namespace: String) {
        self.given.insert(namespace, self.newest());
    }

    /// Whether it is recorded that a namespace gets the newest generation.
    pub fn has_given(&self, namespace: &str) -> bool {
        self.given.get(namespace) == Some(&self.newest())
    }

    /// Forgets the namespaces that are not `allowed`. Announces the next generation if one of them
    /// exists and may have the newest one; without a namespace, its Secrets are gone too.
    pub fn withdraw(
        &mut self,
        allowed: &BTreeSet<String>,
        exists: impl Fn(&str) -> bool,
        now: u64,
    ) {
        let newest = self.newest();
        let mut is_known = false;
        self.given.retain(|namespace, generation| {
            let stays = allowed.contains(namespace);
            is_known |= !stays && *generation == newest && exists(namespace);
            stays
        });
        if is_known {
            self.raise(now);
        }
    }

    /// Makes the announced generation the one that seals. It is derived from `master`.
    pub fn reseal(&mut self, now: u64, master: &str) {
        self.generation += 1;
        (self.phase, self.since) = (Phase::Resealing, now);
        self.previous_master = Some(std::mem::replace(&mut self.master, master.to_owned()));
    }

    /// Forgets the generation before, because nothing is sealed with it.
    pub fn complete(&mut self, now: u64) {
        (self.phase, self.since, self.previous_master) = (Phase::Steady, now, None);
        self.given.retain(|_, generation| *generation >= self.generation);
        if std::mem::take(&mut self.again) {
            self.raise(now);
        }
    }
}

/// The master key, the one that it replaces, and the generations of all realms.
#[derive(Debug)]
pub struct KeyRing {
    current: MasterKey,
    previous: Option<MasterKey>,
    fingerprint: String,
    state: Mutex<State>,
    /// Held while a state is changed and stored.
    pub updates: tokio::sync::Mutex<()>,
    /// Realms whose record of given generations may have to change.
    noted: Mutex<HashSet<String>>,
    /// Wakes the task that changes it.
    pub is_noted: Notify,
}

#[derive(Debug)]
struct State {
    /// The fingerprint of the master key of realms whose keys were never replaced.
    first_master: String,
    realms: HashMap<RealmId, KeyState>,
    /// Realms whose state was forgotten, and may still be stored.
    forgotten: HashSet<RealmId>,
}

impl KeyRing {
    /// Returns the keys, or the fingerprint of a master key that is needed and missing.
    pub fn new(
        current: MasterKey,
        previous: Option<MasterKey>,
        first_master: String,
        realms: HashMap<RealmId, KeyState>,
    ) -> Result<Self, String> {
        let fingerprint = current.fingerprint();
        let known = |wanted: &String| {
            *wanted == fingerprint
                || previous.as_ref().is_some_and(|key| key.fingerprint() == *wanted)
        };
        let of_realms = realms.values().flat_map(|state| {
            [Some(&state.master), state.previous_master.as_ref()].into_iter().flatten()
        });
        let missing = [&first_master].into_iter().chain(of_realms).find(|wanted| !known(wanted));
        if let Some(missing) = missing {
            return Err(missing.clone());
        }
        let state = Mutex::new(State { first_master, realms, forgotten: HashSet::new() });
        Ok(Self {
            current,
            previous,
            fingerprint,
            state,
            updates: tokio::sync::Mutex::default(),
            noted: Mutex::default(),
            is_noted: Notify::new(),
        })
    }

    /// The fingerprint of the current master key.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The keys that prove the Secrets of users.
    pub fn proofs(&self) -> ProofKeys {
        let previous = self.previous.as_ref().map(MasterKey::proof_key);
        ProofKeys::new(self.current.proof_key(), previous)
    }

    /// The master key of realms whose keys were never replaced.
    pub fn first_master(&self) -> String {
        self.state().first_master.clone()
    }

    /// Derives the keys of realms whose keys were never replaced from the current master key from
    /// now on.
    pub fn forget_previous_master(&self) {
        self.state().first_master.clone_from(&self.fingerprint);
    }

    /// The state of a realm's keys.
    pub fn of(&self, realm: &RealmId) -> KeyState {
        let state = self.state();
        let known = state.realms.get(realm).cloned();
        known.unwrap_or_else(|| KeyState::first(&state.first_master))
    }

    /// Sets the state of a realm's keys.
    pub fn set(&self, realm: &RealmId, state: KeyState) {
        self.state().realms.insert(realm.clone(), state);
    }

    /// Forgets the state of a realm that is gone.
    pub fn forget(&self, realm: &RealmId) {
        let mut state = self.state();
        if state.realms.remove(realm).is_some() {
            state.forgotten.insert(realm.clone());
        }
    }

    /// Realms whose state was forgotten and may still be stored, and that have no other since.
    pub fn forgotten(&self) -> Vec<RealmId> {
        let state = self.state();
        let forgotten = state.forgotten.iter();
        forgotten.filter(|realm| !state.realms.contains_key(*realm)).cloned().collect()
    }

    /// Records that the states of realms are stored no longer.
    pub fn removed(&self, realms: &[RealmId]) {
        let mut state = self.state();
        for realm in realms {
            state.forgotten.remove(realm);
        }
    }

    /// Records that a realm's record of given generations may have to change, because other
    /// namespaces are allowed, or ask for credentials.
    pub fn note(&self, realm: &str) {
        self.noted().insert(realm.to_owned());
        self.is_noted.notify_one();
    }

    /// Takes the realms of [`KeyRing::note`].
    pub fn take_noted(&self) -> HashSet<String> {
        std::mem::take(&mut self.noted())
    }

    fn noted(&self) -> MutexGuard<'_, HashSet<String>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The states of all realms that have one: their keys were replaced, or given to another
    /// namespace.
    pub fn all(&self) -> Vec<(RealmId, KeyState)> {
        let realms = self.state().realms.clone();
        realms.into_iter().collect()
    }

    /// Whether a realm's keys are derived from the master key before this one.
    pub fn is_of_previous_master(&self, state: &KeyState) -> bool {
        state.master != self.fingerprint
    }

    /// Whether a generation that is in use is derived from the master key before this one.
    pub fn needs_previous_master(&self, state: &KeyState) -> bool {
        let before = state.previous_master.as_ref();
        self.is_of_previous_master(state) || before.is_some_and(|key| *key != self.fingerprint)
    }

    /// The keys of a realm, of every generation that is in use.
    pub fn realm_keys(&self, realm: &RealmId) -> RealmKeys {
        let state = self.of(realm);
        let key = |generation: u32| self.master_of(&state, generation).realm_key(realm, generation);
        let generations = generations(&state);
        let mut keys = generations.iter().map(|generation| key(*generation).sealing_key(realm));
        let sealing = keys.next().unwrap_or_else(|| key(state.generation).sealing_key(realm));
        RealmKeys::new(realm, self.name_keys(realm, &state), sealing, keys.collect())
    }

    /// The keys of a realm's names, which no generation changes.
    pub fn name_keys(&self, realm: &RealmId, state: &KeyState) -> NameKeys {
        let kept = state.names.as_ref().map(|names| NameKeys::from_text(names.expose_secret()));
        match kept {
            Some(Ok(names)) => names,
            _ => self.master(&state.master).realm_key(realm, 1).name_keys(realm),
        }
    }

    /// The key that sidecars of version 0.1 read, while it opens records.
    pub fn first_key(&self, realm: &RealmId) -> Option<RealmKey> {
        let state = self.of(realm);
        let is_first = state.generation == 1 && state.names.is_none();
        is_first.then(|| self.master(&state.master).realm_key(realm, 1))
    }

    /// The logins to Redis for the services of the namespace with this UID, the one that they are
    /// given first.
    pub fn logins(&self, realm: &RealmId, namespace: &str) -> Vec<Login> {
        let state = self.of(realm);
        let mut generations = generations(&state);
        generations.sort_unstable_by(|one, other| other.cmp(one));
        let login =
            |generation| self.master_of(&state, generation).login(realm, generation, namespace);
        generations.into_iter().map(login).collect()
    }

    /// The key of tokens of a realm that configures no other.
    pub fn token_key(&self, realm: &RealmId) -> Ed25519Key {
        let state = self.of(realm);
        self.master(&state.master).token_key(realm, state.generation)
    }

    /// The master key of a generation that is in use.
    fn master_of(&self, state: &KeyState, generation: u32) -> &MasterKey {
        if generation > state.generation {
            return &self.current;
        }
        let before = state.previous_master.as_ref().filter(|_| generation < state.generation);
        self.master(before.unwrap_or(&state.master))
    }

    fn master(&self, fingerprint: &str) -> &MasterKey {
        match &self.previous {
            Some(previous) if fingerprint != self.fingerprint => previous,
            _ => &self.current,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The generations in use, the one that seals first.
fn generations(state: &KeyState) -> Vec<u32> {
    let other = match state.phase {
        Phase::Steady => None,
        Phase::Announced => Some(state.generation + 1),
        Phase::Resealing => Some(state.generation - 1),
    };
    [state.generation].into_iter().chain(other).collect()
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    fn generate() -> MasterKey {
        MasterKey::generate(&mut UnwrapErr(SysRng))
    }

    fn ring(current: &MasterKey, previous: Option<&MasterKey>, state: &KeyState) -> KeyRing {
        let copy =
            |key: &MasterKey| MasterKey::from_base64(key.to_base64().expose_secret()).unwrap();
        let realms = HashMap::from([(id(), state.clone())]);
        let first = previous.unwrap_or(current).fingerprint();
        KeyRing::new(copy(current), previous.map(copy), first, realms).unwrap()
    }

    fn id() -> RealmId {
        "people".parse().unwrap()
    }

    #[test]
    fn the_next_generation_is_announced_then_seals_and_then_the_old_one_is_forgotten() {
        let master = generate();
        let mut state = KeyState::first(&master.fingerprint());
        assert_eq!((state.newest(), generations(&state)), (1, vec![1]));
        state.raise(10);
        assert_eq!((state.newest(), generations(&state), state.since), (2, vec![1, 2], 10));
        state.reseal(20, &master.fingerprint());
        assert_eq!((state.newest(), generations(&state)), (2, vec![2, 1]));
        state.complete(30);
        assert_eq!((state.newest(), generations(&state)), (2, vec![2]));
    }

    #[test]
    fn a_generation_that_is_requested_meanwhile_follows_the_one_under_way() {
        let mut state = KeyState::first("a");
        state.raise(1);
        state.raise(2);
        assert_eq!((state.newest(), state.since, state.again), (2, 1, true));
        state.reseal(3, "a");
        state.complete(4);
        assert_eq!((state.newest(), state.phase, state.again), (3, Phase::Announced, false));
    }

    #[test]
    fn a_withdrawn_namespace_costs_a_generation_only_if_it_may_have_the_newest_one() {
        let allowed = |names: &[&str]| -> BTreeSet<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let give = |state: &mut KeyState, names: &[&str]| {
            for name in names {
                state.give((*name).to_owned());
            }
        };
        let mut state = KeyState::first("a");
        give(&mut state, &["kms", "vault", "short-lived"]);
        assert!(state.has_given("kms") && !state.has_given("forged"));
        // It is deleted, and its Secrets with it.
        state.withdraw(&allowed(&["kms", "vault"]), |uid| uid != "short-lived", 1);
        assert_eq!((state.phase, state.given.len()), (Phase::Steady, 2));
        state.withdraw(&allowed(&["vault"]), |_| true, 2);
        assert_eq!((state.phase, state.newest(), state.given.len()), (Phase::Announced, 2, 1));
        // The next one has not been given yet, so that it needs no other.
        assert!(!state.has_given("vault"));
        state.withdraw(&allowed(&[]), |_| true, 3);
        assert_eq!((state.again, state.given.len()), (false, 0));
        give(&mut state, &["vault", "kms"]);
        state.withdraw(&allowed(&["kms"]), |_| true, 4);
        assert!(state.again, "it has what was announced");
        state.given.insert("late".to_owned(), 1);
        state.reseal(5, "a");
        state.complete(6);
        // What is retired is forgotten.
        assert_eq!((state.newest(), state.given.get("kms"), state.given.len()), (3, Some(&2), 1));
    }

    #[test]
    fn a_realm_is_noted_until_it_is_taken_and_a_forgotten_state_until_it_is_removed() {
        let master = generate();
        let keys = ring(&master, None, &KeyState::first(&master.fingerprint()));
        keys.note("people");
        keys.note("people");
        assert_eq!(keys.take_noted(), HashSet::from(["people".to_owned()]));
        assert!(keys.take_noted().is_empty());
        keys.forget(&id());
        keys.forget(&id());
        assert_eq!(keys.forgotten(), [id()]);
        // A state that was set since must not be removed with the old one.
        keys.set(&id(), KeyState::first("b"));
        assert!(keys.forgotten().is_empty());
        keys.forget(&id());
        keys.removed(&keys.forgotten());
        assert!(keys.forgotten().is_empty() && keys.all().is_empty());
    }

    #[test]
    fn names_stay_and_logins_and_token_keys_do_not() {
        let master = generate();
        let mut state = KeyState::first(&master.fingerprint());
        let before = ring(&master, None, &state);
        let (keys, logins) = (before.realm_keys(&id()), before.logins(&id(), "kms"));
        state.raise(1);
        let announced = ring(&master, None, &state);
        assert_eq!(announced.logins(&id(), "kms")[1..], logins);
        assert!(announced.token_key(&id()) == before.token_key(&id()));
        assert!(announced.first_key(&id()).is_some());
        state.reseal(2, &master.fingerprint());
        let resealing = ring(&master, None, &state);
        assert_eq!(resealing.logins(&id(), "kms"), announced.logins(&id(), "kms"));
        assert!(resealing.token_key(&id()) != before.token_key(&id()));
        assert!(resealing.first_key(&id()).is_none());
        state.complete(3);
        let after = ring(&master, None, &state);
        assert!(after.realm_keys(&id()).has_names_of(&keys));
        assert_eq!(after.realm_keys(&id()).generation(), 2);
        assert!(!after.logins(&id(), "kms").contains(&logins[0]));
    }

    #[test]
    fn a_new_master_key_derives_the_next_generation_and_the_names_stay() {
        let (old, new) = (generate(), generate());
        let mut state = KeyState::first(&old.fingerprint());
        let before = ring(&old, None, &state).realm_keys(&id());
        let replaced = ring(&new, Some(&old), &state);
        assert!(replaced.is_of_previous_master(&state));
        assert_eq!(
            replaced.realm_keys(&id()).to_text().expose_secret(),
            before.to_text().expose_secret()
        );
        state.names = Some(replaced.name_keys(&id(), &state).to_text());
        state.raise(1);
        let given = ring(&new, Some(&old), &state);
        let expected = new.login(&id(), 2, "kms");
        assert_eq!(given.logins(&id(), "kms")[0], expected);
        state.reseal(2, &new.fingerprint());
        assert_eq!(ring(&new, Some(&old), &state).logins(&id(), "kms")[0], expected);
        state.complete(3);
        let alone = KeyRing::new(
            MasterKey::from_base64(new.to_base64().expose_secret()).unwrap(),
            None,
            new.fingerprint(),
            HashMap::from([(id(), state.clone())]),
        );
        assert!(alone.unwrap().realm_keys(&id()).has_names_of(&before));
    }

    #[test]
    fn a_master_key_that_is_needed_and_missing_is_named_by_its_fingerprint() {
        let (old, new) = (generate(), generate());
        let realms = HashMap::from([(id(), KeyState::first(&old.fingerprint()))]);
        let missing = KeyRing::new(new, None, old.fingerprint(), realms).unwrap_err();
        assert_eq!(missing, old.fingerprint());
    }

    #[test]
    fn a_state_comes_back_from_its_text() {
        let mut state = KeyState::first("a");
        (state.request, state.again) = (Some("now".to_owned()), true);
        state.names = Some(SecretText::new("secret".to_owned()));
        state.give("kms".to_owned());
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<KeyState>(&text).unwrap(), state);
        assert!(!format!("{state:?}").contains("secret\""));
        // One Secret holds the states of thousands of realms.
        let mut state = KeyState::first(&"f".repeat(32));
        state.give("u".repeat(36));
        let length = serde_json::to_string(&state).unwrap().len();
        assert!(length <= 120, "{length}");
    }
}
