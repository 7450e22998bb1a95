//! Who is let in. Enters: what the realms say, and which namespaces have users. Leaves: the
//! namespaces that need credentials of a realm, and the logins to Redis for them. No I/O.

use std::collections::BTreeSet;

use twofactor_core::key::Login;
use twofactor_core::names::{RealmId, RealmNames};
use twofactor_core::secret::SecretText;
use twofactor_store::acl::{self, AclUser};

use crate::state::Context;
use crate::state::realm_policies::NamespaceAccess;
use crate::state::realms::Realm;

/// The namespaces whose users somebody may verify.
pub(super) fn realms(context: &Context) -> BTreeSet<String> {
    let mut realms: BTreeSet<String> = context.usernames().namespaces().into_iter().collect();
    realms.extend(context.policies.namespaces_with_policy());
    realms.extend(context.realms.all().iter().map(|realm| realm.namespace.clone()));
    realms.retain(|realm| {
        context.watched.includes(realm) && context.policies.namespace(realm).is_some()
    });
    realms
}

/// The namespaces that need the credentials of a realm.
pub(super) fn callers(context: &Context, realm: &str) -> BTreeSet<String> {
    let mut callers = context.policies.namespaces_of(realm);
    callers.retain(|namespace| needs(context, realm, namespace));
    callers
}

/// Whether a namespace needs the credentials of a realm.
pub(super) fn needs(context: &Context, realm: &str, namespace: &str) -> bool {
    context.watched.includes(realm)
        && context.policies.namespace(realm).is_some()
        && context.policies.access(realm, namespace) == NamespaceAccess::Allowed
        && (realm != namespace || context.usernames().has_users(realm))
}

/// The Redis users of a realm. That of its own services stays when the last of its users goes: the
/// sidecars there still have to learn, and to say, that there is nobody.
pub(super) fn users(context: &Context, realm: &str) -> Vec<AclUser> {
    let Some(id) =
        context.policies.namespace(realm).and_then(|(uid, _)| uid.parse::<RealmId>().ok())
    else {
        return Vec::new();
    };
    let names = RealmNames::new(&context.realms.installation, &id);
    let mut callers = callers(context, realm);
    if context.realms.get(realm).is_some() {
        callers.insert(realm.to_owned());
    }
    let uids = callers.into_iter().filter_map(|name| Some(context.policies.namespace(&name)?.0));
    uids.map(|uid| {
        let login = context.realms.login(&id, &uid);
        AclUser {
            name: names.login(&login.tag),
            password_hash: login.password_hash(),
            realm: names.clone(),
        }
    })
    .collect()
}

pub(super) fn login_url(
    context: &Context,
    name: &str,
    password: &SecretText,
) -> Option<SecretText> {
    acl::with_login(context.redis_url.expose_secret(), name, password)
}

/// What services are told to connect to.
pub(super) fn redis_url(context: &Context, realm: &Realm, login: &Login) -> SecretText {
    let name = RealmNames::new(&context.realms.installation, &realm.id).login(&login.tag);
    let own =
        context.isolation.borrow().has_logins().then(|| login_url(context, &name, &login.password));
    own.flatten().unwrap_or_else(|| context.redis_url.clone())
}
