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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use self::logins::{Access, Isolation};
use self::secret::{difference, is_ours, secret, told_url};
use crate::k8s::backoff::jittered;
use crate::k8s::request::{self, ApiError};
use crate::state::Context;
use crate::state::realms::RealmError;

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

/// What there is to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Something about the realm of this namespace has changed: whom it lets in, or whether it has
    /// users.
    Realm(String),
    /// Somebody touched, or there is, a Secret with credentials.
    Secret {
        /// The realm that they are of.
        realm: String,
        /// Where it is.
        namespace: String,
    },
    /// Anything may have changed.
    All,
}

/// A realm's credentials in a namespace: the realm, then the namespace.
type Place = (String, String);

/// Places where the credentials could not be written because somebody else's Secret is in the way.
#[derive(Debug, Default)]
pub struct InTheWay(Mutex<BTreeSet<Place>>);

impl InTheWay {
    /// The namespaces in which a realm's credentials are missing.
    #[must_use]
    pub fn of(&self, realm: &str) -> Vec<String> {
        self.places()
            .iter()
            .filter(|(of, _)| of == realm)
            .map(|(_, namespace)| namespace.clone())
            .collect()
    }

    /// Tells whether this is news.
    fn set(&self, place: &Place, in_the_way: bool) -> bool {
        let mut places = self.places();
        if in_the_way { places.insert(place.clone()) } else { places.remove(place) }
    }

    fn places(&self) -> MutexGuard<'_, BTreeSet<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    mut requests: UnboundedReceiver<Request>,
    stop: CancellationToken,
) {
    let mut node = context.node.subscribe();
    let access = Access::new(context.realms.store().clone(), context.realms.installation.clone());
    let mut keeper = Keeper {
        context,
        access,
        next_logins: Instant::now(),
        next_renewal: Instant::now(),
        known: HashMap::new(),
        pending: HashSet::new(),
        failed: HashSet::new(),
        next_retry: Instant::now(),
    };
    keeper.note(Request::All);
    loop {
        if Instant::now() >= keeper.next_logins {
            keeper.logins().await;
        }
        keeper.secrets().await;
        tokio::select! {
            () = stop.cancelled() => return,
            request = requests.recv() => match request {
                Some(request) => keeper.note(request),
                None => return,
            },
            changed = node.changed() => {
                if changed.is_err() {
                    return;
                }
                // Another process, or one that was something else before.
                keeper.access.forget();
                keeper.next_logins = Instant::now();
            }
            () = tokio::time::sleep_until(keeper.next_logins) => {}
            () = tokio::time::sleep_until(keeper.next_retry), if !keeper.failed.is_empty() => {
                let failed: Vec<Place> = keeper.failed.iter().cloned().collect();
                keeper.pending.extend(failed);
                keeper.next_retry = Instant::now() + RETRY;
            }
            () = std::future::ready(()), if !keeper.pending.is_empty() => {}
        }
        while let Ok(request) = requests.try_recv() {
            keeper.note(request);
        }
    }
}

struct Keeper {
    context: Arc<Context>,
    access: Access,
    /// When to compare the logins.
    next_logins: Instant,
    /// When to set all of them anew.
    next_renewal: Instant,
    /// Where there are Secrets with credentials, or may be, by realm.
    known: HashMap<String, BTreeSet<String>>,
    /// What has to be looked at.
    pending: HashSet<Place>,
    /// What has to be looked at again.
    failed: HashSet<Place>,
    /// When.
    next_retry: Instant,
}

