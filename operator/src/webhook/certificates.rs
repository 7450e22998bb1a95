//! Manages the webhook's certificates, so that every replica always has one that the API servers
//! trust.
//!
//! Each replica does the same in rounds: it manages the authority, which all replicas share in a
//! Secret, publishes the authority's certificate in the webhook configuration, and signs its own
//! short-lived certificate. No replica leads, because every write has the version that was read as
//! its precondition, so that a step is taken once. [`rotation`] decides the next step without I/O.
//!
//! Watches of the two objects only tell when a round is due. A round reads both itself, one after
//! the other, because what two watches have reported has no order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use twofactor_core::time::UnixMillis;
use twofactor_server::admin::Check;
use twofactor_server::tls::CurrentCertificate;
use twofactor_store::clock::Clock;

use super::metrics::CertificateMetrics;
use super::trust::{self, LastProblem, Trust, published_roots};
use crate::certificates::authority::{AuthorityError, Root};
use crate::certificates::rotation::{self, Authorities, Damage, Lifetimes, Shown, Signed, Step};
use crate::k8s::backoff::jittered;
use crate::k8s::named_object::NamedObject;
use crate::k8s::owned_secret::owned_secret;
use crate::k8s::request::{self, ApiError};

/// Name of the Secret with the authority, in the operator's namespace.
pub const SECRET: &str = "twofactor-webhook-ca";
/// Maximum interval between two rounds if nothing changes. A watch that has died in silence delays
/// a change until then at most.
const REST: Duration = Duration::from_mins(1);
/// Field manager of the operator's writes.
const MANAGER: &str = "twofactor-operator";

/// Settings of the certificates.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operator's namespace.
    pub namespace: String,
    /// Name of the Service that the API servers call, in that namespace.
    pub service: String,
    /// Name of the webhook configuration.
    pub configuration: String,
    /// Lifetimes of the certificates.
    pub lifetimes: Lifetimes,
    /// Interval between two rounds while certificates are being replaced or after an error, a
    /// fraction of the shortest lifetime.
    pub poll: Duration,
}

impl Settings {
    /// Settings with the default lifetimes (a year for the authority, a day for certificates) and a
    /// round every three seconds while there is something to do.
    #[must_use]
    pub fn new(namespace: &str, service: &str, configuration: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            configuration: configuration.to_owned(),
            lifetimes: Lifetimes::default(),
            poll: Duration::from_secs(3),
        }
    }

    /// Interval between two rounds if nothing changes, often enough to replace a certificate in
    /// time.
    fn rest(&self) -> Duration {
        REST.min(self.lifetimes.leaf / 10).max(self.poll)
    }

    /// Names of the Service in the certificates.
    fn names(&self) -> Vec<String> {
        let short = format!("{}.{}", self.service, self.namespace);
        vec![format!("{short}.svc"), format!("{short}.svc.cluster.local"), short]
    }
}

#[derive(Debug, Error)]
enum RoundError {
    #[error("the Secret {SECRET}: {0}")]
    Secret(ApiError),
    #[error("the MutatingWebhookConfiguration {0}: {1}")]
    Configuration(String, ApiError),
    #[error("the authority {0}")]
    Authority(#[from] AuthorityError),
    #[error("the certificate does not fit its key: {0}")]
    Tls(#[from] rustls::Error),
}

/// Manages the authority, and keeps a valid certificate of this replica in `current`, until `stop`.
/// `ready` passes while the webhook configuration contains the certificate's authority.
pub async fn maintain(
    client: Client,
    settings: Settings,
    current: Arc<CurrentCertificate>,
    ready: Check,
    metrics: CertificateMetrics,
    clock: Clock,
    stop: CancellationToken,
) {
    let (secret, configuration) = (NamedObject::default(), NamedObject::default());
    let secrets = Api::<PartialObjectMeta<Secret>>::namespaced(client.clone(), &settings.namespace);
    let configurations =
        Api::<PartialObjectMeta<MutatingWebhookConfiguration>>::all(client.clone());
    let name = settings.configuration.clone();
    let watches = async {
        tokio::join!(secret.watch(secrets, SECRET), configuration.watch(configurations, &name))
    };
    let replica = Replica {
        objects: Objects::new(client, settings),
        shown: Shown::default(),
        problem: LastProblem::default(),
        current,
        signed: None,
        trust: Trust::default(),
        settled: false,
        metrics,
    };
    let rounds = rounds(replica, [&secret, &configuration], ready, &clock);
    stop.run_until_cancelled(Box::pin(async { tokio::join!(watches, rounds) })).await;
}

/// Takes rounds: when one of `objects` changes, and at the latest after a while.
async fn rounds(mut replica: Replica, objects: [&NamedObject; 2], ready: Check, clock: &Clock) {
    let Settings { poll, .. } = replica.objects.settings;
    let rest = replica.objects.settings.rest();
    loop {
        if let Err(error) = replica.round(clock).await {
            replica.problem.log(&format!("failed to maintain the webhook's certificates: {error}"));
        }
        let is_ready = replica.is_ready(clock.now());
        trust::show(is_ready, &ready, &replica.metrics);
        let are_watched = objects.iter().all(|object| object.is_watched());
        let is_at_rest = replica.settled && is_ready && are_watched;
        let pause = if is_at_rest { rest } else { poll };
        let [secret, configuration] = objects;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = secret.changed() => {}
            () = configuration.changed() => {}
        }
        // The jitter keeps replicas from always writing together, and an object that never stops
        // changing costs a read a second.
        tokio::time::sleep(jittered(poll / 3, &mut UnwrapErr(SysRng))).await;
    }
}

/// Access to the objects in the API server.
struct Objects {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    settings: Settings,
}

impl Objects {
    fn new(client: Client, settings: Settings) -> Self {
        let secrets = Api::namespaced(client.clone(), &settings.namespace);
        Self { secrets, configurations: Api::all(client), settings }
    }

