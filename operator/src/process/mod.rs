//! Runs one replica until the signal to stop, and joins every task. If one task ends early, all
//! end.
//!
//! Every replica knows which namespaces are allowed and admits pods. One replica leads and does
//! everything else: see [`leader`].

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

/// Time for which the webhook still answers after the signal to stop, until the API servers have
/// noticed. A request without an answer is a rejected pod.
const FAREWELL: Duration = Duration::from_secs(5);
/// Timeout for the TLS handshake and the first request's head. It is short, because other pods can
/// reach these ports and could hold connections by sending nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// Idle timeout of the admin port, longer than a scraper's interval of a few seconds.
const ADMIN_IDLE: Duration = Duration::from_secs(15);
/// Maximum number of connections to the webhook. API servers keep theirs, so some hundred are
/// plenty.
const WEBHOOK_CONNECTIONS: usize = 256;
/// Timeout for one admission review. API servers give up after 10 s by default.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(8);
/// Idle timeout of the webhook, longer than the 90 s after which an API server closes an idle
/// connection itself.
const WEBHOOK_IDLE: Duration = Duration::from_mins(2);
/// Lifetime of a connection to the webhook. After that it is opened again, with the newest
/// certificate.
const WEBHOOK_LIFETIME: Duration = Duration::from_mins(5);
/// Timeout for unfinished work at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the operator until `stop`, and then finishes what is in progress.
pub async fn run(
    configuration: Configuration,
    client: Client,
    stop: CancellationToken,
) -> Result<(), StartError> {
    // The URL is checked now and not when this replica leads for the first time, so that a new
    // version with an invalid one does not become ready.
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

    // The admin port comes first, so that probes get an answer while the API server is slow.
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
        let follow = certificates::refresh_certificate(
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

/// What every replica knows.
#[derive(Default)]
struct Replica {
    policies: Arc<Policies>,
    realms: Synced,
    namespaces: Synced,
}

impl Replica {
    /// Returns the lookup with which the webhook answers from memory.
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
