//! Lets services in. Enters: namespaces that a realm lets in or does not any more, the first and
//! the last user of a namespace, and Secrets that somebody touched. Leaves: a login to Redis for
//! each realm and namespace let in, and there the Secret `twofactor-<realm>` with all that a
//! sidecar needs, and with nothing else; or neither.
//!
//! A namespace has the credentials of its own users once it has some, and those of each realm that
//! lets it in. Whoever is not let in any more loses the login first, with the connections made by
//! it, and then the Secret.
//!
//! [`grants`] says who needs which login and which Secret, [`secret`] what is in one; here both are
//! carried out.

mod grants;
pub mod logins;
mod secret;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;
use twofactor_core::names::RealmId;
use twofactor_core::secret::SecretText;
use twofactor_store::acl::AclUser;

use self::grants::{callers, login_url, needs, realms, redis_url, users};
use self::logins::RedisLogins;
use self::secret::{difference, is_ours, secret, url_in};
use crate::k8s::backoff::jittered;
use crate::k8s::request::{self, ApiError};
use crate::state::credentials::{CredentialsRequest, Isolation, Target};
use crate::state::realms::RealmError;
use crate::state::{Context, random};

/// How soon to try again to write a Secret.
const RETRY: Duration = Duration::from_secs(5);
/// How soon to try Redis again.
const RETRY_LOGINS: Duration = Duration::from_secs(1);
/// How often to compare the logins that Redis knows, although nothing should have changed.
const SAFETY_NET: Duration = Duration::from_mins(1);
/// Secrets that are looked at at the same time.
const CONCURRENT: usize = 8;
/// Secrets that are looked at before the logins are, again: a withdrawal does not wait for more.
const BATCH: usize = 64;

