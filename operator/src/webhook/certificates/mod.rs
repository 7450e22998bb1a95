//! Certificates of the webhook. Enters: the names of its Service and its configuration. Leaves: a
//! certificate in every replica that the API servers trust, at any moment.
//!
//! The leader [`keep`]s an authority in a Secret and shows it to the API servers in the webhook
//! configuration; every replica [`follow`]s it with a short certificate of its own. What comes next
//! is decided in [`rotation`], without I/O; [`authority`] signs. Both tasks look every few seconds
//! instead of watching: the objects are few and small, and a look that fails is followed by the
//! next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use twofactor_core::time::UnixMillis;
use twofactor_server::admin::Check;
use twofactor_server::tls::CurrentCertificate;
use twofactor_store::clock::Clock;

use crate::k8s::owned_secret::owned_secret;
use crate::k8s::request::{self, ApiError};

pub mod authority;
pub mod rotation;

use authority::{AuthorityError, Root};
use rotation::{Authorities, Lifetimes, Shown, Signed, Step};

/// The Secret with the authority, in the operator's namespace.
pub const SECRET: &str = "twofactor-webhook-ca";
/// How long a replica stays ready while the configuration does not show its authority: somebody has
/// emptied the bundle, and the leader is about to fill it again. A pod that is not ready is longer
/// away than that takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who writes, in the API server's books.
const MANAGER: &str = "twofactor-operator";

/// Whose certificates, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operator's namespace.
    pub namespace: String,
    /// The Service that the API servers call, in that namespace.
    pub service: String,
    /// The webhook configuration.
    pub configuration: String,
    /// How long certificates are good for.
    pub lifetimes: Lifetimes,
    /// How often everything is looked at. A fraction of the shortest lifetime.
    pub poll: Duration,
}

impl Settings {
    /// The usual lifetimes (a year for the authority, a day for certificates), looked at every
    /// three seconds.
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

    /// What API servers may call it.
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

/// Keeps the authority and what the API servers are shown of it, until `stop`. For the leader.
pub async fn keep(client: Client, settings: Settings, clock: Clock, stop: CancellationToken) {
    let poll = settings.poll;
    let mut keeper = Keeper {
        objects: Objects::new(client, settings),
        shown: Shown::default(),
        news: News::default(),
    };
    loop {
        match stop.run_until_cancelled(keeper.round(&clock)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                keeper.news.tell(&format!("cannot keep the webhook's authority: {error}"));
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(poll)).await.is_none() {
            return;
        }
    }
}

/// Keeps a certificate of this replica in `current`, until `stop`. `ready` is good when there is
/// one that the API servers are shown the authority of.
pub async fn follow(
    client: Client,
    settings: Settings,
    current: Arc<CurrentCertificate>,
    ready: Check,
    clock: Clock,
    stop: CancellationToken,
) {
    let poll = settings.poll;
    let mut follower = Follower {
        objects: Objects::new(client, settings),
        shown: Shown::default(),
        news: News::default(),
        current,
        signed: None,
        missing_since: None,
        trusted: false,
    };
    loop {
        match stop.run_until_cancelled(follower.round(&clock)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                follower
                    .news
                    .tell(&format!("cannot look after the webhook's certificate: {error}"));
            }
        }
        let good = follower.is_ready(clock.now());
        if good != ready.passes() {
            tracing::info!(ready = good, "the webhook's certificate");
        }
        ready.set(good);
        if stop.run_until_cancelled(tokio::time::sleep(poll)).await.is_none() {
            return;
        }
    }
}

/// A log line for what is new, not for every look at it.
#[derive(Default)]
struct News(Option<String>);

impl News {
    fn tell(&mut self, news: &str) {
        if self.0.as_deref() != Some(news) {
            tracing::warn!("{news}");
            self.0 = Some(news.to_owned());
        }
    }

    fn good(&mut self) {
        self.0 = None;
    }
}

/// The objects in the API server.
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

/// The roots that every webhook of a configuration shows.
fn shown_in(configuration: &MutatingWebhookConfiguration) -> Vec<Root> {
    let webhooks = configuration.webhooks.iter().flatten();
    let mut bundles = webhooks.map(|webhook| {
        webhook
            .client_config
            .ca_bundle
            .as_ref()
            .map(|bundle| Root::all_in(&bundle.0))
            .unwrap_or_default()
    });
    let mut roots = bundles.next().unwrap_or_default();
    for bundle in bundles {
        roots.retain(|root| bundle.contains(root));
    }
    roots
}

struct Keeper {
    objects: Objects,
    shown: Shown,
    news: News,
}

