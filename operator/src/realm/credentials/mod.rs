//! Gives services access to a realm: a login to Redis for each allowed namespace, and there the
//! Secret `twofactor-<realm>` with everything that a sidecar needs.
//!
//! A namespace gets the credentials of a realm that allows it, or that is its own, when a pod there
//! asks for them, and after `given` has recorded that it gets them. When a realm no longer allows a
//! namespace, the login is removed, which closes its connections, and the Secret.
//!
//! [`grants`] says which namespace needs which login and Secret, and [`secret`] builds the Secret.

mod grants;
pub mod logins;
mod secret;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;
use twofactor_core::names::RealmId;
use twofactor_core::secret::SecretText;
use twofactor_store::acl::AclUser;
use twofactor_store::redis::RedisAccess;

pub use self::grants::{allowed_uids, given};
use self::grants::{callers, login_url, may_have, needs, realms, redis_url, users};
use self::logins::RedisLogins;
use self::secret::{difference, is_ours, secret, url_in};
use crate::k8s::backoff::jittered;
use crate::k8s::request::{self, ApiError};
use crate::state::credentials::{CredentialsRequest, Isolation, SharedLogin, Target};
use crate::state::realms::{Realm, RealmError};
use crate::state::{Context, random};

/// Delay before a Secret is written again after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Delay before Redis is asked again after a failure.
const RETRY_LOGINS: Duration = Duration::from_secs(1);
/// Interval between checks of all logins in Redis, in case one was changed.
const SAFETY_NET: Duration = Duration::from_mins(1);
/// Maximum number of Secrets that are reconciled at the same time.
const CONCURRENT: usize = 8;

