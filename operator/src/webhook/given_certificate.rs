//! Serves the webhook with a certificate that another program, such as cert-manager, makes and
//! renews in a folder. That program writes the caBundle too; a replica is ready while the API
//! servers trust the certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{Api, Client};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use twofactor_core::time::UnixMillis;
use twofactor_server::admin::Check;
use twofactor_server::tls::CurrentCertificate;
use twofactor_store::clock::Clock;

use super::metrics::CertificateMetrics;
use super::trust::{LastProblem, Trust, published_roots};
use crate::certificates::authority::Root;
use crate::certificates::served::{Served, ServedError};
use crate::k8s::request::{self, ApiError};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Interval between two rounds.
pub const POLL: Duration = Duration::from_secs(3);

/// Where the certificate is, and what it is for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder with `tls.crt` and `tls.key`.
    pub folder: PathBuf,
    /// Name under which the API servers call the webhook.
    pub host: String,
    /// Name of the webhook configuration.
    pub configuration: String,
    /// Interval between two rounds.
    pub poll: Duration,
}

#[derive(Debug, Error)]
enum RoundError {
    #[error("{file}: {source}", file = .0.display(), source = .1)]
    File(PathBuf, std::io::Error),
    #[error("{folder}: {source}", folder = .0.display(), source = .1)]
    Certificate(PathBuf, ServedError),
    #[error("the MutatingWebhookConfiguration {0}: {1}")]
    Configuration(String, ApiError),
    #[error("the key is of a kind that is not supported: {0}")]
    Tls(#[from] rustls::Error),
}

/// Keeps the certificate of the folder in `current` until `stop`. `ready` passes while the API
/// servers trust it.
pub async fn follow(
    client: Client,
    settings: Settings,
    current: Arc<CurrentCertificate>,
    ready: Check,
    metrics: CertificateMetrics,
    clock: Clock,
    stop: CancellationToken,
) {
    let configurations = Api::all(client);
    let poll = settings.poll;
    let mut replica = Replica {
        settings,
        configurations,
        current,
        metrics,
        served: None,
        trust: Trust::default(),
        problem: LastProblem::default(),
    };
    loop {
        match stop.run_until_cancelled(replica.round(clock.now())).await {
            None => return,
            Some(Ok(())) => replica.problem.clear(),
            Some(Err(error)) => {
                replica.problem.log(&format!("failed to use the webhook's certificate: {error}"));
            }
        }
        let is_ready = replica.trust.holds(clock.now());
        if is_ready != ready.passes() {
            tracing::info!(ready = is_ready, "webhook certificate readiness changed");
        }
        ready.set(is_ready);
        replica.metrics.show_trusted(is_ready);
        if stop.run_until_cancelled(tokio::time::sleep(poll)).await.is_none() {
            return;
        }
    }
}

struct Replica {
    settings: Settings,
    configurations: Api<MutatingWebhookConfiguration>,
    current: Arc<CurrentCertificate>,
    metrics: CertificateMetrics,
    /// The certificate in use, and the texts that it was read from.
    served: Option<(Served, [Vec<u8>; 2])>,
    trust: Trust,
    problem: LastProblem,
}

impl Replica {
    /// Uses the certificate of the folder, and asks whether the API servers trust the one in use,
    /// also if that of the folder is invalid.
    async fn round(&mut self, now: UnixMillis) -> Result<(), RoundError> {
        let read = self.read();
        let roots = self.roots().await?;
        let host = &self.settings.host;
        let is_shown = self.served.as_ref().is_some_and(|(served, _)| {
            roots.iter().any(|root| served.is_accepted(root, host, now))
        });
        self.trust.observe(is_shown, now);
        read
    }

    fn read(&mut self) -> Result<(), RoundError> {
        let read = |name: &str| {
            let path = self.settings.folder.join(name);
            std::fs::read(&path).map_err(|error| RoundError::File(path, error))
        };
        let texts = [read(CERTIFICATE)?, read(KEY)?];
        if self.served.as_ref().is_some_and(|(_, known)| *known == texts) {
            return Ok(());
        }
        let folder: &Path = &self.settings.folder;
        let served = Served::from_pem(&texts[0], &texts[1])
            .map_err(|error| RoundError::Certificate(folder.to_owned(), error))?;
        let (chain, key) = served.parts();
        self.current.set(chain, key)?;
        tracing::info!(until = served.until().seconds(), "webhook certificate renewed");
        self.metrics.show_certificate(served.until(), served.lifetime());
        self.served = Some((served, texts));
        Ok(())
    }

    async fn roots(&self) -> Result<Vec<Root>, RoundError> {
        let name = &self.settings.configuration;
        let found = request::within(self.configurations.get(name)).await;
        let found = found.map_err(|error| RoundError::Configuration(name.clone(), error))?;
        Ok(published_roots(&found))
    }
}
