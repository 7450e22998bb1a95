//! What every step of a reconciliation works with. Enters: what `run` has put together. Leaves: the
//! same, shared; and the ledger of what this process wrote itself, so that its own writes do not
//! wake it up again.

pub mod queue;
pub mod realm_policies;
pub mod realms;
pub mod usernames;
pub mod watched_namespaces;

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::sync::watch;
use twofactor_api::TwoFactorUser;
use twofactor_api::user::TwoFactorUserStatus;
use twofactor_core::realm::RealmRecord;
use twofactor_core::secret::SecretText;
use twofactor_core::user::Username;
use twofactor_store::clock::Clock;

use self::queue::{Queue, UserRef, user_ref};
use self::realm_policies::Policies;
use self::realms::Realms;
use self::usernames::Index;
use self::watched_namespaces::Scopes;
use crate::k8s::backoff::Backoff;
use crate::k8s::events::Events;
use crate::metrics::Metrics;
use crate::realm::Records;
use crate::realm::credentials::logins::Isolation;
use crate::realm::credentials::{InTheWay, Request};
use crate::realm::token_key::SharedKey;

/// Shared by everything in the process.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Every user, as last seen.
    pub users: Store<TwoFactorUser>,
    /// Whose username is whose.
    pub index: Mutex<Index>,
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
    pub in_the_way: InTheWay,
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
    pub credentials: tokio::sync::mpsc::UnboundedSender<Request>,
    /// Wakes the removal of keys that belong to nobody.
    pub removals: tokio::sync::Notify,
    /// Who failed how often.
    pub backoff: Backoff<UserRef>,
    /// What this process wrote itself.
    pub ledger: Ledger,
    /// Where notices are left.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// The clock.
    pub clock: Clock,
    /// When this process began, in milliseconds since the epoch.
    pub started: i64,
    /// The namespaces that are looked at.
    pub scopes: Scopes,
}

impl Context {
    /// Randomness, at the edge of the process.
    #[must_use]
    pub fn random(&self) -> UnwrapErr<SysRng> {
        UnwrapErr(SysRng)
    }

    /// The index.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the record of a realm should say has changed: it will be published, if there is such a
    /// realm.
    pub fn outdate(&self, namespace: &str) {
        if let Some(realm) = self.realms.get(namespace) {
            realm.outdate();
            self.realms.news.notify_one();
        }
    }

    /// Users of a namespace: how many, and how many of them are ready.
    #[must_use]
    pub fn count(&self, namespace: &str) -> (usize, usize) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(namespace).copied().unwrap_or_default()
    }

    /// The reference to a user.
    #[must_use]
    pub fn reference(&self, user: &TwoFactorUser) -> UserRef {
        user_ref(&user.namespace().unwrap_or_default(), &user.name_any())
    }

    /// The name of the object that owns a username.
    #[must_use]
    pub fn owner(&self, namespace: &str, username: &Username) -> Option<String> {
        self.index().owner(namespace, username).map(|claim| claim.name.clone())
    }

    /// Whether the object with this UID owns a username.
    #[must_use]
    pub fn owns(&self, namespace: &str, username: &Username, uid: &str) -> bool {
        self.index().owner(namespace, username).is_some_and(|claim| claim.uid == uid)
    }
}

/// What this process wrote, by user.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<UserRef, Line>>);

#[derive(Debug, Default)]
struct Line {
    running: bool,
    /// The version of the Secret that was last read or written.
    secret: Option<String>,
    /// Versions of the Secret that were seen while the user was being looked at.
    seen_meanwhile: Vec<Option<String>>,
    /// Whether there was a Secret with a seed that is the user's.
    seeded: bool,
    /// The status that was last written.
    status: Option<u64>,
}