/// Why credentials are not as they should be.
#[derive(Debug, Error)]
enum CredentialsError {
    #[error(transparent)]
    Realm(#[from] RealmError),
    #[error("the Secret {0} is there, and not ours: delete or rename it")]
    NotOurs(String),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Looks after credentials until it is told to stop. Begins when the lists are complete.
pub async fn run(
    context: Arc<Context>,
    mut requests: UnboundedReceiver<CredentialsRequest>,
    stop: CancellationToken,
) {
    let mut node = context.node.subscribe();
    let logins =
        RedisLogins::new(context.realms.store().clone(), context.realms.installation.clone());
    let mut controller = CredentialsController {
        context,
        logins,
        next_logins: Instant::now(),
        next_reset: Instant::now(),
        known: HashMap::new(),
        pending: HashSet::new(),
        failed: HashSet::new(),
        next_retry: Instant::now(),
    };
    controller.note(CredentialsRequest::All);
    loop {
        if Instant::now() >= controller.next_logins {
            controller.reconcile_logins().await;
        }
        controller.reconcile_secrets().await;
        tokio::select! {
            () = stop.cancelled() => return,
            request = requests.recv() => match request {
                Some(request) => controller.note(request),
                None => return,
            },
            changed = node.changed() => {
                if changed.is_err() {
                    return;
                }
                // Another process, or one that was something else before.
                controller.logins.forget();
                controller.next_logins = Instant::now();
            }
            () = tokio::time::sleep_until(controller.next_logins) => {}
            () = tokio::time::sleep_until(controller.next_retry), if !controller.failed.is_empty() => {
                let failed: Vec<Target> = controller.failed.iter().cloned().collect();
                controller.pending.extend(failed);
                controller.next_retry = Instant::now() + RETRY;
            }
            () = std::future::ready(()), if !controller.pending.is_empty() => {}
        }
        while let Ok(request) = requests.try_recv() {
            controller.note(request);
        }
    }
}

struct CredentialsController {
    context: Arc<Context>,
    logins: RedisLogins,
    /// When to compare the logins.
    next_logins: Instant,
    /// When to set all of them anew.
    next_reset: Instant,
    /// Where there are Secrets with credentials, or may be, by realm.
    known: HashMap<String, BTreeSet<String>>,
    /// What has to be looked at.
    pending: HashSet<Target>,
    /// What has to be looked at again.
    failed: HashSet<Target>,
    /// When.
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

    /// Makes Redis let in whom the realms let in.
    async fn reconcile_logins(&mut self) {
        let context = self.context.clone();
        let before = *context.isolation.borrow();
        if Instant::now() >= self.next_reset {
            // Somebody may have altered one, which its name does not tell.
            self.logins.forget();
            self.next_reset = Instant::now() + SAFETY_NET;
        }
        let has_login_url = login_url(&context, "x", &SecretText::new("x".to_owned())).is_some();
        let isolation = if has_login_url {
            let users = realms(&context).into_iter().flat_map(|realm| users(&context, &realm));
            let wanted: HashMap<String, AclUser> =
                users.map(|user| (user.name.clone(), user)).collect();
            // Those of other namespaces are somebody else's to look after.
            let is_ours = |realm: &RealmId| {
                context
                    .realms
                    .namespace_of(realm)
                    .is_none_or(|namespace| context.watched.includes(&namespace))
            };
            self.logins.apply(&wanted, is_ours).await
        } else {
            Ok(Isolation::SharedLogin)
        };
        match isolation {
            Ok(isolation) => {
                let isolation = isolation.after(before);
                self.next_logins = Instant::now() + jittered(SAFETY_NET, &mut random());
                if isolation != before {
                    log_isolation(isolation);
                    context.isolation.send_replace(isolation);
                    // Another login has to be told to services.
                    self.note(CredentialsRequest::All);
                    self.next_logins = Instant::now() + jittered(SAFETY_NET, &mut random());
                }
            }
            Err(error) => {
                // The guard says that Redis does not answer.
                tracing::debug!(%error, "the logins for services are not known to be right; trying again");
                self.next_logins = Instant::now() + RETRY_LOGINS;
            }
        }
    }

    /// Looks at some of what is pending.
    async fn reconcile_secrets(&mut self) {
        let context = self.context.clone();
        let targets: Vec<Target> = self.pending.iter().take(BATCH).cloned().collect();
        for target in &targets {
            self.pending.remove(target);
        }
        let looks = targets.into_iter().map(|target| {
            let context = context.clone();
            async move { (reconcile_secret(&context, &target).await, target) }
        });
        let results: Vec<_> =
            futures_util::stream::iter(looks).buffer_unordered(CONCURRENT).collect().await;
        for (result, target) in results {
            self.record_result(result, target);
        }
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
        let news = self.context.foreign_secrets.set(&target, foreign_secret);
        match result {
            Ok(_) | Err(CredentialsError::Realm(RealmError::Gone)) => {
                self.failed.remove(&target);
            }
            Err(error) => {
                if news || !self.failed.contains(&target) {
                    tracing::warn!(realm, namespace, %error, "the credentials for services could not be written; trying again");
                }
                if self.failed.is_empty() {
                    self.next_retry = Instant::now() + RETRY;
                }
                self.failed.insert(target);
            }
        }
    }
}

fn log_isolation(isolation: Isolation) {
    match isolation {
        Isolation::Full | Isolation::Unknown => {
            tracing::info!("services log in to Redis with users of their own");
        }
        Isolation::PerRealm => tracing::warn!(
            "Redis is older than version 7: services can overwrite the records of the realm that lets them in"
        ),
        Isolation::Frozen => tracing::error!(
            "the operator may not use ACL in Redis any more: services keep their logins, but no new ones come and none go"
        ),
        Isolation::SharedLogin => tracing::warn!(
            "the operator may not use ACL in Redis: services get its own login, and are not kept apart by Redis"
        ),
    }
}

/// Makes the credentials of a realm in a namespace what they should be. Tells whether there are
/// any.
async fn reconcile_secret(
    context: &Context,
    Target { realm, namespace }: &Target,
) -> Result<bool, CredentialsError> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let name = labels::credentials_name(realm);
    let known = context.policies.namespace(namespace);
    let found = request::optional(request::within(secrets.get(&name)).await)?;
    let Some((uid, ending)) = known.filter(|_| needs(context, realm, namespace)) else {
        if let Some(found) = found.filter(|found| is_ours(found, realm)) {
            remove(&secrets, &found).await?;
            tracing::info!(realm, namespace, secret = name, "removed the credentials for services");
        }
        return Ok(false);
    };
    if found.is_none() && ending {
        // It takes nothing new.
        return Ok(false);
    }
    let realm = context.realms.get_or_create(realm).await?;
    let login = context.realms.login(&realm.id, &uid);
    let url = match &found {
        // What Redis can do is not known yet, and was known when this was written.
        Some(found) if *context.isolation.borrow() == Isolation::Unknown => {
            url_in(found).unwrap_or_else(|| redis_url(context, &realm, &login))
        }
        // Another process of the operator has given a login: see `Isolation::after`.
        Some(found) if *context.isolation.borrow() == Isolation::SharedLogin => url_in(found)
            .filter(|told| {
                told.expose_secret().contains(&data_encoding::HEXLOWER.encode(&login.tag))
            })
            .unwrap_or_else(|| redis_url(context, &realm, &login)),
        _ => redis_url(context, &realm, &login),
    };
    let authority = context.redis_authority.as_deref();
    let wanted = secret(&realm, &context.realms.installation, &url, authority, namespace);
    match found {
        None => {
            request::within(secrets.create(&PostParams::default(), &wanted)).await?;
            tracing::info!(
                realm = realm.namespace,
                namespace,
                secret = name,
                "wrote the credentials for services"
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
                request::within(request).await?;
                tracing::info!(
                    realm = realm.namespace,
                    namespace,
                    secret = name,
                    "brought the credentials for services up to date"
                );
            }
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
