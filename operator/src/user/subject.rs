//! Holds the values of a user that the steps of a reconciliation need, computed once.

use kube::ResourceExt;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::names::Pseudonym;
use twofactor_core::user::UserDefinition;

use crate::state::realms::Realm;
use crate::state::user_ref::{self, UserRef};

/// A valid user that is being reconciled.
pub struct Subject<'a> {
    pub user: &'a TwoFactorUser,
    pub reference: UserRef,
    pub uid: String,
    pub secret_name: String,
    pub realm: &'a Realm,
    pub definition: UserDefinition,
}

impl<'a> Subject<'a> {
    pub fn new(user: &'a TwoFactorUser, realm: &'a Realm, definition: UserDefinition) -> Self {
        Self {
            user,
            reference: user_ref::reference(user),
            uid: user.uid().unwrap_or_default(),
            secret_name: labels::secret_name(&user.name_any()),
            realm,
            definition,
        }
    }

    /// The user's name in Redis.
    pub fn pseudonym(&self) -> Pseudonym {
        self.realm.publisher.keys().pseudonym(&self.definition.username)
    }

    /// The value of one of the user's annotations.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.user.annotations().get(name).map(String::as_str)
    }
}