    async fn secret(&self) -> Result<Option<Secret>, RoundError> {
        request::optional(request::within(self.secrets.get(SECRET)).await)
            .map_err(RoundError::Secret)
    }

    async fn configuration(&self) -> Result<Option<MutatingWebhookConfiguration>, RoundError> {
        let name = &self.settings.configuration;
        request::optional(request::within(self.configurations.get(name)).await)
            .map_err(|error| self.of_configuration(error))
    }

    fn of_configuration(&self, error: ApiError) -> RoundError {
        RoundError::Configuration(self.settings.configuration.clone(), error)
    }
}

struct Replica {
    objects: Objects,
    shown: Shown,
    problem: LastProblem,
    current: Arc<CurrentCertificate>,
    signed: Option<Signed>,
    trust: Trust,
    /// Whether the next step only waits for the end of a certificate or for a change.
    settled: bool,
    metrics: CertificateMetrics,
}

impl Replica {
    /// Reads the objects once, and takes the next step of the authority and of the certificate.
    async fn round(&mut self, clock: &Clock) -> Result<(), RoundError> {
        self.settled = false;
        // The configuration is read first. If another replica takes a step after that, the version
        // of the configuration is outdated too, so the older bundle is not written over the newer.
        let configuration = self.objects.configuration().await?;
        let roots = configuration.as_ref().map(published_roots).unwrap_or_default();
        self.shown.record(&roots, clock.now());
        let secret = self.objects.secret().await?;
        let known = secret
            .as_ref()
            .map(|secret| Authorities::read(secret.data.as_ref().unwrap_or(&BTreeMap::new())));
        // The certificate comes first, because it may expire while the writes below fail.
        if let Some(Ok(authorities)) = &known {
            self.sign(authorities, clock.now())?;
        }
        let authorities = match secret.zip(known) {
            Some((secret, known)) => self.advance(secret, known, roots, clock.now()).await?,
            None => self.create(roots, clock.now()).await?,
        };
        // If another replica has written at the same time, the next round reads the result.
        if let Some(authorities) = authorities {
            self.sign(&authorities, clock.now())?;
            self.publish(configuration, &authorities).await?;
            let root = authorities.current.root();
            let is_current = self.signed.as_ref().is_some_and(|signed| signed.root == *root);
            self.settled = is_current && authorities.next.is_none();
        }
        let is_shown =
            self.signed.as_ref().is_some_and(|signed| self.shown.since(&signed.root).is_some());
        self.trust.observe(is_shown, clock.now());
        Ok(())
    }

    async fn create(
        &self,
        shown: Vec<Root>,
        now: UnixMillis,
    ) -> Result<Option<Authorities>, RoundError> {
        let authorities = Authorities::start(shown, &self.objects.settings.lifetimes, now)?;
        let secret = owned_secret(SECRET, authorities.data());
        match request::within(self.objects.secrets.create(&PostParams::default(), &secret)).await {
            Ok(_) => {
                tracing::info!(secret = SECRET, "webhook authority created");
                Ok(Some(authorities))
            }
            Err(ApiError::AlreadyExists(_)) => Ok(None),
            Err(error) => Err(RoundError::Secret(error)),
        }
    }

