//! Says which namespaces need credentials of a realm, and which logins to Redis they get. No I/O.

use std::collections::BTreeSet;

use twofactor_core::key::Login;
use twofactor_core::names::{RealmId, RealmNames};
use twofactor_core::secret::SecretText;
use twofactor_store::acl::{self, AclUser};

use crate::state::Context;
use crate::state::credentials::SharedLogin;
use crate::state::realm_policies::NamespaceAccess;
use crate::state::realms::Realm;

/// The watched realms: namespaces with users, with a policy, or with a realm that was requested.
pub(super) fn realms(context: &Context) -> BTreeSet<String> {
    let mut realms: BTreeSet<String> = context.users.usernames().namespaces().into_iter().collect();
    realms.extend(context.realms.policies.namespaces_with_policy());
    realms.extend(context.realms.registry.all().iter().map(|realm| realm.namespace.clone()));
    realms.retain(|realm| {
        context.runtime.watched.includes(realm)
            && context.realms.policies.namespace(realm).is_some()
    });
    realms
}

/// The namespaces that need the credentials of a realm.
pub(super) fn callers(context: &Context, realm: &str) -> BTreeSet<String> {
    let mut callers = context.realms.policies.namespaces_of(realm);
    callers.retain(|namespace| needs(context, realm, namespace));
    callers
}

/// Whether a namespace needs the credentials of a realm.
pub(super) fn needs(context: &Context, realm: &str, namespace: &str) -> bool {
    context.runtime.watched.includes(realm)
        && context.realms.policies.namespace(realm).is_some()
        && context.realms.policies.access(realm, namespace) == NamespaceAccess::Allowed
        && (realm != namespace || context.users.usernames().has_users(realm))
}

/// The Redis users of a realm. The one for the realm's own namespace is kept after its last user is
/// deleted, so that sidecars there can still answer "unknown user".
pub(super) fn users(context: &Context, realm: &str) -> Vec<AclUser> {
    let Some(id) =
        context.realms.policies.namespace(realm).and_then(|(uid, _)| uid.parse::<RealmId>().ok())
    else {
        return Vec::new();
    };
    let names = RealmNames::new(&context.realms.registry.installation, &id);
    let mut callers = callers(context, realm);
    if context.realms.registry.get(realm).is_some() {
        callers.insert(realm.to_owned());
    }
    let uids =
        callers.into_iter().filter_map(|name| Some(context.realms.policies.namespace(&name)?.0));
    let logins = uids.flat_map(|uid| context.realms.registry.keys.logins(&id, &uid));
    let user = |login: Login| AclUser {
        name: names.login(&login.tag),
        password_hash: login.password_hash(),
        realm: names.clone(),
    };
    logins.map(user).collect()
}

pub(super) fn login_url(
    context: &Context,
    name: &str,
    password: &SecretText,
) -> Option<SecretText> {
    acl::with_login(context.services.redis_url.expose_secret(), name, password)
}

/// Returns the URL of Redis for services, or nothing if there is no login that they may have.
pub(super) fn redis_url(context: &Context, realm: &Realm, login: &Login) -> Option<SecretText> {
    let name = RealmNames::new(&context.realms.registry.installation, &realm.id).login(&login.tag);
    let own = context
        .services
        .isolation
        .borrow()
        .has_logins()
        .then(|| login_url(context, &name, &login.password));
    own.flatten().or_else(|| match &context.services.shared_login {
        SharedLogin::Refused => None,
        SharedLogin::Operators => Some(context.services.redis_url.clone()),
        SharedLogin::OfServices(url) => Some(url.clone()),
    })
}
