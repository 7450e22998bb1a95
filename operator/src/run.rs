//! An operator from its first request to its last. Enters: a configuration, a client and a signal to stop. Leaves: the end, clean or
//! with the reason. Every task is joined here, and the end of one ends all.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::controller::{self, Action};
use kube::runtime::{applier, reflector};
use kube::{Api, Client, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch as watch_channel;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twofactor_api::TwoFactorUser;
use twofactor_core::names::{Installation, RealmId, RealmNames};
use twofactor_core::realm::RealmRecord;
use twofactor_core::secret::SecretText;
use twofactor_server::admin::{self, Check};
use twofactor_server::http::{self, Limits};
use twofactor_store::clock::Clock;
use twofactor_store::redis::{RedisStore, RedisUrlError};

use crate::access::Isolation;
use crate::api::{self, ApiError};
use crate::context::{Context, Ledger};
use crate::credentials::{InTheWay, Request};
use crate::events::{self, Events};
use crate::master_key::{self, MasterKeyError};
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::queue::{self, Queue, Requests};
use crate::realms::Realms;
use crate::reconcile::{ReconcileError, failed, reconcile};
use crate::records::{self, Records};
use crate::redis_password::{self, RedisPasswordError};
use crate::watch::{self, Scopes, Synced};
use crate::{backoff, credentials, guard, realm_status, sweep};

/// How long work under way may take at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// Probes and Prometheus: few connections are enough.
const ADMIN_CONNECTIONS: usize = 64;
/// The namespace whose UID names an installation.
const CLUSTER_NAMESPACE: &str = "kube-system";

/// What the operator was told.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The namespaces that are looked at; all when there are none.
    pub namespaces: Vec<String>,
    /// Redis. May hold a password.
    pub redis_url: SecretText,
    /// The Secret with the password of Redis, in the operator's namespace; the URL holds it when absent.
    pub redis_password_secret: Option<String>,
    /// Where the operator's own Secrets are.
    pub operator_namespace: String,
    /// The name of this process in Events.
    pub instance: String,
    /// Which installation this is; the UID of the namespace `kube-system` when absent.
    pub installation: Option<Installation>,
    /// Where to serve health and metrics.
    pub admin_listen: SocketAddr,
    /// Users who are looked at at the same time.
    pub concurrency: u16,
    /// Policy and providers of realms that say nothing themselves.
    pub realm: RealmRecord,
}

