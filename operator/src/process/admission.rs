//! Runs admission: the webhook, with its certificates and what it knows of realms and namespaces.
//! It needs neither Redis, nor a key, nor a leader.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::Check;
use twofactor_server::http::{self, Limits, Tls};
use twofactor_server::tls::{self, CurrentCertificate};
use twofactor_store::clock::Clock;

use super::DRAIN;
use super::config::AdmissionConfiguration;
use super::error::StartError;
use super::replica::{Replica, listen};
use super::tasks::Tasks;
use crate::k8s::watch_signs::WatchSigns;
use crate::metrics;
use crate::state::limit_ranges::LimitRanges;
use crate::watch;
use crate::webhook::clients::{self, ClientRules, ClientVerifier};
use crate::webhook::metrics::{AdmissionMetrics, CertificateMetrics, RejectedClients};
use crate::webhook::{AccessLookup, LimitLookup, certificates, given_certificate, routes};

/// Time for which the webhook still answers after the signal to stop, until the API servers have
/// noticed. A request without an answer is a rejected pod.
const FAREWELL: Duration = Duration::from_secs(5);
/// Timeout for the TLS handshake and the first request's head. It is short, because other pods can
/// reach this port and could hold connections by sending nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of connections to the webhook.
const CONNECTIONS: usize = 512;
/// Maximum number of connections of one address. Every pod of the cluster can open some; an API
/// server keeps 25 and opens a few more in a burst.
const SHARE: usize = 64;
/// Timeout for one admission review. API servers give up after 10 s by default.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(8);
/// Idle timeout of the webhook, longer than the 90 s after which an API server closes an idle
/// connection itself.
const IDLE: Duration = Duration::from_mins(2);
/// Lifetime of a connection to the webhook. After that it is opened again, with the newest
/// certificate.
const LIFETIME: Duration = Duration::from_mins(5);

/// Runs admission until `stop`, and then answers for a short time more.
pub async fn run(
    configuration: AdmissionConfiguration,
    client: Client,
    signs: WatchSigns,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let AdmissionConfiguration { namespaces, operator_namespace, admin_listen, webhook } =
        configuration;
    let listener = listen(webhook.listen, "--webhook-listen").await?;
    let mut registrar = metrics::registrar()?;
    let unreadable = metrics::realms_unreadable(&mut registrar)?;
    let admission = AdmissionMetrics::new(&mut registrar)?;
    let shown = CertificateMetrics::new(&mut registrar)?;
    let rejected = RejectedClients::new(&mut registrar)?;
    let clients = verifier(webhook.clients.as_ref())?;
    let replica = Replica::new(signs);
    let certificate = Check::required("certificate");
    let mut tasks = Tasks::default();
    replica.serve_admin(&mut tasks, admin_listen, [certificate.clone()], registrar, &stop).await?;
    replica.watch(&mut tasks, &client, &namespaces, &unreadable, &stop);

    let limit_client = client.clone();
    let current = Arc::new(CurrentCertificate::default());
    let tls: Tls = match clients {
        None => tls::configuration(current.clone())?.into(),
        Some((clients, file)) => {
            let tls = tls::configuration_for(current.clone(), clients.clone())?;
            tasks.spawn("webhook clients", clients::follow(clients, file, stop.clone()));
            Tls::from(tls).on_rejected(move |error| rejected.rejected(error))
        }
    };
    let (clock, end) = (Clock::System, stop.clone());
    if let Some(settings) = webhook.given_certificate(&operator_namespace) {
        let followed =
            given_certificate::follow(client, settings, current, certificate, shown, clock, end);
        tasks.spawn("webhook certificate", followed);
    } else {
        let settings = webhook.certificates(&operator_namespace);
        let maintained =
            certificates::maintain(client, settings, current, certificate, shown, clock, end);
        tasks.spawn("webhook certificates", maintained);
    }
    let policies = replica.policies;
    let access: AccessLookup = Arc::new(move |realm, namespace| policies.access(realm, namespace));
    let ranges = Arc::new(LimitRanges::default());
    tasks.spawn(
        "limit ranges",
        watch::limit_ranges::run(limit_client, ranges.clone(), stop.clone()),
    );
    let sizes: LimitLookup = Arc::new(move |namespace| ranges.of(namespace));
    let routes = routes::routes(Arc::new(webhook.sidecar), access, sizes, admission);
    tasks.spawn("webhook", http::serve_tls(listener, tls, routes, limits(), stop.clone()));
    tasks.supervise(&stop, FAREWELL + DRAIN).await
}

/// Reads the authority of clients, if there is one. Returns its file too.
fn verifier(
    rules: Option<&ClientRules>,
) -> Result<Option<(Arc<ClientVerifier>, PathBuf)>, StartError> {
    let Some(rules) = rules else { return Ok(None) };
    let file = rules.authority.clone();
    match ClientVerifier::read(rules) {
        Ok(verifier) => Ok(Some((Arc::new(verifier), file))),
        Err(source) => Err(StartError::WebhookClients { file, source }),
    }
}

fn limits() -> Limits {
    Limits {
        connections: CONNECTIONS,
        share: SHARE,
        header_timeout: HEAD_TIMEOUT,
        drain: DRAIN,
        idle: Some(IDLE),
        request: Some(REVIEW_TIMEOUT),
        lifetime: Some(LIFETIME),
        shutdown_delay: FAREWELL,
        ..Limits::default()
    }
}
