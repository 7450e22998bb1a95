//! Holds which credentials have to be reconciled, which Secrets of other owners block them, and how
//! well Redis isolates the services of different namespaces.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use twofactor_core::secret::SecretText;

/// A request to reconcile credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialsRequest {
    /// The realm of this namespace changed: its allowed namespaces, or whether it has users.
    Realm(String),
    /// A Secret with credentials was created, changed or deleted.
    Secret(Target),
    /// The pods of a namespace began or ceased to ask for credentials.
    Pods(Target),
    /// Everything may have changed.
    All,
}

/// Credentials of a realm in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The namespace of the users.
    pub realm: String,
    /// The namespace of the services.
    pub namespace: String,
}

/// Takes requests to reconcile credentials. A request that is sent after the reconciler has ended
/// is lost, because then the process ends too.
#[derive(Clone, Debug)]
pub struct CredentialsQueue(UnboundedSender<CredentialsRequest>);

impl CredentialsQueue {
    /// Returns a queue and its receiving end.
    pub fn new() -> (Self, UnboundedReceiver<CredentialsRequest>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Requests the credentials of a realm, because its allowed namespaces or its users changed.
    pub fn realm_changed(&self, realm: String) {
        let _ = self.0.send(CredentialsRequest::Realm(realm));
    }

    /// Requests one Secret with credentials, because it changed.
    pub fn secret_changed(&self, target: Target) {
        let _ = self.0.send(CredentialsRequest::Secret(target));
    }

    /// Requests one Secret with credentials and its login, because pods began or ceased to ask for
    /// it.
    pub fn pods_changed(&self, target: Target) {
        let _ = self.0.send(CredentialsRequest::Pods(target));
    }

    /// Requests all credentials.
    pub fn all_changed(&self) {
        let _ = self.0.send(CredentialsRequest::All);
    }
}

/// Credentials that cannot be written because a Secret of another owner has their name.
#[derive(Debug, Default)]
pub struct ForeignSecrets(Mutex<BTreeSet<Target>>);

impl ForeignSecrets {
    /// The namespaces where a realm's credentials are blocked.
    pub fn namespaces_of(&self, realm: &str) -> Vec<String> {
        let targets = self.targets();
        let of_realm = targets.iter().filter(|target| target.realm == realm);
        of_realm.map(|target| target.namespace.clone()).collect()
    }

    /// Records whether `target` is blocked. Returns whether that has changed.
    pub fn set(&self, target: &Target, is_foreign: bool) -> bool {
        let mut targets = self.targets();
        if is_foreign { targets.insert(target.clone()) } else { targets.remove(target) }
    }

    fn targets(&self) -> MutexGuard<'_, BTreeSet<Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What services get if the operator may not create logins for them.
#[derive(Clone, Debug)]
pub enum SharedLogin {
    /// Nothing: the operator's own login opens every realm, and could not be taken back.
    Refused,
    /// The operator's own login, because an administrator allows it.
    Operators,
    /// A login for services that an administrator has created, as a URL of Redis.
    OfServices(SecretText),
}

/// How well Redis isolates the services of different namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Redis has not answered yet.
    Unknown,
    /// A service can use the keys of its realm only, and cannot write the records of that realm.
    Full,
    /// A service can use the keys of its realm only, but could overwrite the records of that realm,
    /// because Redis is older than version 7.
    PerRealm,
    /// The operator may not create logins: services get what [`SharedLogin`] says.
    SharedLogin,
    /// Services have logins of their own, which the operator is no longer permitted to change.
    /// Services do not get the operator's login instead.
    Frozen,
}

impl Isolation {
    /// Returns the isolation that follows `before`. A service that had its own login never gets the
    /// operator's login, because that one can use the keys of every realm and would stay known.
    pub const fn after(self, before: Self) -> Self {
        match (self, before) {
            (Self::SharedLogin, Self::Full | Self::PerRealm | Self::Frozen) => Self::Frozen,
            (now, _) => now,
        }
    }

    /// Whether services have their own logins, which is assumed as long as it is unknown.
    pub const fn has_logins(self) -> bool {
        !matches!(self, Self::SharedLogin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_with_its_own_login_never_gets_the_operators_login() {
        let now = Isolation::SharedLogin;
        assert!(!now.after(Isolation::Unknown).has_logins());
        for before in [Isolation::Full, Isolation::PerRealm, Isolation::Frozen] {
            assert!(now.after(before).has_logins());
        }
        assert_eq!(Isolation::Full.after(Isolation::Frozen), Isolation::Full);
    }
}
