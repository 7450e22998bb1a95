//! Names a user object. A reference is cheap to copy, because each user is a key of several maps.

use std::fmt;
use std::sync::Arc;

use kube::ResourceExt;
use twofactor_api::TwoFactorUser;

/// A reference to a user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserRef {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// The reference to `user`.
pub fn reference(user: &TwoFactorUser) -> UserRef {
    user_ref(&user.namespace().unwrap_or_default(), &user.name_any())
}

/// The reference to the user `name` in `namespace`.
pub fn user_ref(namespace: &str, name: &str) -> UserRef {
    UserRef { namespace: namespace.into(), name: name.into() }
}

impl fmt::Display for UserRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}
