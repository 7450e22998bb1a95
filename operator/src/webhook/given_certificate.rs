//! Serves the webhook with a certificate that another program, such as cert-manager, makes and
//! renews in a folder. That program writes the caBundle too; a replica is ready while the API
//! servers trust the certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use twofactor_core::time::UnixMillis;
use twofactor_server::admin::Check;
use twofactor_server::tls::CurrentCertificate;
use twofactor_store::clock::Clock;

use super::metrics::CertificateMetrics;
use super::trust::{self, LastProblem, Trust, published_roots};
use crate::certificates::authority::Root;
use crate::certificates::served::{Served, ServedError};
use crate::k8s::backoff::jittered;
use crate::k8s::named_object::NamedObject;
use crate::k8s::request::{self, ApiError};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Interval between looks at the files, and between reads of the configuration while it does not
/// lead to the certificate or is not watched.
pub const POLL: Duration = Duration::from_secs(3);
/// Interval between reads of a configuration that is watched.
const REST: Duration = Duration::from_mins(1);

/// Where the certificate is, and what it is for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder with `tls.crt` and `tls.key`.
    pub folder: PathBuf,
    /// Name under which the API servers call the webhook.
    pub host: String,
    /// Name of the webhook configuration.
    pub configuration: String,
    /// Interval between looks at the files.
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
    let configuration = NamedObject::default();
    let watched = Api::<PartialObjectMeta<_>>::all(client.clone());
    let name = settings.configuration.clone();
    let watch = configuration.watch::<MutatingWebhookConfiguration>(watched, &name);
    let replica = Replica {
        settings,
        configurations: Api::all(client),
        roots: None,
        is_shown: false,
        current,
        metrics,
        served: None,
        trust: Trust::default(),
        problem: LastProblem::default(),
    };
    let rounds = rounds(replica, &configuration, ready, &clock);
    stop.run_until_cancelled(Box::pin(async { tokio::join!(watch, rounds) })).await;
}

/// Takes rounds, each after an interval or a change of the configuration.
async fn rounds(mut replica: Replica, configuration: &NamedObject, ready: Check, clock: &Clock) {
    let poll = replica.settings.poll;
    loop {
        match replica.round(clock.now()).await {
            Ok(()) => replica.problem.clear(),
            Err(error) => {
                replica.problem.log(&format!("failed to use the webhook's certificate: {error}"));
            }
        }
        let is_ready = replica.trust.holds(clock.now());
        trust::show(is_ready, &ready, &replica.metrics);
        tokio::select! {
            () = tokio::time::sleep(poll) => {
                let is_at_rest = configuration.is_watched() && replica.is_shown;
                replica.forget_after(if is_at_rest { REST } else { Duration::ZERO });
            }
            () = configuration.changed() => replica.forget_after(Duration::ZERO),
        }
        // A configuration that never stops changing costs a read a second.
        tokio::time::sleep(jittered(poll / 3, &mut UnwrapErr(SysRng))).await;
    }
}

struct Replica {
    settings: Settings,
    configurations: Api<MutatingWebhookConfiguration>,
    /// The roots of the configuration, and when they were read. They are read again if absent.
    roots: Option<(Vec<Root>, Instant)>,
    /// Whether they lead to the certificate in use.
    is_shown: bool,
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
        let roots = match self.roots.take() {
            Some(known) => known,
            None => (self.published().await?, Instant::now()),
        };
        let host = &self.settings.host;
        self.is_shown = self.served.as_ref().is_some_and(|(served, _)| {
            roots.0.iter().any(|root| served.is_accepted(root, host, now))
        });
        self.roots = Some(roots);
        self.trust.observe(self.is_shown, now);
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

    /// Lets the configuration be read again if it was read that long ago.
    fn forget_after(&mut self, age: Duration) {
        self.roots.take_if(|(_, read)| read.elapsed() >= age);
    }

    async fn published(&self) -> Result<Vec<Root>, RoundError> {
        let name = &self.settings.configuration;
        let found = request::within(self.configurations.get(name)).await;
        let found = found.map_err(|error| RoundError::Configuration(name.clone(), error))?;
        Ok(published_roots(&found))
    }
}