/// Why an operator did not start, or ended early.
#[derive(Debug, Error)]
pub enum RunError {
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}. Choose another address with --admin-listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The URL of Redis is none.
    #[error("--redis-url {0}")]
    RedisUrl(#[from] RedisUrlError),
    /// There is no master key.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// There is no password for Redis.
    #[error(transparent)]
    RedisPassword(#[from] RedisPasswordError),
    /// The installation has no name.
    #[error("the UID of the namespace {CLUSTER_NAMESPACE} cannot be read ({0}): set --installation")]
    Installation(ApiError),
    /// The UID is not an identifier.
    #[error("the UID of the namespace {CLUSTER_NAMESPACE} is not usable: set --installation")]
    InstallationName,
    /// A metric has a wrong name: a defect.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A task ended although it should not have.
    #[error("the task {0} ended")]
    TaskEnded(&'static str),
}

/// Works until `stop`, then lets what is under way end.
///
/// # Errors
/// When it cannot start, or a task ends early.
pub async fn run(
    configuration: Configuration,
    client: Client,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let address = configuration.admin_listen;
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    let metrics = Metrics::new()?;
    let (users_synced, namespaces_synced) = (Synced::default(), Synced::default());
    let replica = Replica::default();
    let mut tasks = Tasks::default();

    // First of all, so that a probe finds somebody while the API server or its answers are late.
    let checks = [Check::required("users"), Check::required("namespaces"), Check::required("realms")];
    let redis = Check::informational("redis");
    let shown = checks.iter().cloned().chain([redis.clone()]).collect();
    let routes = admin::routes(shown, metrics.registry());
    let limits = Limits { connections: ADMIN_CONNECTIONS, drain: DRAIN, ..Limits::default() };
    tasks.spawn("admin", http::serve(listener, routes, limits, stop.clone()));
    let synced = [users_synced.clone(), namespaces_synced.clone(), replica.realms.clone()];
    for (check, synced) in checks.into_iter().zip(synced) {
        let stop = stop.clone();
        tasks.spawn("readiness", async move {
            stop.run_until_cancelled(synced.wait()).await;
            check.set(true);
            stop.cancelled().await;
        });
    }

    replica.spawn(&mut tasks, &client, &configuration, &metrics, &stop);

    let policies = replica.policies.clone();
    let prepared = stop.run_until_cancelled(prepare(&configuration, &client, metrics, policies)).await;
    let Some(prepared) = prepared else { return tasks.join(Ok(()), &stop).await };
    let Prepared { context, writer, queue, credentials, events } = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return tasks.join(Err(error), &stop).await,
    };
    let scopes = Scopes(configuration.namespaces);
    let lists = {
        let (users, namespaces) = (users_synced.clone(), namespaces_synced.clone());
        async move {
            users.wait().await;
            namespaces.wait().await;
            replica.realms.wait().await;
            replica.namespaces.wait().await;
        }
        .shared()
    };
    // Begins when the lists are complete: whose username it is depends on all of them.
    macro_rules! after_the_lists {
        ($name:literal, $task:expr) => {
            let (lists, stop) = (lists.clone(), stop.clone());
            let task = $task;
            tasks.spawn($name, async move {
                if stop.run_until_cancelled(lists).await.is_some() {
                    task.await;
                }
            });
        };
    }
    tasks.spawn(
        "user watch",
        watch::users::run(context.clone(), writer, scopes.clone(), users_synced, stop.clone()),
    );
    tasks.spawn("namespace watch", watch::namespaces::run(context.clone(), namespaces_synced, stop.clone()));
    tasks.spawn("secret watch", watch::secrets::users(context.clone(), scopes.clone(), stop.clone()));
    tasks.spawn("credentials watch", watch::secrets::credentials(context.clone(), scopes, stop.clone()));
    tasks.spawn("events", events::write(client, events, stop.clone()));
    tasks.spawn("redis check", show_store(context.clone(), redis, stop.clone()));
    after_the_lists!("guard", guard::run(context.clone(), stop.clone()));
    after_the_lists!("sweep", sweep::run(context.clone(), stop.clone()));
    after_the_lists!("records", records::run(context.clone(), stop.clone()));
    after_the_lists!("realm status", realm_status::run(context.clone(), stop.clone()));
    after_the_lists!("pod watch", watch::pods::run(context.clone(), stop.clone()));
    after_the_lists!("credentials", credentials::run(context.clone(), credentials, stop.clone()));
    after_the_lists!(
        "reconciler",
        reconcile_users(context.clone(), queue, configuration.concurrency, stop.clone())
    );
    tasks.supervise(&stop).await
}

/// What every replica does, whoever leads.
#[derive(Default)]
struct Replica {
    policies: Arc<Policies>,
    realms: Synced,
    namespaces: Synced,
}

impl Replica {
    fn spawn(
        &self,
        tasks: &mut Tasks,
        client: &Client,
        configuration: &Configuration,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) {
        tasks.spawn(
            "policies: realms",
            watch::policies::realms(
                client.clone(),
                self.policies.clone(),
                Scopes(configuration.namespaces.clone()),
                metrics.realms_unreadable.clone(),
                self.realms.clone(),
                stop.clone(),
            ),
        );
        tasks.spawn(
            "policies: namespaces",
            watch::policies::namespaces(
                client.clone(),
                self.policies.clone(),
                self.namespaces.clone(),
                stop.clone(),
            ),
        );
    }
}

struct Prepared {
    context: Arc<Context>,
    writer: reflector::store::Writer<TwoFactorUser>,
    queue: Requests,
    credentials: UnboundedReceiver<Request>,
    events: mpsc::Receiver<k8s_openapi::api::events::v1::Event>,
}

/// Gets what everything else needs. An API server that does not answer is waited for.
async fn prepare(
    configuration: &Configuration,
    client: &Client,
    metrics: Metrics,
    policies: Arc<Policies>,
) -> Result<Prepared, RunError> {
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
    let nobody: RealmId = "none".parse().map_err(|_| RunError::InstallationName)?;
    let redis_url = redis_url(configuration, client).await?;
    let store =
        RedisStore::new(redis_url.expose_secret(), RealmNames::new(&installation, &nobody), Clock::System)?;
    let (users, writer) = reflector::store();
    let (queue_in, queue) = Queue::new(configuration.concurrency, metrics.queue_depth.clone());
    let (credentials_in, credentials) = mpsc::unbounded_channel();
    let (events_in, events) =
        Events::new(&configuration.instance, Clock::System, metrics.events_dropped.clone());
    tracing::info!(%installation, "starting");
    let context = Arc::new(Context {
        client: client.clone(),
        users,
        index: Mutex::default(),
        realms: Realms::new(client.clone(), master, installation, store),
        defaults: configuration.realm.clone(),
        policies,
        records: Records::default(),
        node: watch_channel::Sender::new(String::new()),
        isolation: watch_channel::Sender::new(Isolation::Unknown),
        in_the_way: InTheWay::default(),
        counts: Mutex::default(),
        outdated: Mutex::default(),
        redis_url,
        queue: queue_in,
        credentials: credentials_in,
        removals: tokio::sync::Notify::new(),
        backoff: backoff::Backoff::default(),
        ledger: Ledger::default(),
        events: events_in,
        metrics,
        clock: Clock::System,
        started: i64::try_from(Clock::System.now().millis()).unwrap_or(i64::MAX),
        scopes: Scopes(configuration.namespaces.clone()),
    });
    Ok(Prepared { context, writer, queue, credentials, events })
}

/// The URL of Redis with its password. It is what services are told, with another login where there can be one.
async fn redis_url(configuration: &Configuration, client: &Client) -> Result<SecretText, RunError> {
    let Some(secret) = &configuration.redis_password_secret else {
        return Ok(configuration.redis_url.clone());
    };
    let namespace = &configuration.operator_namespace;
    loop {
        match redis_password::load_or_create(client, namespace, secret, &mut UnwrapErr(SysRng)).await {
            Ok(password) => return Ok(redis_password::put_into(&configuration.redis_url, &password)?),
            Err(error @ RedisPasswordError::Api { .. }) if error.is_temporary() => pause(&error).await,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn installation(client: &Client) -> Result<Installation, RunError> {
    let namespaces = Api::<Namespace>::all(client.clone());
    loop {
        match api::within(namespaces.get_metadata(CLUSTER_NAMESPACE)).await {
            Ok(found) => {
                let uid = found.uid().unwrap_or_default();
                return uid.parse().map_err(|_| RunError::InstallationName);
            }
            Err(error) if error.is_temporary() => pause(&error).await,
            Err(error) => return Err(RunError::Installation(error)),
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

/// Looks at users who are in the queue, until it is told to stop and those under way are done.
async fn reconcile_users(context: Arc<Context>, queue: Requests, concurrency: u16, stop: CancellationToken) {
    // A task for each, so that all processors are used: drawing QR codes takes time.
    let reconciler = |user: Arc<TwoFactorUser>, context: Arc<Context>| {
        tokio::spawn(reconcile(user, context))
            .map(|joined| joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
            .boxed()
    };
    let policy = |user: Arc<TwoFactorUser>, error: &ReconcileError, context: Arc<Context>| -> Action {
        failed(&user, error, &context)
    };
    let requests = queue::requests(queue, stop.clone()).boxed();
    let configuration = controller::Config::default().concurrency(concurrency);
    applier(reconciler, policy, context.clone(), context.users.clone(), requests, configuration)
        .for_each(|result| {
            // Failures have been logged where they happened; users who are gone are no news.
            if let Err(controller::Error::RunnerError(error)) = result {
                tracing::error!(%error, "the reconciler cannot go on");
            }
            std::future::ready(())
        })
        .await;
}

/// Tells `/readyz?verbose` about Redis.
async fn show_store(context: Arc<Context>, check: Check, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
        check.set(context.metrics.store_up.get() == 1);
    }
}

/// Every task of the process.
#[derive(Default)]
struct Tasks(JoinSet<&'static str>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits for the signal to stop, or for a task that ends without it.
    async fn supervise(mut self, stop: &CancellationToken) -> Result<(), RunError> {
        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = self.0.join_next() => {
                // When both are true at once, it was told to.
                if stop.is_cancelled() {
                    Ok(())
                } else {
                    let name = ended.and_then(Result::ok).unwrap_or("that panicked");
                    tracing::error!(task = name, "a task has ended, and so the whole process does");
                    Err(RunError::TaskEnded(name))
                }
            }
        };
        self.join(result, stop).await
    }

    /// Ends all tasks, within bounds.
    async fn join(mut self, result: Result<(), RunError>, stop: &CancellationToken) -> Result<(), RunError> {
        stop.cancel();
        let joined = async {
            while let Some(ended) = self.0.join_next().await {
                tracing::debug!(task = ended.unwrap_or("that panicked"), "ended");
            }
        };
        if tokio::time::timeout(DRAIN, joined).await.is_err() {
            tracing::warn!(after = ?DRAIN, "something was still under way at the end");
        }
        result
    }
}
