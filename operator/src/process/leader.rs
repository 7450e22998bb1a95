//! Waits for the leadership, runs the leader's tasks until the signal to stop, and then releases
//! the Lease.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use kube::Client;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::{Check, NamedChecks};
use twofactor_store::clock::Clock;

use super::config::Configuration;
use super::error::StartError;
use super::lease::{self, Leadership};
use super::startup::{self, Prepared};
use super::tasks::Tasks;
use crate::k8s::events::{self, Events};
use crate::metrics::Metrics;
use crate::realm::{self, credentials};
use crate::redis::{access, comparison, leftovers, monitor, removals, settings};
use crate::state::Context;
use crate::state::realm_policies::Policies;
use crate::state::redis_owner::RedisOwner;
use crate::state::refused_watches::RefusedWatches;
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::user::{self, failures};
use crate::watch::{self, Synced};

/// Timeout for unfinished work when the leadership ends. Another replica takes over after that.
const DRAIN: Duration = Duration::from_secs(3);

/// What the leader shares with the rest of the replica.
pub struct Leader {
    /// The operator's settings.
    pub configuration: Configuration,
    pub client: Client,
    pub metrics: Metrics,
    /// The namespaces that realms allow.
    pub policies: Arc<Policies>,
    /// Whether `policies` is complete.
    pub policies_synced: [Synced; 2],
    /// Watches that the API server refuses.
    pub refused: RefusedWatches,
    /// Passes while this replica leads and knows all users.
    pub leading: Check,
    /// Passes while Redis answers.
    pub redis: Check,
    /// Pass while the settings of Redis are strong enough.
    pub redis_settings: NamedChecks,
}

