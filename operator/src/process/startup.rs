//! Reads or creates what the leader needs before its tasks begin, and waits for an API server that
//! does not answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{Notify, watch};
use twofactor_core::names::{Installation, RealmId, RealmNames};
use twofactor_core::secret::SecretText;
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisStore;

use super::config::{CLUSTER_NAMESPACE, Configuration};
use super::error::StartError;
use super::master_key::{self, MasterKeyError};
use super::redis_password::{self, RedisPasswordError};
use crate::k8s::backoff::{Backoff, jittered};
use crate::k8s::events::Events;
use crate::k8s::request;
use crate::metrics::Metrics;
use crate::state::credentials::{CredentialsQueue, CredentialsRequest, ForeignSecrets, Isolation};
use crate::state::own_writes::OwnWrites;
use crate::state::queue::Queue;
use crate::state::realm_policies::Policies;
use crate::state::realm_secrets::{Records, SharedKey};
use crate::state::realms::Realms;
use crate::state::user_objects::UserObjects;
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::state::{Context, RealmsState, Runtime, ServicesState, UserState};

pub struct Prepared {
    pub context: Arc<Context>,
    pub credentials: UnboundedReceiver<CredentialsRequest>,
    pub events: mpsc::Receiver<k8s_openapi::api::events::v1::Event>,
}

/// Reads or creates everything that the leader's tasks need.
pub async fn prepare(
    configuration: &Configuration,
    client: &Client,
    metrics: &Metrics,
    policies: &Arc<Policies>,
) -> Result<Prepared, StartError> {
    let installation = match &configuration.installation {
        Some(installation) => installation.clone(),
        None => installation(client).await?,
    };
    let master = loop {
        let namespace = &configuration.operator_namespace;
        match master_key::load_or_create(client, namespace, &mut UnwrapErr(SysRng)).await {
            Ok(master) => break master,
            Err(error @ MasterKeyError::Api { .. }) if is_temporary(&error) => pause(&error).await,
            Err(error) => return Err(error.into()),
        }
    };
    // The store of no realm in particular; all realms share its connections.
    let no_realm: RealmId = "none".parse().map_err(|_| StartError::InstallationName)?;
    let redis_url = redis_url(configuration, client).await?;
    let store = RedisStore::with_authority(
        redis_url.expose_secret(),
        configuration.redis_authority.as_deref(),
        RealmNames::new(&installation, &no_realm),
        Clock::System,
    )?;
    let (credentials_queue, credentials) = CredentialsQueue::new();
    let (events_in, events) =
        Events::new(&configuration.instance, Clock::System, metrics.events_dropped.clone());
    tracing::info!(%installation, "leader starting");
    let context = Context {
        runtime: Runtime {
            client: client.clone(),
            clock: Clock::System,
            events: events_in,
            metrics: metrics.clone(),
            watched: WatchedNamespaces(configuration.namespaces.clone()),
            started: i64::try_from(Clock::System.now().millis()).unwrap_or(i64::MAX),
            node: watch::Sender::new(String::new()),
            removals: Notify::new(),
        },
        users: UserState {
            objects: UserObjects::default(),
            usernames: Mutex::default(),
            queue: Queue::new(metrics.queue_depth.clone(), metrics.parked.clone()),
            own_writes: OwnWrites::default(),
            backoff: Backoff::default(),
        },
        realms: RealmsState {
            registry: Realms::new(client.clone(), master, installation, store),
            policies: policies.clone(),
            secrets: Records::default(),
            defaults: configuration.realm.clone(),
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
            outdated_pods: Mutex::default(),
            redis_url,
            redis_authority: configuration.redis_authority.clone(),
        },
    };
    let context = Arc::new(context);
    Ok(Prepared { context, credentials, events })
}

/// Returns the URL of Redis with its password. Services get the same URL, with another login if
/// possible.
async fn redis_url(
    configuration: &Configuration,
    client: &Client,
) -> Result<SecretText, StartError> {
    let Some(secret) = &configuration.redis_password_secret else {
        return Ok(configuration.redis_url.clone());
    };
    let namespace = &configuration.operator_namespace;
    loop {
        match redis_password::load_or_create(client, namespace, secret, &mut UnwrapErr(SysRng))
            .await
        {
            Ok(password) => {
                return Ok(redis_password::put_into(&configuration.redis_url, &password)?);
            }
            Err(error @ RedisPasswordError::Api { .. }) if error.is_temporary() => {
                pause(&error).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn installation(client: &Client) -> Result<Installation, StartError> {
    let namespaces = Api::<Namespace>::all(client.clone());
    loop {
        match request::within(namespaces.get_metadata(CLUSTER_NAMESPACE)).await {
            Ok(found) => {
                let uid = found.uid().unwrap_or_default();
                return uid.parse().map_err(|_| StartError::InstallationName);
            }
            Err(error) if error.is_temporary() => pause(&error).await,
            Err(error) => return Err(StartError::Installation(error)),
        }
    }
}

fn is_temporary(error: &MasterKeyError) -> bool {
    matches!(error, MasterKeyError::Api { source, .. } if source.is_temporary())
}

async fn pause(error: &impl std::fmt::Display) {
    tracing::warn!(%error, "failed to reach the API server; trying again");
    tokio::time::sleep(jittered(Duration::from_secs(1), &mut UnwrapErr(SysRng))).await;
}
