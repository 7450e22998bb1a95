//! Reads or creates what the leader needs before its tasks begin, and waits for what is missing:
//! see [`Preparation`].

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, watch};
use twofactor_core::names::{Installation, RealmId, RealmNames};
use twofactor_store::clock::Clock;
use twofactor_store::redis::{RedisAccess, RedisStore};

use super::config::{CLUSTER_NAMESPACE, Configuration};
use super::master_key;
use super::obstacle::{Need, Obstacle, Preparation};
use crate::certificates::rotation::Shown;
use crate::k8s::backoff::Backoff;
use crate::k8s::events::Events;
use crate::k8s::request;
use crate::metrics::Metrics;
use crate::redis::access::AccessError;
use crate::state::asking::AskingPods;
use crate::state::credentials::{CredentialsQueue, CredentialsRequest, ForeignSecrets, Isolation};
use crate::state::imports::Imports;
use crate::state::own_writes::OwnWrites;
use crate::state::queue::Queue;
use crate::state::realm_keys::KeyRing;
use crate::state::realm_policies::Policies;
use crate::state::realm_secrets::{Records, SharedKey};
use crate::state::realms::Realms;
use crate::state::redis_owner::RedisOwner;
use crate::state::refused_watches::RefusedWatches;
use crate::state::user_objects::UserObjects;
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::state::{Context, RealmsState, Runtime, ServicesState, UserState};

pub struct Prepared {
    pub context: Arc<Context>,
    pub credentials: UnboundedReceiver<CredentialsRequest>,
}

/// Reads or creates everything that the leader's tasks need, and waits until it is there.
pub async fn prepare(
    configuration: &Configuration,
    client: &Client,
    metrics: &Metrics,
    policies: &Arc<Policies>,
    refused: &RefusedWatches,
    events: &Events,
    owner: Arc<RedisOwner>,
) -> Prepared {
    let preparation = Preparation {
        namespace: &configuration.operator_namespace,
        redis_certificate: configuration.redis.certificate.as_ref().map(|it| it.secret.as_str()),
        redis_password: configuration.redis.password_secret.as_deref(),
        metrics,
        events,
    };
    let installation =
        preparation.wait_for(Need::Installation, || installation(configuration, client)).await;
    let keys = preparation.wait_for(Need::MasterKey, || master_key(configuration, client)).await;
    let authorities =
        preparation.wait_for(Need::RedisCertificate, || certificate(configuration, client)).await;
    let (redis, store) = preparation
        .wait_for(Need::RedisPassword, || {
            connect(configuration, client, authorities.clone(), &installation)
        })
        .await;
    let (credentials_queue, credentials) = CredentialsQueue::new();
    tracing::info!(%installation, "leader starting");
    let context = Context {
        runtime: Runtime {
            client: client.clone(),
            clock: Clock::System,
            events: events.clone(),
            metrics: metrics.clone(),
            watched: WatchedNamespaces(configuration.namespaces.clone()),
            owner,
            hold_new_seeds: configuration.hold_new_seeds,
            refused: refused.clone(),
            started: i64::try_from(Clock::System.now().millis()).unwrap_or(i64::MAX),
            node: watch::Sender::new(String::new()),
            removals: Notify::new(),
            realm_removals: Notify::new(),
            // What an earlier version has published is not in the sets of users.
            is_search_due: AtomicBool::new(true),
            comparisons: Notify::new(),
            redis_failed: Notify::new(),
            is_login_refused: AtomicBool::new(false),
        },
        users: UserState {
            objects: UserObjects::default(),
            usernames: Mutex::default(),
            queue: Queue::new(metrics.queue_depth.clone(), metrics.parked.clone()),
            own_writes: OwnWrites::default(),
            imports: Imports::default(),
            backoff: Backoff::default(),
        },
        realms: RealmsState {
            registry: Realms::new(client.clone(), keys, installation, store),
            policies: policies.clone(),
            secrets: Records::default(),
            defaults: watch::Sender::new(configuration.realm.clone()),
            shared_key: SharedKey {
                namespace: configuration.operator_namespace.clone(),
                secret: configuration.secret_key_secret.clone(),
                realms: configuration.secret_key_namespaces.clone(),
            },
        },
        services: ServicesState {
            credentials_queue,
            isolation: watch::Sender::new(Isolation::Unknown),
            foreign_secrets: ForeignSecrets::default(),
            asking: AskingPods::default(),
            excluded: configuration.excluded_namespaces.clone(),
            within_reach: WatchedNamespaces::of_services(
                &configuration.service_namespaces,
                &configuration.namespaces,
            ),
            outdated_pods: Mutex::default(),
            redis: watch::Sender::new(redis),
            shared_login: configuration.shared_login.clone(),
        },
    };
    Prepared { context: Arc::new(context), credentials }
}

/// Returns the name of the installation: as configured, or the UID of the namespace `kube-system`.
async fn installation(
    configuration: &Configuration,
    client: &Client,
) -> Result<Installation, Obstacle> {
    if let Some(installation) = &configuration.installation {
        return Ok(installation.clone());
    }
    let namespaces = Api::<Namespace>::all(client.clone());
    let found = request::within(namespaces.get_metadata(CLUSTER_NAMESPACE)).await;
    let uid = found.map_err(Obstacle::Installation)?.uid().unwrap_or_default();
    uid.parse().map_err(|_| Obstacle::InstallationName)
}

async fn master_key(configuration: &Configuration, client: &Client) -> Result<KeyRing, Obstacle> {
    let namespace = &configuration.operator_namespace;
    let watched = WatchedNamespaces(configuration.namespaces.clone());
    let (now, random) = (Clock::System.now(), &mut UnwrapErr(SysRng));
    Ok(master_key::load_or_create(client, namespace, &watched, now, random).await?)
}

/// Makes the certificate of Redis, if the operator does so, and returns its authorities.
async fn certificate(
    configuration: &Configuration,
    client: &Client,
) -> Result<Option<String>, Obstacle> {
    let certificate = configuration.redis.certificate(client, &Shown::default()).await;
    Ok(certificate.map_err(AccessError::Certificate)?.map(|made| made.authorities))
}

/// Returns the access to Redis, and a store of no realm in particular, whose connections all realms
/// share.
async fn connect(
    configuration: &Configuration,
    client: &Client,
    authorities: Option<String>,
    installation: &Installation,
) -> Result<(RedisAccess, RedisStore), Obstacle> {
    let random = &mut UnwrapErr(SysRng);
    let access = configuration.redis.load_or_create(client, authorities, random).await?;
    let no_realm: RealmId = "none".parse().map_err(|_| Obstacle::InstallationName)?;
    let names = RealmNames::new(installation, &no_realm);
    let store = RedisStore::with_access(&access, names, Clock::System);
    Ok((access, store.map_err(AccessError::Target)?))
}