fn digest(status: &TwoFactorUserStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(status).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

impl Ledger {
    /// The user is being looked at.
    pub fn begin(&self, user: &UserRef) {
        let mut lines = self.lines();
        let line = lines.entry(user.clone()).or_default();
        line.running = true;
        line.seen_meanwhile.clear();
    }

    /// The user has been looked at. Tells whether somebody changed the Secret meanwhile.
    pub fn end(&self, user: &UserRef) -> bool {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(user) else { return false };
        line.running = false;
        let seen = std::mem::take(&mut line.seen_meanwhile);
        // The last one counts: those before it have been written over.
        seen.last().is_some_and(|last| *last != line.secret)
    }

    /// The Secret was read, or written, in this version.
    pub fn secret_written(&self, user: &UserRef, version: Option<String>) {
        if let Some(line) = self.lines().get_mut(user) {
            line.secret = version;
        }
    }

    /// The watch shows the Secret in this version, or gone. Tells whether the user has to be looked
    /// at.
    pub fn secret_seen(&self, user: &UserRef, version: Option<&str>) -> bool {
        let mut lines = self.lines();
        // Nobody has looked at the user yet, and somebody will.
        let Some(line) = lines.get_mut(user) else { return false };
        if line.running {
            line.seen_meanwhile.push(version.map(str::to_owned));
            return false;
        }
        line.secret.as_deref() != version
    }

    /// Of the users whose Secret is known, those whose Secret is not among `present`.
    #[must_use]
    pub fn secrets_missing(
        &self,
        within: impl Fn(&UserRef) -> bool,
        present: &HashSet<UserRef>,
    ) -> Vec<UserRef> {
        let lines = self.lines();
        let known = lines.iter().filter(|(user, line)| line.secret.is_some() && within(user));
        known.map(|(user, _)| user.clone()).filter(|user| !present.contains(user)).collect()
    }

    /// This status is about to be written.
    pub fn status_written(&self, user: &UserRef, status: &TwoFactorUserStatus) {
        if let Some(line) = self.lines().get_mut(user) {
            line.status = Some(digest(status));
        }
    }

    /// Whether this is the status that was written here.
    #[must_use]
    pub fn is_own_status(&self, user: &UserRef, status: Option<&TwoFactorUserStatus>) -> bool {
        let written = self.lines().get(user).and_then(|line| line.status);
        written.is_some() && written == status.map(digest)
    }

    /// Whether this is the status that was written here last, or none was.
    #[must_use]
    pub fn agrees(&self, user: &UserRef, status: &TwoFactorUserStatus) -> bool {
        self.lines()
            .get(user)
            .and_then(|line| line.status)
            .is_none_or(|written| written == digest(status))
    }

    /// There is a Secret with a seed that is the user's.
    pub fn seeded(&self, user: &UserRef) {
        if let Some(line) = self.lines().get_mut(user) {
            line.seeded = true;
        }
    }

    /// Whether this process knows of a Secret with a seed that was the user's.
    #[must_use]
    pub fn has_seed(&self, user: &UserRef) -> bool {
        self.lines().get(user).is_some_and(|line| line.seeded)
    }

    /// The user is gone.
    pub fn forget(&self, user: &UserRef) {
        self.lines().remove(user);
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<UserRef, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_writes_of_a_secret_wake_nobody_and_others_do() {
        let (ledger, alice) = (Ledger::default(), user_ref("people", "alice"));
        assert!(!ledger.secret_seen(&alice, Some("1")), "she will be looked at anyway");
        ledger.begin(&alice);
        assert!(
            !ledger.secret_seen(&alice, Some("2")),
            "seen before the answer to the write arrived"
        );
        ledger.secret_written(&alice, Some("2".to_owned()));
        assert!(!ledger.end(&alice));
        assert!(!ledger.secret_seen(&alice, Some("2")));
        assert!(ledger.secret_seen(&alice, Some("3")));
        assert!(ledger.secret_seen(&alice, None));
    }

    #[test]
    fn a_change_by_somebody_else_during_a_look_is_not_missed() {
        let (ledger, alice) = (Ledger::default(), user_ref("people", "alice"));
        for change in [Some("9"), None] {
            ledger.begin(&alice);
            ledger.secret_written(&alice, Some("2".to_owned()));
            ledger.secret_seen(&alice, Some("2"));
            ledger.secret_seen(&alice, change);
            assert!(ledger.end(&alice));
        }
    }

    #[test]
    fn a_status_written_here_is_recognized() {
        let (ledger, alice) = (Ledger::default(), user_ref("people", "alice"));
        let status = TwoFactorUserStatus {
            username: Some("alice".to_owned()),
            ..TwoFactorUserStatus::default()
        };
        assert!(!ledger.is_own_status(&alice, Some(&status)));
        ledger.begin(&alice);
        assert!(ledger.agrees(&alice, &status));
        ledger.status_written(&alice, &status);
        assert!(ledger.is_own_status(&alice, Some(&status)));
        assert!(!ledger.is_own_status(&alice, None));
    }
}
