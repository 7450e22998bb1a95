//! The leader's work. Enters: the leadership, and what every replica knows. Leaves: users and
//! realms looked after, until the signal to stop; then the leadership is given back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::controller::{self, Action};
use kube::runtime::{applier, reflector};
use kube::{Api, Client, ResourceExt};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch as watch_channel;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use twofactor_api::TwoFactorUser;
use twofactor_core::names::{Installation, RealmId, RealmNames};
use twofactor_core::secret::SecretText;
use twofactor_server::admin::{Check, NamedChecks};
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisStore;

use crate::k8s::backoff;
use crate::k8s::events::{self, Events};
use crate::k8s::request;
use crate::metrics::Metrics;
use crate::process::lease::{self, Held};
use crate::process::master_key::{self, MasterKeyError};
use crate::process::redis_password::{self, RedisPasswordError};
use crate::process::tasks::Tasks;
use crate::process::{CLUSTER_NAMESPACE, Configuration, RunError};
use crate::realm::credentials;
use crate::realm::credentials::logins::Isolation;
use crate::realm::credentials::{InTheWay, Request};
use crate::realm::status;
use crate::realm::token_key::SharedKey;
use crate::realm::{self, Records};
use crate::redis::cleanup;
use crate::redis::monitor;
use crate::redis::settings;
use crate::state::queue::{self, Queue, Requests};
use crate::state::realm_policies::Policies;
use crate::state::realms::Realms;
use crate::state::watched_namespaces::Scopes;
use crate::state::{Context, Ledger};
use crate::user::failures;
use crate::user::{ReconcileError, failed, reconcile};
use crate::watch::{self, Synced};
use crate::webhook::certificates;

/// How long work under way may take when the leadership ends. Others take over after that.
const DRAIN: Duration = Duration::from_secs(3);

/// What the leader shares with the rest of the process.
pub struct Leader {
    /// What the operator was told.
    pub configuration: Configuration,
    /// The API server.
    pub client: Client,
    /// What is counted.
    pub metrics: Metrics,
    /// Who lets whom in.
    pub policies: Arc<Policies>,
    /// Whether `policies` is complete.
    pub policies_synced: [Synced; 2],
    /// Good while this process leads and knows all users.
    pub leading: Check,
    /// Good while Redis answers.
    pub redis: Check,
    /// Good while Redis' own settings are.
    pub redis_settings: NamedChecks,
}