/// Why credentials could not be reconciled.
#[derive(Debug, Error)]
enum CredentialsError {
    #[error(transparent)]
    Realm(#[from] RealmError),
    #[error("the Secret {0} exists and is not ours: delete or rename it")]
    NotOurs(String),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Reconciles credentials until `stop`. The lists of users, realms and namespaces must be complete.
pub async fn run(
    context: Arc<Context>,
    mut requests: UnboundedReceiver<CredentialsRequest>,
    stop: CancellationToken,
) {
    let mut node = context.runtime.node.subscribe();
    let logins = RedisLogins::new(
        context.realms.registry.store().clone(),
        context.realms.registry.installation.clone(),
    );
    let mut controller = CredentialsController {
        context,
        logins,
        next_logins: Instant::now(),
        next_reset: Instant::now(),
        known: HashMap::new(),
        pending: HashSet::new(),
        in_progress: HashSet::new(),
        running: JoinSet::new(),
        failed: HashSet::new(),
        next_retry: Instant::now(),
    };
    controller.note(CredentialsRequest::All);
    loop {
        if Instant::now() >= controller.next_logins {
            controller.reconcile_logins().await;
        }
        controller.start_secrets();
        tokio::select! {
            () = stop.cancelled() => return,
            Some(ended) = controller.running.join_next(), if !controller.running.is_empty() => {
                controller.secret_reconciled(ended);
            }
            request = requests.recv() => match request {
                Some(request) => controller.note(request),
                None => return,
            },
            changed = node.changed() => {
                if changed.is_err() {
                    return;
                }
                // This is another Redis process, or one with another role.
                controller.logins.forget();
                controller.next_logins = Instant::now();
            }
            () = tokio::time::sleep_until(controller.next_logins) => {}
            () = tokio::time::sleep_until(controller.next_retry), if !controller.failed.is_empty() => {
                let failed: Vec<Target> = controller.failed.iter().cloned().collect();
                controller.pending.extend(failed);
                controller.next_retry = Instant::now() + RETRY;
            }
        }
        while let Ok(request) = requests.try_recv() {
            controller.note(request);
        }
    }
}

/// Whether the credentials exist, and of which target.
type Reconciled = (Result<bool, CredentialsError>, Target);

struct CredentialsController {
    context: Arc<Context>,
    logins: RedisLogins,
    /// When the logins are checked next.
    next_logins: Instant,
    /// When all logins are set again.
    next_reset: Instant,
    /// Namespaces that have or may have a Secret with credentials, by realm.
    known: HashMap<String, BTreeSet<String>>,
    /// Targets to reconcile.
    pending: HashSet<Target>,
    /// Targets that are being reconciled.
    in_progress: HashSet<Target>,
    running: JoinSet<Reconciled>,
    /// Targets that failed.
    failed: HashSet<Target>,
    /// When the failed targets are tried again.
    next_retry: Instant,
}

impl CredentialsController {
    fn note(&mut self, request: CredentialsRequest) {
        match request {
            CredentialsRequest::Realm(realm) => self.note_realm(&realm),
            CredentialsRequest::Secret(target) => {
                let known = self.known.entry(target.realm.clone()).or_default();
                known.insert(target.namespace.clone());
                self.pending.insert(target);
            }
            CredentialsRequest::Pods(target) => {
                let known = self.known.get(&target.realm);
                if known.is_some_and(|known| known.contains(&target.namespace))
                    || needs(&self.context, &target)
                {
                    self.pending.insert(target);
                    self.next_logins = Instant::now();
                } else {
                    // Pods can name any realm, which must not cost a request each.
                    self.context.services.asking.forget(&target);
                }
            }
            CredentialsRequest::All => {
                let known: Vec<String> = self.known.keys().cloned().collect();
                for realm in realms(&self.context).into_iter().chain(known) {
                    self.note_realm(&realm);
                }
                self.next_logins = Instant::now();
            }
        }
    }

    fn note_realm(&mut self, realm: &str) {
        let mut namespaces = callers(&self.context, realm);
        namespaces.extend(self.known.get(realm).into_iter().flatten().cloned());
        self.pending.extend(
            namespaces.into_iter().map(|namespace| Target { realm: realm.to_owned(), namespace }),
        );
        self.next_logins = Instant::now();
    }

    /// Makes the logins in Redis match the namespaces that realms allow.
    async fn reconcile_logins(&mut self) {
        let context = self.context.clone();
        let before = *context.services.isolation.borrow();
        if Instant::now() >= self.next_reset {
            // Another client may have changed a login without changing its name.
            self.logins.forget();
            self.next_reset = Instant::now() + SAFETY_NET;
        }
        let has_login_url = login_url(&context, "x", &SecretText::new("x".to_owned())).is_some();
        let isolation = if has_login_url {
            let users = realms(&context).into_iter().flat_map(|realm| users(&context, &realm));
            let wanted: HashMap<String, AclUser> =
                users.map(|user| (user.name.clone(), user)).collect();
            // Realms of other namespaces belong to another operator, or cannot be listed.
            let is_ours = |realm: &RealmId| {
                context.realms.registry.namespace_of(realm).is_none_or(|namespace| {
                    context.runtime.watched.includes(&namespace)
                        && !context.runtime.refused.is_unlisted(&namespace)
                })
            };
            self.logins.apply(&wanted, is_ours).await
        } else {
            Ok(Isolation::SharedLogin)
        };
        for realm in self.logins.take_removed_from() {
            // A withdrawn namespace can write no more, and what it has spoilt is repaired at once.
            context.realms.check_realm(&realm, before == Isolation::PerRealm);
            context.runtime.comparisons.notify_one();
        }
        match isolation {
            Ok(isolation) => {
                let isolation = isolation.after(before);
                self.next_logins = Instant::now() + jittered(SAFETY_NET, &mut random());
                if isolation != before {
                    log_isolation(isolation, &context.services.shared_login);
                    context.services.isolation.send_replace(isolation);
                    // Services need the Secret with another login.
                    self.note(CredentialsRequest::All);
                    self.next_logins = Instant::now() + jittered(SAFETY_NET, &mut random());
                }
            }
            Err(error) => {
                // The monitor logs that Redis does not answer.
                tracing::debug!(%error, "failed to check the logins of services in Redis; trying again");
                self.next_logins = Instant::now() + RETRY_LOGINS;
            }
        }
    }

    /// Starts to reconcile pending targets. The logins do not wait for them.
    fn start_secrets(&mut self) {
        while self.running.len() < CONCURRENT {
            let free = |target: &&Target| !self.in_progress.contains(*target);
            let Some(target) = self.pending.iter().find(free).cloned() else { return };
            self.pending.remove(&target);
            self.in_progress.insert(target.clone());
            let context = self.context.clone();
            self.running.spawn(async move { (reconcile_secret(&context, &target).await, target) });
        }
    }

    fn secret_reconciled(&mut self, ended: Result<Reconciled, JoinError>) {
        let (result, target) = match ended {
            Ok(ended) => ended,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return,
        };
        self.in_progress.remove(&target);
        self.record_result(result, target);
    }

    fn record_result(&mut self, result: Result<bool, CredentialsError>, target: Target) {
        let Target { realm, namespace } = &target;
        let known = self.known.entry(realm.clone()).or_default();
        match &result {
            Ok(false) | Err(CredentialsError::NotOurs(_)) => known.remove(namespace),
            Ok(true) | Err(_) => known.insert(namespace.clone()),
        };
        if known.is_empty() {
            self.known.remove(realm);
        }
        let foreign_secret = matches!(result, Err(CredentialsError::NotOurs(_)));
        let news = self.context.services.foreign_secrets.set(&target, foreign_secret);
        match result {
            Ok(_) | Err(CredentialsError::Realm(RealmError::Gone)) => {
                self.failed.remove(&target);
            }
            Err(error) => {
                if news || !self.failed.contains(&target) {
                    tracing::warn!(realm, namespace, %error, "failed to write the credentials of services; trying again");
                }
                if self.failed.is_empty() {
                    self.next_retry = Instant::now() + RETRY;
                }
                self.failed.insert(target);
            }
        }
    }
}

fn log_isolation(isolation: Isolation, shared_login: &SharedLogin) {
    match isolation {
        Isolation::Full | Isolation::Unknown => {
            tracing::info!("services have their own logins to Redis");
        }
        Isolation::PerRealm => tracing::warn!(
            "Redis is older than version 7: services can overwrite the records of the realm that allows them"
        ),
        Isolation::Frozen => tracing::error!(
            "the operator may not use ACL in Redis any more: services keep their logins, but none are added or removed"
        ),
        Isolation::SharedLogin => match shared_login {
            SharedLogin::Refused => tracing::error!(
                "the operator may not use ACL in Redis: services get no login, because its own would open every realm"
            ),
            SharedLogin::Operators => tracing::warn!(
                "the operator may not use ACL in Redis: services get its own login, and Redis does not isolate them"
            ),
            SharedLogin::OfServices(_) => tracing::warn!(
                "the operator may not use ACL in Redis: services share the login of --sidecar-redis-url"
            ),
        },
    }
}

/// Creates, updates or removes the credentials of a realm in a namespace. Returns whether they
/// exist.
async fn reconcile_secret(context: &Context, target: &Target) -> Result<bool, CredentialsError> {
    let Target { realm, namespace } = target;
    if [realm, namespace].iter().any(|it| context.runtime.refused.is_unlisted(it)) {
        // It is not known what should be there.
        return Ok(true);
    }
    let secrets = Api::<Secret>::namespaced(context.runtime.client.clone(), namespace);
    let name = labels::credentials_name(realm);
    let known = context.realms.policies.namespace(namespace);
    let found = request::optional(request::within(secrets.get(&name)).await)?;
    let asking = &context.services.asking;
    let has_ours = found.as_ref().is_some_and(|found| is_ours(found, realm));
    if has_ours {
        asking.found(target);
    }
    // What is there stays as long as pods use it, also when the last user of their namespace goes.
    // In other namespaces it stays until the realm withdraws it, which then replaces the keys.
    let stays = has_ours && (realm != namespace || asking.has_pods(target));
    let needed = needs(context, target) || (stays && may_have(context, target));
    let Some((uid, ending)) = known.filter(|_| needed) else {
        if let Some(found) = found.filter(|found| is_ours(found, realm)) {
            remove(&secrets, &found).await?;
            tracing::info!(realm, namespace, secret = name, "removed the credentials of services");
        }
        asking.forget(target);
        return Ok(false);
    };
    if found.is_none() && (ending || !asking.has_pods(target)) {
        // Nothing can be created in a namespace that is being deleted.
        asking.forget(target);
        return Ok(false);
    }
    let realm = context.realms.registry.get_or_create(realm).await?;
    // Without a login, a Secret of an earlier version keeps what it has.
    let Some(wanted) = wanted(context, &realm, namespace, &uid, found.as_ref()) else {
        return Ok(found.is_some());
    };
    let keys = &context.realms.registry.keys;
    // After the Secret is built, because a generation may be announced in between.
    if *namespace != realm.namespace && !keys.of(&realm.id).has_given(&uid) {
        keys.note(&realm.namespace);
        return Ok(found.is_some());
    }
    match found {
        None => {
            request::within(secrets.create(&PostParams::default(), &wanted)).await?;
            tracing::info!(
                realm = realm.namespace,
                namespace,
                secret = name,
                "created the credentials of services"
            );
        }
        Some(found) if !is_ours(&found, &realm.namespace) => {
            return Err(CredentialsError::NotOurs(name));
        }
        Some(found) => {
            if let Some(patch) = difference(&found, &wanted) {
                let parameters = PatchParams::default();
                let request =
                    async { secrets.patch(&name, &parameters, &Patch::Merge(&patch)).await };
                match request::within(request).await {
                    Err(error) if error.is_invalid() => {
                        // It is immutable, or of a type with rules of its own.
                        remove(&secrets, &found).await?;
                        request::within(secrets.create(&PostParams::default(), &wanted)).await?;
                    }
                    patched => drop(patched?),
                }
                realm.credentials_changed();
                tracing::info!(
                    realm = realm.namespace,
                    namespace,
                    secret = name,
                    "updated the credentials of services"
                );
            }
        }
    }
    Ok(true)
}

/// Builds the credentials of a realm in the namespace with this UID, or nothing if there is no
/// login that services may have.
fn wanted(
    context: &Context,
    realm: &Realm,
    namespace: &str,
    uid: &str,
    found: Option<&Secret>,
) -> Option<Secret> {
    let registry = &context.realms.registry;
    let logins = registry.keys.logins(&realm.id, uid);
    let login = logins.first()?;
    let isolation = *context.services.isolation.borrow();
    let kept = found.and_then(url_in).filter(|url| match isolation {
        // The isolation is not known yet, but was known when the Secret was written; or no other
        // login can be created.
        Isolation::Unknown | Isolation::Frozen => true,
        // Another process of the operator has set this login: see `Isolation::after`.
        Isolation::SharedLogin => {
            let url = url.expose_secret();
            logins.iter().any(|login| url.contains(&HEXLOWER.encode(&login.tag)))
        }
        _ => false,
    });
    let url = kept.or_else(|| redis_url(context, realm, login))?;
    let redis = RedisAccess { url, ..context.services.redis.borrow().clone() };
    Some(secret(realm, &registry.keys, &registry.installation, &redis, namespace))
}

/// Whether every namespace that needs the credentials of a realm has the current ones.
pub async fn are_written(context: &Context, realm: &str) -> Result<bool, ApiError> {
    let Some(known) = context.realms.registry.get(realm) else { return Ok(false) };
    if *context.services.isolation.borrow() == Isolation::Unknown {
        return Ok(false);
    }
    for namespace in callers(context, realm) {
        let Some((uid, ending)) = context.realms.policies.namespace(&namespace) else { continue };
        let secrets = Api::<Secret>::namespaced(context.runtime.client.clone(), &namespace);
        let name = labels::credentials_name(realm);
        let found = request::optional(request::within(secrets.get(&name)).await)?;
        let wanted = wanted(context, &known, &namespace, &uid, found.as_ref());
        let is_written = match (&found, &wanted) {
            (Some(found), Some(wanted)) => difference(found, wanted).is_none(),
            // Services without credentials cannot fail.
            (None, None) => true,
            (None, Some(_)) => ending,
            (Some(_), None) => false,
        };
        if !is_written {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn remove(secrets: &Api<Secret>, found: &Secret) -> Result<(), CredentialsError> {
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: found.uid(),
            resource_version: found.resource_version(),
        }),
        ..DeleteParams::default()
    };
    let name = found.name_any();
    let request = async { secrets.delete(&name, &parameters).await };
    request::optional(request::within(request).await)?;
    Ok(())
}