    /// Takes the next step. Returns nothing if another process has written at the same time.
    async fn advance(
        &self,
        secret: Secret,
        known: Result<Authorities, Damage>,
        shown: Vec<Root>,
        now: UnixMillis,
    ) -> Result<Option<Authorities>, RoundError> {
        let lifetimes = &self.objects.settings.lifetimes;
        let authorities = match known {
            Ok(authorities) => {
                let step = authorities.step(&self.shown, lifetimes, now);
                if step == Step::Wait {
                    return Ok(Some(authorities));
                }
                tracing::info!(secret = SECRET, step = ?step, "webhook authority changing");
                authorities.after(step, &self.shown, lifetimes, now)?
            }
            Err(damage) => {
                tracing::error!(secret = SECRET, %damage, "webhook authority invalid, creating a new one");
                Authorities::start(shown, lifetimes, now)?
            }
        };
        // The Secret's version is the precondition of the write.
        let secret = Secret { data: Some(authorities.data()), string_data: None, ..secret };
        match request::within(self.objects.secrets.replace(SECRET, &PostParams::default(), &secret))
            .await
        {
            Ok(_) => Ok(Some(authorities)),
            Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(RoundError::Secret(error)),
        }
    }

    /// Writes the trusted roots into the caBundles, and changes nothing else of the configuration.
    async fn publish(
        &mut self,
        configuration: Option<MutatingWebhookConfiguration>,
        authorities: &Authorities,
    ) -> Result<(), RoundError> {
        let Some(configuration) = configuration else {
            self.problem.log(&format!(
                "the MutatingWebhookConfiguration {} does not exist: no pod gets a sidecar until it does",
                self.objects.settings.configuration
            ));
            return Ok(());
        };
        self.problem.clear();
        let bundle = rotation::bundle(&authorities.trusted());
        let webhooks = configuration.webhooks.iter().flatten();
        let differ: Vec<_> = webhooks
            .filter(|webhook| {
                webhook
                    .client_config
                    .ca_bundle
                    .as_ref()
                    .is_none_or(|shown| shown.0 != bundle.as_bytes())
            })
            .map(|webhook| {
                let bundle = data_encoding::BASE64.encode(bundle.as_bytes());
                json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } })
            })
            .collect();
        if differ.is_empty() {
            return Ok(());
        }
        // The API server merges the list by the webhooks' names. The version makes sure that the
        // webhooks have not changed.
        let version = &configuration.metadata.resource_version;
        let patch = Patch::Strategic(
            json!({ "metadata": { "resourceVersion": version }, "webhooks": differ }),
        );
        let parameters =
            PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let name = &self.objects.settings.configuration;
        match request::within(self.objects.configurations.patch(name, &parameters, &patch)).await {
            Ok(_) => {
                tracing::info!(configuration = name, webhooks = differ.len(), "caBundle written");
            }
            Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => {}
            Err(error) => return Err(self.objects.of_configuration(error)),
        }
        Ok(())
    }

    /// Signs another certificate of this replica, if it is due.
    fn sign(&mut self, authorities: &Authorities, now: UnixMillis) -> Result<(), RoundError> {
        let lifetimes = &self.objects.settings.lifetimes;
        let root = authorities.current.root();
        self.metrics.show_authority(root.until(), root.lifetime());
        if self
            .signed
            .as_ref()
            .is_some_and(|signed| !signed.is_due(root, &self.shown, lifetimes, now))
        {
            return Ok(());
        }
        let leaf = authorities.current.sign(&self.objects.settings.names(), lifetimes.leaf, now)?;
        self.current.set(vec![leaf.certificate], leaf.key)?;
        if self.signed.as_ref().is_none_or(|signed| signed.root != *root) {
            self.trust = Trust::default();
        }
        tracing::info!(until = leaf.until.seconds(), "webhook certificate renewed");
        self.metrics.show_certificate(leaf.until, lifetimes.leaf);
        self.signed = Some(Signed { root: root.clone(), until: leaf.until });
        Ok(())
    }

    fn is_ready(&self, now: UnixMillis) -> bool {
        self.signed.as_ref().is_some_and(|signed| signed.is_valid(now)) && self.trust.holds(now)
    }
}