impl Leader {
    /// Waits for the leadership, and leads until `stop`.
    ///
    /// # Errors
    /// When the leadership is lost, the work cannot begin, or a part of it ends early. Then the
    /// whole process should end.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let Configuration { operator_namespace, lease, instance, .. } = &self.configuration;
        let settings = lease::Settings::new(operator_namespace, lease, instance);
        let Some(held) = lease::acquire(&self.client, settings, Clock::System, &stop).await else {
            return Ok(());
        };
        self.metrics.leader.set(1);
        let metrics = self.metrics.clone();
        // The leader's own: it ends before the leadership is given back.
        let work = stop.child_token();
        let result = self.work(&held, &work).await;
        metrics.leader.set(0);
        held.release().await;
        result
    }

    async fn work(self, held: &Held, stop: &CancellationToken) -> Result<(), RunError> {
        let mut tasks = Tasks::default();
        let (lost, told) = (held.lost(), stop.clone());
        tasks.spawn_fallible("leadership", async move {
            tokio::select! {
                () = lost => Err(RunError::LeadershipLost),
                () = told.cancelled() => Ok(()),
            }
        });
        // First: pods are admitted also while the rest has to wait for something.
        if let Some(webhook) = &self.configuration.webhook {
            let settings = webhook.certificates(&self.configuration.operator_namespace);
            let keep =
                certificates::keep(self.client.clone(), settings, Clock::System, stop.clone());
            tasks.spawn("webhook authority", keep);
        }
        // It may wait for long, and must not begin anything when the leadership is lost meanwhile.
        let prepared = async {
            tokio::select! {
                () = held.lost() => Err(RunError::LeadershipLost),
                prepared = prepare(&self) => prepared,
            }
        };
        match stop.run_until_cancelled(prepared).await {
            Some(Ok(prepared)) => self.begin(prepared, &mut tasks, stop),
            Some(Err(error)) => tasks.spawn_fallible("preparation", async { Err(error) }),
            None => {}
        }
        tasks.supervise(stop, DRAIN).await
    }

    fn begin(self, prepared: Prepared, tasks: &mut Tasks, stop: &CancellationToken) {
        let Self { configuration, client, policies_synced, leading, redis, redis_settings, .. } =
            self;
        let Prepared { context, writer, queue, credentials, events } = prepared;
        let scopes = Scopes(configuration.namespaces.clone());
        let (users_synced, namespaces_synced) = (Synced::default(), Synced::default());
        let lists = {
            let [realms, namespaces] = policies_synced;
            let synced = [users_synced.clone(), namespaces_synced.clone(), realms, namespaces];
            async move {
                for list in synced {
                    list.wait().await;
                }
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
        tasks.spawn(
            "namespace watch",
            watch::namespaces::run(context.clone(), namespaces_synced, stop.clone()),
        );
        tasks.spawn(
            "secret watch",
            watch::secrets::users(context.clone(), scopes.clone(), stop.clone()),
        );
        tasks.spawn(
            "credentials watch",
            watch::secrets::credentials(context.clone(), scopes, stop.clone()),
        );
        tasks.spawn("events", events::write(client, events, stop.clone()));
        tasks.spawn("redis check", show_store(context.clone(), redis, stop.clone()));
        let settings = settings::run(context.clone(), redis_settings, stop.clone());
        tasks.spawn("redis settings", settings);
        after_the_lists!("leading", show_leading(leading, stop.clone()));
        after_the_lists!("guard", monitor::run(context.clone(), stop.clone()));
        after_the_lists!("sweep", cleanup::run(context.clone(), stop.clone()));
        after_the_lists!("failures", failures::run(context.clone(), stop.clone()));
        after_the_lists!("records", realm::run(context.clone(), stop.clone()));
        after_the_lists!("realm status", status::run(context.clone(), stop.clone()));
        after_the_lists!("pod watch", watch::pods::run(context.clone(), stop.clone()));
        after_the_lists!(
            "credentials",
            credentials::run(context.clone(), credentials, stop.clone())
        );
        after_the_lists!(
            "reconciler",
            reconcile_users(context.clone(), queue, configuration.concurrency, stop.clone())
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
async fn prepare(leader: &Leader) -> Result<Prepared, RunError> {
    let Leader { configuration, client, metrics, policies, .. } = leader;
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
    let store = RedisStore::with_authority(
        redis_url.expose_secret(),
        configuration.redis_authority.as_deref(),
        RealmNames::new(&installation, &nobody),
        Clock::System,
    )?;
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
        policies: policies.clone(),
        records: Records::default(),
        node: watch_channel::Sender::new(String::new()),
        isolation: watch_channel::Sender::new(Isolation::Unknown),
        in_the_way: InTheWay::default(),
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
        credentials: credentials_in,
        removals: tokio::sync::Notify::new(),
        backoff: backoff::Backoff::default(),
        ledger: Ledger::default(),
        events: events_in,
        metrics: metrics.clone(),
        clock: Clock::System,
        started: i64::try_from(Clock::System.now().millis()).unwrap_or(i64::MAX),
        scopes: Scopes(configuration.namespaces.clone()),
    });
    Ok(Prepared { context, writer, queue, credentials, events })
}

/// The URL of Redis with its password. It is what services are told, with another login where there
/// can be one.
async fn redis_url(configuration: &Configuration, client: &Client) -> Result<SecretText, RunError> {
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

async fn installation(client: &Client) -> Result<Installation, RunError> {
    let namespaces = Api::<Namespace>::all(client.clone());
    loop {
        match request::within(namespaces.get_metadata(CLUSTER_NAMESPACE)).await {
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
async fn reconcile_users(
    context: Arc<Context>,
    queue: Requests,
    concurrency: u16,
    stop: CancellationToken,
) {
    // A task for each, so that all processors are used: drawing QR codes takes time.
    let reconciler = |user: Arc<TwoFactorUser>, context: Arc<Context>| {
        // Ended with the leadership at the latest: what is written later would be written beside
        // another leader.
        AbortOnDropHandle::new(tokio::spawn(reconcile(user, context)))
            .map(|joined| {
                joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
            })
            .boxed()
    };
    let policy = |user: Arc<TwoFactorUser>,
                  error: &ReconcileError,
                  context: Arc<Context>|
     -> Action { failed(&user, error, &context) };
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

/// Tells `/readyz?verbose` that everything that the leader does has begun.
async fn show_leading(check: Check, stop: CancellationToken) {
    check.set(true);
    stop.cancelled().await;
    check.set(false);
}
