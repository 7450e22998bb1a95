//! Says which namespaces need credentials of a realm, and which logins to Redis they get. No I/O.

use std::collections::BTreeSet;

use twofactor_core::key::Login;
use twofactor_core::names::{RealmId, RealmNames};
use twofactor_core::secret::SecretText;
use twofactor_store::acl::{self, AclUser};

use crate::state::Context;
use crate::state::credentials::{SharedLogin, Target};
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
    callers.retain(|namespace| {
        needs(context, &Target { realm: realm.to_owned(), namespace: namespace.clone() })
    });
    callers
}

/// The UIDs of the namespaces that a realm allows, and may give credentials to.
pub fn allowed_uids(context: &Context, realm: &str) -> BTreeSet<String> {
    let mut allowed = context.realms.policies.namespaces_of(realm);
    allowed.retain(|namespace| !context.services.excluded.contains(namespace));
    let uid = |namespace: String| Some(context.realms.policies.namespace(&namespace)?.0);
    allowed.into_iter().filter_map(uid).collect()
}

/// The namespaces that get the credentials of a realm, without its own, and their UIDs.
pub fn given(context: &Context, realm: &str) -> Vec<(String, String)> {
    let others = callers(context, realm).into_iter().filter(|namespace| *namespace != realm);
    let with_uid = |namespace: String| {
        let (uid, _) = context.realms.policies.namespace(&namespace)?;
        Some((namespace, uid))
    };
    others.filter_map(with_uid).collect()
}

/// Whether a namespace needs the credentials of a realm.
pub(super) fn needs(context: &Context, target: &Target) -> bool {
    may_have(context, target) && (target.realm != target.namespace || is_realm(context, target))
}

/// Whether the realm allows the namespace, and a pod there asks for credentials.
pub(super) fn may_have(context: &Context, target: &Target) -> bool {
    let Target { realm, namespace } = target;
    context.runtime.watched.includes(realm)
        && context.realms.policies.namespace(realm).is_some()
        && context.realms.policies.access(realm, namespace) == NamespaceAccess::Allowed
        && !context.services.excluded.contains(namespace)
        && context.services.within_reach.includes(namespace)
        // Pods may ask in a namespace that the operator may not list, and their login has to stay.
        && (context.services.asking.is_asked(target) || context.runtime.refused.is_unlisted(namespace))
}

/// Whether the namespace has users or a policy, or had a user in the lifetime of this process. Pods
/// of other namespaces may only lack the name of their realm.
fn is_realm(context: &Context, Target { realm, .. }: &Target) -> bool {
    context.realms.is_realm(realm) || context.users.usernames().has_users(realm)
}

/// The Redis users of a realm.
pub(super) fn users(context: &Context, realm: &str) -> Vec<AclUser> {
    let Some(id) =
        context.realms.policies.namespace(realm).and_then(|(uid, _)| uid.parse::<RealmId>().ok())
    else {
        return Vec::new();
    };
    let names = RealmNames::new(&context.realms.registry.installation, &id);
    let uids = callers(context, realm)
        .into_iter()
        .filter_map(|name| Some(context.realms.policies.namespace(&name)?.0));
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
    acl::with_login(context.services.redis.borrow().url.expose_secret(), name, password)
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
        SharedLogin::Operators => Some(context.services.redis.borrow().url.clone()),
        SharedLogin::OfServices(url) => Some(url.clone()),
    })
}
