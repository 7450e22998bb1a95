//! Reads and creates what the leader needs before its tasks begin.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::reflector;
use kube::{Api, Client, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch as watch_channel;
use twofactor_api::TwoFactorUser;
use twofactor_core::names::{Installation, RealmId, RealmNames};
use twofactor_core::secret::SecretText;
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisStore;

use super::config::{CLUSTER_NAMESPACE, Configuration};
use super::error::StartError;
use super::master_key::{self, MasterKeyError};
use super::redis_password::{self, RedisPasswordError};
use crate::k8s::backoff;
use crate::k8s::events::Events;
use crate::k8s::request;
use crate::metrics::Metrics;
use crate::state::Context;
use crate::state::credentials::{CredentialsQueue, CredentialsRequest, ForeignSecrets, Isolation};
use crate::state::own_writes::OwnWrites;
use crate::state::queue::{Queue, Requests};
use crate::state::realm_policies::Policies;
use crate::state::realm_secrets::{Records, SharedKey};
use crate::state::realms::Realms;
use crate::state::watched_namespaces::WatchedNamespaces;

pub struct Prepared {
    pub context: Arc<Context>,
    pub writer: reflector::store::Writer<TwoFactorUser>,
    pub queue: Requests,
    pub credentials: UnboundedReceiver<CredentialsRequest>,
    pub events: mpsc::Receiver<k8s_openapi::api::events::v1::Event>,
}

/// Gets what everything else needs. An API server that does not answer is waited for.
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
    // Of no realm in particular; its connection is that of all.
    let nobody: RealmId = "none".parse().map_err(|_| StartError::InstallationName)?;
    let redis_url = redis_url(configuration, client).await?;
    let store = RedisStore::with_authority(
        redis_url.expose_secret(),
        configuration.redis_authority.as_deref(),
        RealmNames::new(&installation, &nobody),
        Clock::System,
    )?;
    let (users, writer) = reflector::store();
    let (queue_in, queue) = Queue::new(configuration.concurrency, metrics.queue_depth.clone());
    let (credentials_queue, credentials) = CredentialsQueue::new();
    let (events_in, events) =
        Events::new(&configuration.instance, Clock::System, metrics.events_dropped.clone());
    tracing::info!(%installation, "starting");
    let context = Arc::new(Context {
        client: client.clone(),
        users,
        usernames: Mutex::default(),
        realms: Realms::new(client.clone(), master, installation, store),
        defaults: configuration.realm.clone(),
        policies: policies.clone(),
        records: Records::default(),
        node: watch_channel::Sender::new(String::new()),
        isolation: watch_channel::Sender::new(Isolation::Unknown),
        foreign_secrets: ForeignSecrets::default(),
        counts: Mutex::default(),
        outdated: Mutex::default(),
        shared_key: SharedKey {
            namespace: configuration.operator_namespace.clone(),
            secret: configuration.secret_key_secret.clone(),
            realms: configuration.secret_key_namespaces.clone(),
        },
        redis_url,
        redis_authority: configuration.redis_authority.clone(),
        queue: queue_in,
        credentials_queue,
        removals: tokio::sync::Notify::new(),
        backoff: backoff::Backoff::default(),
        own_writes: OwnWrites::default(),
        events: events_in,
        metrics: metrics.clone(),
        clock: Clock::System,
        started: i64::try_from(Clock::System.now().millis()).unwrap_or(i64::MAX),
        watched: WatchedNamespaces(configuration.namespaces.clone()),
    });
    Ok(Prepared { context, writer, queue, credentials, events })
}

/// The URL of Redis with its password. It is what services are told, with another login where there
/// can be one.
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
    tracing::warn!(%error, "waiting for the API server");
    tokio::time::sleep(backoff::jittered(Duration::from_secs(1), &mut UnwrapErr(SysRng))).await;
}
