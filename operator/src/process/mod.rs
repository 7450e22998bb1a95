//! An operator from its first request to its last. Enters: a configuration, a client and a signal
//! to stop. Leaves: the end, clean or with the reason. Every task is joined here, and the end of
//! one ends all.
//!
//! Every replica knows who lets whom in and admits pods. One of them leads, which is to do all the
//! rest: see [`crate::process::leader`].

pub mod config;
pub mod error;
pub mod leader;
pub mod lease;
pub mod master_key;
pub mod redis_password;
pub mod startup;
pub mod tasks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::{self, Check, NamedChecks};
use twofactor_server::http::{self, Limits};
use twofactor_server::tls::{self, CurrentCertificate};
use twofactor_store::clock::Clock;
use twofactor_store::redis::{RedisStore, SettingsWatch};

use self::config::Configuration;
use self::error::StartError;
use self::leader::Leader;
use self::tasks::Tasks;
use crate::metrics::Metrics;
use crate::state::realm_policies::Policies;
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::watch::{self, Synced};
use crate::webhook::metrics::AdmissionMetrics;
use crate::webhook::{self, AccessLookup, certificates};

/// How long the webhook goes on after the signal to stop: until the API servers have noticed that
/// it will be gone. A request that nobody answers is a pod that is refused.
const FAREWELL: Duration = Duration::from_secs(5);
/// For TLS to be agreed on, and for the first request's head to arrive: whoever asks here asks at
/// once. Strangers in the cluster's network, who can reach these ports, hold a slot for no longer
/// by sending nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// For a scraper's connection to be kept.
const ADMIN_IDLE: Duration = Duration::from_secs(15);
/// API servers keep their connections; some hundred of them are many.
const WEBHOOK_CONNECTIONS: usize = 256;
/// For a review: API servers wait for 10 s by default.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(8);
/// For an API server's connection to be kept: longer than it keeps one itself without a request (90
/// s).
const WEBHOOK_IDLE: Duration = Duration::from_mins(2);
/// For a connection to be used: then it is made anew, with the newest certificate.
const WEBHOOK_LIFETIME: Duration = Duration::from_mins(5);
/// How long work under way may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Works until `stop`, then lets what is under way end.
pub async fn run(
    configuration: Configuration,
    client: Client,
    stop: CancellationToken,
) -> Result<(), StartError> {
    // Now, and not when this replica leads for the first time: a new version with a wrong one does
    // not become ready.
    RedisStore::check_target(
        configuration.redis_url.expose_secret(),
        configuration.redis_authority.as_deref(),
    )?;
    let admin = listen(configuration.admin_listen, "--admin-listen").await?;
    let webhook = match &configuration.webhook {
        Some(webhook) => Some((webhook.clone(), listen(webhook.listen, "--webhook-listen").await?)),
        None => None,
    };
    let metrics = Metrics::new()?;
    let replica = Replica::default();
    let mut tasks = Tasks::default();

    // First of all, so that a probe finds somebody while the API server or its answers are late.
    let certificate = webhook.as_ref().map(|_| Check::required("certificate"));
    let lists = [("realms", replica.realms.clone()), ("namespaces", replica.namespaces.clone())]
        .map(|(name, synced)| (Check::required(name), synced));
    let (leading, redis) = (Check::informational("leading"), Check::informational("redis"));
    let redis_settings = NamedChecks::new(SettingsWatch::check_names());
    let of_settings = redis_settings.all();
    let shown = lists
        .iter()
        .map(|(check, _)| check)
        .chain(&certificate)
        .chain([&leading, &redis])
        .chain(&of_settings);
    let routes = admin::routes(shown.cloned().collect(), metrics.registry());
    let limits = Limits { idle: Some(ADMIN_IDLE), drain: DRAIN, ..admin::limits() };
    tasks.spawn("admin", http::serve(admin, routes, limits, stop.clone()));
    for (check, synced) in lists {
        let stop = stop.clone();
        tasks.spawn("readiness", async move {
            stop.run_until_cancelled(synced.wait()).await;
            check.set(true);
            stop.cancelled().await;
        });
    }

    replica.watch(&mut tasks, &client, &configuration, &metrics, &stop);
    if let (Some((webhook, listener)), Some(ready)) = (webhook, certificate) {
        let settings = webhook.certificates(&configuration.operator_namespace);
        let current = Arc::new(CurrentCertificate::default());
        let tls = tls::configuration(current.clone())?;
        let follow = certificates::follow(
            client.clone(),
            settings,
            current,
            ready,
            Clock::System,
            stop.clone(),
        );
        tasks.spawn("webhook certificate", follow);
        let admission = AdmissionMetrics::new(&metrics.registry())?;
        let routes =
            webhook::routes::routes(Arc::new(webhook.sidecar), replica.access(), admission);
        tasks.spawn(
            "webhook",
            http::serve_tls(listener, tls, routes, webhook_limits(), stop.clone()),
        );
    }
    let leader = Leader {
        configuration,
        client,
        metrics,
        policies: replica.policies,
        policies_synced: [replica.realms, replica.namespaces],
        leading,
        redis,
        redis_settings,
    };
    tasks.spawn_fallible("leader", leader.run(stop.clone()));
    tasks.supervise(&stop, FAREWELL + DRAIN).await
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, flag, source })
}

fn webhook_limits() -> Limits {
    Limits {
        connections: WEBHOOK_CONNECTIONS,
        header_timeout: HEAD_TIMEOUT,
        drain: DRAIN,
        idle: Some(WEBHOOK_IDLE),
        request: Some(REVIEW_TIMEOUT),
        lifetime: Some(WEBHOOK_LIFETIME),
        shutdown_delay: FAREWELL,
        ..Limits::default()
    }
}

/// What every replica knows, whoever leads.
#[derive(Default)]
struct Replica {
    policies: Arc<Policies>,
    realms: Synced,
    namespaces: Synced,
}

impl Replica {
    /// Answers the webhook from memory.
    fn access(&self) -> AccessLookup {
        let policies = self.policies.clone();
        Arc::new(move |realm, namespace| policies.access(realm, namespace))
    }

    fn watch(
        &self,
        tasks: &mut Tasks,
        client: &Client,
        configuration: &Configuration,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) {
        tasks.spawn(
            "policies: realms",
            watch::realms::realms(
                client.clone(),
                self.policies.clone(),
                WatchedNamespaces(configuration.namespaces.clone()),
                metrics.realms_unreadable.clone(),
                self.realms.clone(),
                stop.clone(),
            ),
        );
        tasks.spawn(
            "policies: namespaces",
            watch::realms::namespaces(
                client.clone(),
                self.policies.clone(),
                self.namespaces.clone(),
                stop.clone(),
            ),
        );
    }
}
