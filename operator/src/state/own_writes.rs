//! Remembers what this process wrote and which versions of Secrets the watch reported, so that its
//! own writes do not requeue a user, and unchanged Secrets are not read.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use twofactor_api::user::TwoFactorUserStatus;

use super::user_ref::UserRef;

/// What this process wrote, by user.
#[derive(Debug, Default)]
pub struct OwnWrites(Mutex<HashMap<UserRef, ObservedUser>>);

/// The number of a list of Secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListNumber(u32);

impl ListNumber {
    /// The number of the next list.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

#[derive(Debug, Default)]
struct ObservedUser {
    /// Whether this process has begun to reconcile the user.
    begun: bool,
    running: bool,
    /// Version of the Secret that the watch reported last.
    watched: Option<String>,
    /// The list in which the Secret was last.
    list: ListNumber,
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
        (observed.begun, observed.running) = (true, true);
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

    /// Returns the version of the Secret that the watch reported, if this process has not read the
    /// Secret yet.
    pub fn unread_version(&self, user: &UserRef) -> Option<String> {
        let users = self.users();
        let observed = users.get(user)?;
        if observed.secret.is_some() { None } else { observed.watched.clone() }
    }

    /// Records that the watch reports the Secret in this version, or deleted. `list` is the list in
    /// progress or the last one. Returns whether the user has to be reconciled.
    pub fn secret_seen(&self, user: &UserRef, version: Option<&str>, list: ListNumber) -> bool {
        let mut users = self.users();
        let observed = if let Some(observed) = users.get_mut(user) {
            observed
        } else {
            users.entry(user.clone()).or_default()
        };
        observed.watched = version.map(str::to_owned);
        observed.list = list;
        if observed.running {
            observed.seen_versions.push(version.map(str::to_owned));
            return false;
        }
        // The first reconciliation of a user is already queued.
        observed.begun && observed.secret.as_deref() != version
    }

    /// Returns the users whose Secret was known before `list` and is not in it.
    pub fn secrets_missing(
        &self,
        within: impl Fn(&UserRef) -> bool,
        list: ListNumber,
    ) -> Vec<UserRef> {
        let mut missing = Vec::new();
        for (user, observed) in self.users().iter_mut() {
            if observed.list != list && within(user) {
                observed.watched = None;
                if observed.secret.is_some() {
                    missing.push(user.clone());
                }
            }
        }
        missing
    }

    /// Forgets Secrets that belong to no user. The list of users must be complete.
    pub fn forget_unless(&self, is_user: impl Fn(&UserRef) -> bool) {
        let mut users = self.users();
        users.retain(|user, _| is_user(user));
        users.shrink_to_fit();
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
        let list = ListNumber::default();
        assert!(!own_writes.secret_seen(&alice, Some("1"), list), "the user is not reconciled yet");
        own_writes.begin(&alice);
        assert!(
            !own_writes.secret_seen(&alice, Some("2"), list),
            "seen before the answer to the write arrived"
        );
        own_writes.secret_written(&alice, Some("2".to_owned()));
        assert!(!own_writes.end(&alice));
        assert!(!own_writes.secret_seen(&alice, Some("2"), list));
        assert!(own_writes.secret_seen(&alice, Some("3"), list));
        assert!(own_writes.secret_seen(&alice, None, list));
    }

    #[test]
    fn a_change_by_another_writer_during_a_reconcile_is_not_missed() {
        let (own_writes, alice) = (OwnWrites::default(), user_ref("people", "alice"));
        let list = ListNumber::default();
        for change in [Some("9"), None] {
            own_writes.begin(&alice);
            own_writes.secret_written(&alice, Some("2".to_owned()));
            own_writes.secret_seen(&alice, Some("2"), list);
            own_writes.secret_seen(&alice, change, list);
            assert!(own_writes.end(&alice));
        }
    }

    #[test]
    fn the_version_of_a_secret_is_known_until_this_process_reads_it() {
        let (own_writes, alice) = (OwnWrites::default(), user_ref("people", "alice"));
        let first = ListNumber::default().next();
        own_writes.secret_seen(&alice, Some("1"), first);
        own_writes.begin(&alice);
        assert_eq!(own_writes.unread_version(&alice).as_deref(), Some("1"));
        own_writes.secret_written(&alice, Some("1".to_owned()));
        assert_eq!(own_writes.unread_version(&alice), None);
    }

    #[test]
    fn a_secret_that_a_list_does_not_contain_is_missing() {
        let (own_writes, alice) = (OwnWrites::default(), user_ref("people", "alice"));
        let (bob, first) = (user_ref("people", "bob"), ListNumber::default().next());
        for user in [&alice, &bob] {
            own_writes.secret_seen(user, Some("1"), first);
        }
        own_writes.begin(&alice);
        own_writes.secret_written(&alice, Some("1".to_owned()));
        own_writes.end(&alice);
        assert!(own_writes.secrets_missing(|_| true, first).is_empty());
        let second = first.next();
        assert!(own_writes.secrets_missing(|user| *user != alice, second).is_empty());
        assert_eq!(own_writes.unread_version(&bob), None, "it is missing too");
        assert_eq!(own_writes.secrets_missing(|_| true, second), [alice]);
        own_writes.forget_unless(|user| *user != bob);
        assert_eq!(own_writes.users().len(), 1);
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