impl Leader {
    /// Waits for the leadership, and leads until `stop`. If the leadership is lost or a task ends
    /// early, the whole process should end.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StartError> {
        let Configuration { operator_namespace, lease, instance, .. } = &self.configuration;
        let settings = lease::Settings::new(operator_namespace, lease, instance);
        let owner = Arc::new(RedisOwner::new(operator_namespace, lease));
        let acquired =
            lease::acquire(&self.client, settings, owner.clone(), Clock::System, &stop).await;
        let Some(leadership) = acquired else { return Ok(()) };
        self.metrics.leader.set(1);
        let metrics = self.metrics.clone();
        // The leader's tasks have to end before the leadership is released.
        let work = stop.child_token();
        let result = Box::pin(self.work(&leadership, owner, &work)).await;
        metrics.leader.set(0);
        leadership.release().await;
        result
    }

    async fn work(
        self,
        leadership: &Leadership,
        owner: Arc<RedisOwner>,
        stop: &CancellationToken,
    ) -> Result<(), StartError> {
        let mut tasks = Tasks::default();
        let (lost, redis_lost, stopped) = (leadership.lost(), owner.lost(), stop.clone());
        tasks.spawn_fallible("leadership", async move {
            tokio::select! {
                () = lost => Err(StartError::LeadershipLost),
                () = redis_lost => Err(StartError::RedisLost),
                () = stopped.cancelled() => Ok(()),
            }
        });
        let instance = &self.configuration.instance;
        let (events, pending) =
            Events::new(instance, Clock::System, self.metrics.events_dropped.clone());
        tasks.spawn("events", events::write(self.client.clone(), pending, stop.clone()));
        // The preparation can take long, and no task may begin after the leadership is lost.
        let prepared = async {
            tokio::select! {
                () = leadership.lost() => None,
                prepared = startup::prepare(
                    &self.configuration, &self.client, &self.metrics, &self.policies, &self.refused, &events, owner,
                ) => Some(prepared),
            }
        };
        if let Some(Some(prepared)) = stop.run_until_cancelled(prepared).await {
            self.begin(prepared, &mut tasks, stop);
        }
        tasks.supervise(stop, DRAIN).await
    }

    fn begin(self, prepared: Prepared, tasks: &mut Tasks, stop: &CancellationToken) {
        let Self { configuration, policies_synced, leading, redis, redis_settings, .. } = self;
        let Prepared { context, credentials } = prepared;
        let watched = WatchedNamespaces(configuration.namespaces.clone());
        let [users_synced, namespaces_synced, secrets_synced, imports_synced] =
            std::array::from_fn(|_| Synced::default());
        let [pods_synced, credentials_synced] = std::array::from_fn(|_| Synced::default());
        let mut synced = policies_synced.to_vec();
        synced.extend(
            [&users_synced, &namespaces_synced, &secrets_synced, &imports_synced].map(Clone::clone),
        );
        let lists = complete(synced.clone());
        // What writes to Redis and does not wait for a realm to be ready waits for this.
        let owned = owned(lists.clone(), context.runtime.owner.clone());
        synced.extend([&pods_synced, &credentials_synced].map(Clone::clone));
        let owned_with_pods = self::owned(complete(synced), context.runtime.owner.clone());
        tasks.spawn(
            "user watch",
            watch::users::run(context.clone(), watched.clone(), users_synced.clone(), stop.clone()),
        );
        tasks.spawn(
            "namespace watch",
            watch::namespaces::run(context.clone(), namespaces_synced, stop.clone()),
        );
        tasks.spawn(
            "secret watch",
            watch::secrets::users(
                context.clone(),
                watched.clone(),
                users_synced,
                secrets_synced,
                stop.clone(),
            ),
        );
        tasks.spawn(
            "import watch",
            watch::imports::run(context.clone(), watched.clone(), imports_synced, stop.clone()),
        );
        tasks.spawn(
            "credentials watch",
            watch::secrets::credentials(context.clone(), watched, credentials_synced, stop.clone()),
        );
        tasks.spawn("redis check", show_store(context.clone(), redis, stop.clone()));
        let settings = settings::run(context.clone(), redis_settings, stop.clone());
        tasks.spawn("redis settings", settings);
        let access = access::run(context.clone(), configuration.redis.clone(), stop.clone());
        tasks.spawn("redis access", access);
        if let Some(folder) = configuration.providers {
            let providers = realm::defaults::run(context.clone(), folder, stop.clone());
            tasks.spawn("providers", providers);
        }
        tasks.spawn("recovery", watch::recovery::run(context.clone(), stop.clone()));
        // These tasks need complete lists, because the owner of a username is not known before.
        tasks.spawn_after(&lists, stop, "leading", show_leading(leading, stop.clone()));
        let monitor = monitor::run(context.clone(), stop.clone());
        tasks.spawn_after(&lists, stop, "redis monitor", monitor);
        let parking = user::parking::run(context.clone(), stop.clone());
        tasks.spawn_after(&lists, stop, "parked users", parking);
        tasks.spawn_after(&owned, stop, "removals", removals::run(context.clone(), stop.clone()));
        let comparison = comparison::run(context.clone(), stop.clone());
        tasks.spawn_after(&owned, stop, "comparison", comparison);
        tasks.spawn_after(&owned, stop, "leftovers", leftovers::run(context.clone(), stop.clone()));
        tasks.spawn_after(&lists, stop, "failures", failures::run(context.clone(), stop.clone()));
        tasks.spawn_after(&lists, stop, "realm records", realm::run(context.clone(), stop.clone()));
        let status = realm::status::run(context.clone(), stop.clone());
        tasks.spawn_after(&lists, stop, "realm status", status);
        let given = realm::given::run(context.clone(), stop.clone());
        tasks.spawn_after(&owned_with_pods, stop, "given keys", given);
        let overlap = configuration.key_overlap;
        let keys = realm::keys::run(context.clone(), overlap, stop.clone());
        tasks.spawn_after(&owned, stop, "realm keys", keys);
        tasks.spawn_after(
            &lists,
            stop,
            "pod watch",
            watch::pods::run(context.clone(), pods_synced, stop.clone()),
        );
        // Logins for which no pod asks and no credentials exist are removed.
        tasks.spawn_after(
            &owned_with_pods,
            stop,
            "credentials",
            credentials::run(context.clone(), credentials, stop.clone()),
        );
        tasks.spawn_after(
            &lists,
            stop,
            "reconciler",
            user::run::run(context.clone(), configuration.concurrency, stop.clone()),
        );
    }
}

/// Completes when all lists are complete.
fn complete(lists: Vec<Synced>) -> Shared<impl Future<Output = ()>> {
    let complete = async move {
        for list in lists {
            list.wait().await;
        }
    };
    complete.shared()
}

/// Completes when all lists are complete and this operator owns the data in Redis.
fn owned(
    lists: Shared<impl Future<Output = ()> + Send + 'static>,
    owner: Arc<RedisOwner>,
) -> Shared<impl Future<Output = ()>> {
    let both = async move {
        lists.await;
        owner.wait_owned().await;
    };
    both.shared()
}

/// Shows in `/readyz?verbose` whether Redis answers.
async fn show_store(context: Arc<Context>, check: Check, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
        check.set(context.runtime.metrics.store_up.get() == 1);
    }
}

/// Shows in `/readyz?verbose` that all tasks of the leader run.
async fn show_leading(check: Check, stop: CancellationToken) {
    check.set(true);
    stop.cancelled().await;
    check.set(false);
}