impl Keeper {
    /// One look at everything, with what comes of it.
    async fn round(&mut self, clock: &Clock) -> Result<(), RoundError> {
        let secret = self.objects.secret().await?;
        let configuration = self.objects.configuration().await?;
        let roots = configuration.as_ref().map(shown_in).unwrap_or_default();
        let now = clock.now();
        self.shown.look(&roots, now);
        let authorities = match secret {
            Some(secret) => self.advance(secret, roots, now).await?,
            None => self.create(roots, now).await?,
        };
        // Somebody else wrote meanwhile: the next look shows what.
        let Some(authorities) = authorities else { return Ok(()) };
        match configuration {
            Some(configuration) => {
                self.show(&configuration, &authorities).await?;
                self.news.good();
            }
            None => self.news.tell(&format!(
                "the MutatingWebhookConfiguration {} does not exist: nothing is injected until it does",
                self.objects.settings.configuration
            )),
        }
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
                tracing::info!(secret = SECRET, "made the webhook's authority");
                Ok(Some(authorities))
            }
            Err(ApiError::AlreadyExists(_)) => Ok(None),
            Err(error) => Err(RoundError::Secret(error)),
        }
    }

    /// Takes the next step. Nothing when somebody else wrote meanwhile.
    async fn advance(
        &self,
        secret: Secret,
        shown: Vec<Root>,
        now: UnixMillis,
    ) -> Result<Option<Authorities>, RoundError> {
        let lifetimes = &self.objects.settings.lifetimes;
        let authorities = match Authorities::read(secret.data.as_ref().unwrap_or(&BTreeMap::new()))
        {
            Ok(authorities) => {
                let step = authorities.step(&self.shown, lifetimes, now);
                if step == Step::Rest {
                    return Ok(Some(authorities));
                }
                tracing::info!(secret = SECRET, step = ?step, "the webhook's authority changes");
                authorities.after(step, lifetimes, now)?
            }
            Err(damage) => {
                tracing::error!(secret = SECRET, %damage, "the webhook's authority is damaged: making a new one");
                Authorities::start(shown, lifetimes, now)?
            }
        };
        // Its version is the precondition.
        let secret = Secret { data: Some(authorities.data()), string_data: None, ..secret };
        match request::within(self.objects.secrets.replace(SECRET, &PostParams::default(), &secret))
            .await
        {
            Ok(_) => Ok(Some(authorities)),
            Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(RoundError::Secret(error)),
        }
    }

    /// Shows the API servers whom to trust, and changes nothing else of the configuration.
    async fn show(
        &self,
        configuration: &MutatingWebhookConfiguration,
        authorities: &Authorities,
    ) -> Result<(), RoundError> {
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
        // The list is merged by the webhooks' names. The version says that they are still these.
        let version = &configuration.metadata.resource_version;
        let patch = Patch::Strategic(
            json!({ "metadata": { "resourceVersion": version }, "webhooks": differ }),
        );
        let parameters =
            PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let name = &self.objects.settings.configuration;
        match request::within(self.objects.configurations.patch(name, &parameters, &patch)).await {
            Ok(_) => {
                tracing::info!(configuration = name, webhooks = differ.len(), "wrote the caBundle");
            }
            Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => {}
            Err(error) => return Err(self.objects.of_configuration(error)),
        }
        Ok(())
    }
}

struct Follower {
    objects: Objects,
    shown: Shown,
    news: News,
    current: Arc<CurrentCertificate>,
    signed: Option<Signed>,
    /// Since when the configuration does not show the certificate's authority.
    missing_since: Option<UnixMillis>,
    /// Whether the configuration has shown the certificate's authority.
    trusted: bool,
}

impl Follower {
    async fn round(&mut self, clock: &Clock) -> Result<(), RoundError> {
        let configuration = self.objects.configuration().await?;
        self.shown.look(&configuration.as_ref().map(shown_in).unwrap_or_default(), clock.now());
        self.sign(clock).await?;
        let now = clock.now();
        if self.signed.as_ref().is_some_and(|signed| self.shown.since(&signed.root).is_some()) {
            (self.trusted, self.missing_since) = (true, None);
        } else {
            self.missing_since.get_or_insert(now);
        }
        Ok(())
    }

    async fn sign(&mut self, clock: &Clock) -> Result<(), RoundError> {
        let Some(secret) = self.objects.secret().await? else {
            self.news.tell(&format!("the Secret {SECRET} does not exist yet: the leader makes it"));
            return Ok(());
        };
        let authorities = match Authorities::read(secret.data.as_ref().unwrap_or(&BTreeMap::new()))
        {
            Ok(authorities) => authorities,
            Err(damage) => {
                self.news.tell(&format!(
                    "the Secret {SECRET} is damaged: {damage}; the leader replaces it"
                ));
                return Ok(());
            }
        };
        self.news.good();
        let (lifetimes, now) = (&self.objects.settings.lifetimes, clock.now());
        let root = authorities.current.root();
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
            (self.trusted, self.missing_since) = (false, None);
        }
        tracing::info!(until = leaf.until.seconds(), "the webhook has a new certificate");
        self.signed = Some(Signed { root: root.clone(), until: leaf.until });
        Ok(())
    }

    fn is_ready(&self, now: UnixMillis) -> bool {
        let valid = self.signed.as_ref().is_some_and(|signed| signed.is_valid(now));
        let missing = self.missing_since.is_some_and(|since| since.until(now) >= PATIENCE);
        valid && self.trusted && !missing
    }
}
