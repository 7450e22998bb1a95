//! Remembers what this process wrote, so that its own writes do not requeue the user.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use twofactor_api::user::TwoFactorUserStatus;

use super::queue::UserRef;

/// What this process wrote, by user.
#[derive(Debug, Default)]
pub struct OwnWrites(Mutex<HashMap<UserRef, ObservedUser>>);

#[derive(Debug, Default)]
struct ObservedUser {
    running: bool,
    /// The version of the Secret that was last read or written.
    secret: Option<String>,
    /// Versions of the Secret that were seen while the user was being looked at.
    seen_versions: Vec<Option<String>>,
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

impl OwnWrites {
    /// The user is being looked at.
    pub fn begin(&self, user: &UserRef) {
        let mut users = self.users();
        let observed = users.entry(user.clone()).or_default();
        observed.running = true;
        observed.seen_versions.clear();
    }

    /// The user has been looked at. Tells whether somebody changed the Secret meanwhile.
    pub fn end(&self, user: &UserRef) -> bool {
        let mut users = self.users();
        let Some(observed) = users.get_mut(user) else { return false };
        observed.running = false;
        let seen = std::mem::take(&mut observed.seen_versions);
        // The last one counts: those before it have been written over.
        seen.last().is_some_and(|last| *last != observed.secret)
    }

    /// The Secret was read, or written, in this version.
    pub fn secret_written(&self, user: &UserRef, version: Option<String>) {
        if let Some(observed) = self.users().get_mut(user) {
            observed.secret = version;
        }
    }

    /// The watch shows the Secret in this version, or gone. Tells whether the user has to be looked
    /// at.
    pub fn secret_seen(&self, user: &UserRef, version: Option<&str>) -> bool {
        let mut users = self.users();
        // Nobody has looked at the user yet, and somebody will.
        let Some(observed) = users.get_mut(user) else { return false };
        if observed.running {
            observed.seen_versions.push(version.map(str::to_owned));
            return false;
        }
        observed.secret.as_deref() != version
    }

    /// Of the users whose Secret is known, those whose Secret is not among `present`.
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

    /// This status is about to be written.
    pub fn status_written(&self, user: &UserRef, status: &TwoFactorUserStatus) {
        if let Some(observed) = self.users().get_mut(user) {
            observed.status = Some(digest(status));
        }
    }

    /// Whether this is the status that was written here.
    pub fn is_own_status(&self, user: &UserRef, status: Option<&TwoFactorUserStatus>) -> bool {
        let written = self.users().get(user).and_then(|observed| observed.status);
        written.is_some() && written == status.map(digest)
    }

    /// Whether this is the status that was written here last, or none was.
    pub fn agrees(&self, user: &UserRef, status: &TwoFactorUserStatus) -> bool {
        self.users()
            .get(user)
            .and_then(|observed| observed.status)
            .is_none_or(|written| written == digest(status))
    }

    /// There is a Secret with a seed that is the user's.
    pub fn seeded(&self, user: &UserRef) {
        if let Some(observed) = self.users().get_mut(user) {
            observed.seeded = true;
        }
    }

    /// Whether this process knows of a Secret with a seed that was the user's.
    pub fn has_seed(&self, user: &UserRef) -> bool {
        self.users().get(user).is_some_and(|observed| observed.seeded)
    }

    /// The user is gone.
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
    use crate::state::queue::user_ref;

    #[test]
    fn own_writes_of_a_secret_wake_nobody_and_others_do() {
        let (own_writes, alice) = (OwnWrites::default(), user_ref("people", "alice"));
        assert!(!own_writes.secret_seen(&alice, Some("1")), "she will be looked at anyway");
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
    fn a_change_by_somebody_else_during_a_look_is_not_missed() {
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
