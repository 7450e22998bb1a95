//! Remembers what this process wrote, so that its own writes do not requeue a user.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use twofactor_api::user::TwoFactorUserStatus;

use super::user_ref::UserRef;

/// What this process wrote, by user.
#[derive(Debug, Default)]
pub struct OwnWrites(Mutex<HashMap<UserRef, ObservedUser>>);

#[derive(Debug, Default)]
struct ObservedUser {
    running: bool,
    /// Version of the Secret that was read or written last.
    secret: Option<String>,
    /// Versions of the Secret that the watch reported during the current reconciliation.
    seen_versions: Vec<Option<String>>,
    /// Whether the user's Secret held a seed.
    seeded: bool,
    /// Digest of the status that was written last.
    status: Option<u64>,
}

fn digest(status: &TwoFactorUserStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(status).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

impl OwnWrites {
    /// Records that a reconciliation begins.
    pub fn begin(&self, user: &UserRef) {
        let mut users = self.users();
        let observed = users.entry(user.clone()).or_default();
        observed.running = true;
        observed.seen_versions.clear();
    }

    /// Records that a reconciliation ends. Returns whether another client changed the Secret during
    /// it.
    pub fn end(&self, user: &UserRef) -> bool {
        let mut users = self.users();
        let Some(observed) = users.get_mut(user) else { return false };
        observed.running = false;
        let seen = std::mem::take(&mut observed.seen_versions);
        // Only the last version counts, because the earlier ones were overwritten.
        seen.last().is_some_and(|last| *last != observed.secret)
    }

    /// Records the version of the Secret that was read or written.
    pub fn secret_written(&self, user: &UserRef, version: Option<String>) {
        if let Some(observed) = self.users().get_mut(user) {
            observed.secret = version;
        }
    }

    /// Records that the watch reports the Secret in this version, or deleted. Returns whether the
    /// user has to be reconciled.
    pub fn secret_seen(&self, user: &UserRef, version: Option<&str>) -> bool {
        let mut users = self.users();
        // The user is not reconciled yet; its first reconciliation is already queued.
        let Some(observed) = users.get_mut(user) else { return false };
        if observed.running {
            observed.seen_versions.push(version.map(str::to_owned));
            return false;
        }
        observed.secret.as_deref() != version
    }

    /// Returns the users whose Secret is known and not among `present`.
    pub fn secrets_missing(
        &self,
        within: impl Fn(&UserRef) -> bool,
        present: &HashSet<UserRef>,
    ) -> Vec<UserRef> {
        let users = self.users();
        let known =
            users.iter().filter(|(user, observed)| observed.secret.is_some() && within(user));
        known.map(|(user, _)| user.clone()).filter(|user| !present.contains(user)).collect()
    }

    /// Records the status that is about to be written.
    pub fn status_written(&self, user: &UserRef, status: &TwoFactorUserStatus) {
        if let Some(observed) = self.users().get_mut(user) {
            observed.status = Some(digest(status));
        }
    }

    /// Whether this process wrote this status.
    pub fn is_own_status(&self, user: &UserRef, status: Option<&TwoFactorUserStatus>) -> bool {
        let written = self.users().get(user).and_then(|observed| observed.status);
        written.is_some() && written == status.map(digest)
    }

    /// Whether this is the status that this process wrote last, or it wrote none.
    pub fn agrees(&self, user: &UserRef, status: &TwoFactorUserStatus) -> bool {
        self.users()
            .get(user)
            .and_then(|observed| observed.status)
            .is_none_or(|written| written == digest(status))
    }

    /// Records that the user's Secret holds a seed.
    pub fn seeded(&self, user: &UserRef) {
        if let Some(observed) = self.users().get_mut(user) {
            observed.seeded = true;
        }
    }

    /// Whether the user's Secret is known to have held a seed.
    pub fn has_seed(&self, user: &UserRef) -> bool {
        self.users().get(user).is_some_and(|observed| observed.seeded)
    }

    /// Forgets a deleted user.
    pub fn forget(&self, user: &UserRef) {
        self.users().remove(user);
    }

    fn users(&self) -> MutexGuard<'_, HashMap<UserRef, ObservedUser>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::user_ref::user_ref;

    #[test]
    fn own_writes_of_a_secret_do_not_requeue_the_user_and_other_writes_do() {
        let (own_writes, alice) = (OwnWrites::default(), user_ref("people", "alice"));
        assert!(!own_writes.secret_seen(&alice, Some("1")), "the user is not reconciled yet");
        own_writes.begin(&alice);
        assert!(
            !own_writes.secret_seen(&alice, Some("2")),
            "seen before the answer to the write arrived"
        );
        own_writes.secret_written(&alice, Some("2".to_owned()));
        assert!(!own_writes.end(&alice));
        assert!(!own_writes.secret_seen(&alice, Some("2")));
        assert!(own_writes.secret_seen(&alice, Some("3")));
        assert!(own_writes.secret_seen(&alice, None));
    }

    #[test]
    fn a_change_by_another_writer_during_a_reconcile_is_not_missed() {
        let (own_writes, alice) = (OwnWrites::default(), user_ref("people", "alice"));
        for change in [Some("9"), None] {
            own_writes.begin(&alice);
            own_writes.secret_written(&alice, Some("2".to_owned()));
            own_writes.secret_seen(&alice, Some("2"));
            own_writes.secret_seen(&alice, change);
            assert!(own_writes.end(&alice));
        }
    }

    #[test]
    fn a_status_written_here_is_recognized() {
        let (own_writes, alice) = (OwnWrites::default(), user_ref("people", "alice"));
        let status = TwoFactorUserStatus {
            username: Some("alice".to_owned()),
            ..TwoFactorUserStatus::default()
        };
        assert!(!own_writes.is_own_status(&alice, Some(&status)));
        own_writes.begin(&alice);
        assert!(own_writes.agrees(&alice, &status));
        own_writes.status_written(&alice, &status);
        assert!(own_writes.is_own_status(&alice, Some(&status)));
        assert!(!own_writes.is_own_status(&alice, None));
    }
}