impl Keeper {
    fn note(&mut self, request: Request) {
        match request {
            Request::Realm(realm) => self.note_realm(&realm),
            Request::Secret { realm, namespace } => {
                self.known.entry(realm.clone()).or_default().insert(namespace.clone());
                self.pending.insert((realm, namespace));
            }
            Request::All => {
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
        self.pending.extend(namespaces.into_iter().map(|namespace| (realm.to_owned(), namespace)));
        self.next_logins = Instant::now();
    }

    /// Makes Redis let in whom the realms let in.
    async fn logins(&mut self) {
        let context = self.context.clone();
        let before = *context.isolation.borrow();
        if Instant::now() >= self.next_renewal {
            // Somebody may have altered one, which its name does not tell.
            self.access.forget();
            self.next_renewal = Instant::now() + SAFETY_NET;
        }
        let has_place = login_url(&context, "x", &SecretText::new("x".to_owned())).is_some();
        let isolation = if has_place {
            let users = realms(&context).into_iter().flat_map(|realm| users(&context, &realm));
            let wanted: HashMap<String, AclUser> =
                users.map(|user| (user.name.clone(), user)).collect();
            // Those of other namespaces are somebody else's to look after.
            let is_ours = |realm: &RealmId| {
                context
                    .realms
                    .namespace_of(realm)
                    .is_none_or(|namespace| context.scopes.cover(&namespace))
            };
            self.access.apply(&wanted, is_ours).await
        } else {
            Ok(Isolation::NotPermitted)
        };
        match isolation {
            Ok(isolation) => {
                let isolation = isolation.after(before);
                self.next_logins = Instant::now() + jittered(SAFETY_NET, &mut context.random());
                if isolation != before {
                    tell(isolation);
                    context.isolation.send_replace(isolation);
                    // Another login has to be told to services.
                    self.note(Request::All);
                    self.next_logins = Instant::now() + jittered(SAFETY_NET, &mut context.random());
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
    async fn secrets(&mut self) {
        let context = self.context.clone();
        let places: Vec<Place> = self.pending.iter().take(BATCH).cloned().collect();
        for place in &places {
            self.pending.remove(place);
        }
        let looks = places.into_iter().map(|place| {
            let context = context.clone();
            async move { (ensure(&context, &place).await, place) }
        });
        let results: Vec<_> =
            futures_util::stream::iter(looks).buffer_unordered(CONCURRENT).collect().await;
        for (result, place) in results {
            self.looked(result, place);
        }
    }

    fn looked(&mut self, result: Result<bool, CredentialsError>, place: Place) {
        let (realm, namespace) = &place;
        let known = self.known.entry(realm.clone()).or_default();
        match &result {
            Ok(false) | Err(CredentialsError::NotOurs(_)) => known.remove(namespace),
            Ok(true) | Err(_) => known.insert(namespace.clone()),
        };
        if known.is_empty() {
            self.known.remove(realm);
        }
        let in_the_way = matches!(result, Err(CredentialsError::NotOurs(_)));
        let news = self.context.in_the_way.set(&place, in_the_way);
        match result {
            Ok(_) | Err(CredentialsError::Realm(RealmError::Gone)) => {
                self.failed.remove(&place);
            }
            Err(error) => {
                if news || !self.failed.contains(&place) {
                    tracing::warn!(realm, namespace, %error, "the credentials for services could not be written; trying again");
                }
                if self.failed.is_empty() {
                    self.next_retry = Instant::now() + RETRY;
                }
                self.failed.insert(place);
            }
        }
    }
}

fn tell(isolation: Isolation) {
    match isolation {
        Isolation::Isolated | Isolation::Unknown => {
            tracing::info!("services log in to Redis with users of their own");
        }
        Isolation::RealmsOnly => tracing::warn!(
            "Redis is older than version 7: services can overwrite the records of the realm that lets them in"
        ),
        Isolation::Withheld => tracing::error!(
            "the operator may not use ACL in Redis any more: services keep their logins, but no new ones come and none go"
        ),
        Isolation::NotPermitted => tracing::warn!(
            "the operator may not use ACL in Redis: services get its own login, and are not kept apart by Redis"
        ),
    }
}

/// Makes the credentials of a realm in a namespace what they should be. Tells whether there are
/// any.
async fn ensure(context: &Context, (realm, namespace): &Place) -> Result<bool, CredentialsError> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let name = labels::credentials_name(realm);
    let place = context.policies.namespace(namespace);
    let found = request::optional(request::within(secrets.get(&name)).await)?;
    let Some((uid, ending)) = place.filter(|_| needs(context, realm, namespace)) else {
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
    let realm = context.realms.of(realm).await?;
    let login = context.realms.login(&realm.id, &uid);
    let url = match &found {
        // What Redis can do is not known yet, and was known when this was written.
        Some(found) if *context.isolation.borrow() == Isolation::Unknown => {
            told_url(found).unwrap_or_else(|| redis_url(context, &realm, &login))
        }
        // Another process of the operator has given a login: see `Isolation::after`.
        Some(found) if *context.isolation.borrow() == Isolation::NotPermitted => told_url(found)
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
