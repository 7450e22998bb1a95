//! Follows the credentials while the sidecar serves: if they change, a service on the new ones
//! replaces the current one.
//!
//! The kubelet updates a mounted Secret within about a minute. The folder is polled rather than
//! watched, because a few system calls are cheaper than a watch that has to be renewed whenever a
//! link is swapped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::Check;
use twofactor_store::clock::Clock;
use twofactor_store::redis::{RedisStore, RedisTargetError};
use twofactor_store::{Decisions, Store};

use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::otp::records::Records;
use crate::otp::service::{CurrentService, Service};
use crate::serve::credentials::{
    CredentialFiles, CredentialsError, REDIS_CA, REDIS_CLIENT_CERTIFICATE, REDIS_URL, Version,
};

/// Interval between two checks of the folder.
const INTERVAL: Duration = Duration::from_secs(2);

/// The credentials in use, and the folder that they come from.
pub struct Follower {
    directory: PathBuf,
    /// The version that was last read.
    version: Version,
    /// The files in use.
    files: CredentialFiles,
    /// Why the version that was last read is not in use; it is logged once.
    problem: Option<CredentialsError>,
    current: CurrentService,
    check: Check,
}

impl Follower {
    /// Reads the credentials for the first time, and prepares the service on them. Redis need not
    /// answer. An error names the file that is missing or invalid. Must be called within a tokio
    /// runtime.
    pub fn start(directory: &Path, metrics: &Metrics) -> Result<Self, CredentialsError> {
        let (version, files) = CredentialFiles::read(directory);
        let files = files?;
        let current = CurrentService::new(service(&files, metrics, None)?);
        let check = Check::informational("credentials");
        check.set(true);
        metrics.credentials_current(true);
        Ok(Self { directory: directory.to_owned(), version, files, problem: None, current, check })
    }

    pub fn current(&self) -> CurrentService {
        self.current.clone()
    }

    /// Returns the check whether the credentials in use are those of the folder.
    pub fn check(&self) -> Check {
        self.check.clone()
    }

    /// Checks the folder until `stop`.
    pub async fn follow(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = async {
            loop {
                ticks.tick().await;
                self.check_folder().await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn check_folder(&mut self) {
        // Files that could not be read, for example for lack of file descriptors, may be readable
        // now although they have not changed.
        if self.problem.is_none() && Version::of(&self.directory) == self.version {
            return;
        }
        // The files are small and in memory, so reading them does not block other requests.
        let (version, files) = CredentialFiles::read(&self.directory);
        self.version = version;
        let problem = match files {
            Ok(files) if files == self.files => None,
            Ok(files) => self.switch_to(files).await.err(),
            Err(error) => Some(error),
        };
        self.report(problem);
    }

    async fn switch_to(&mut self, files: CredentialFiles) -> Result<(), CredentialsError> {
        let before = self.current.load();
        let service = service(&files, &before.metrics, Some(&before))?;
        // Connects and reads the realm before the first request needs it. The new credentials are
        // used even if Redis does not answer, because the old ones may no longer be allowed.
        let _ = service.records.refresh_realm().await;
        tracing::info!(caller = %service.caller, "credentials changed, the new ones are in use");
        before.metrics.credentials_changed("taken-over");
        self.current.replace(service);
        self.files = files;
        Ok(())
    }

    fn report(&mut self, problem: Option<CredentialsError>) {
        let metrics = &self.current.load().metrics;
        match &problem {
            Some(error) if self.problem.as_ref() != Some(error) => {
                metrics.credentials_changed("refused");
                tracing::warn!(%error, "credentials changed and cannot be used, the previous ones stay in use");
            }
            None if self.problem.is_some() => tracing::info!("credentials can be used again"),
            _ => {}
        }
        metrics.credentials_current(problem.is_none());
        self.check.set(problem.is_none());
        self.problem = problem;
    }
}

/// Returns the service on `files`. If its records have the same names, it knows what the previous
/// service knew.
fn service(
    files: &CredentialFiles,
    metrics: &Metrics,
    before: Option<&Service>,
) -> Result<Service, CredentialsError> {
    let credentials = files.parse()?;
    let store =
        RedisStore::with_access(&credentials.redis, credentials.names.clone(), Clock::System);
    let store = store.map_err(|error| match error {
        RedisTargetError::Url(error) => files.wrong(REDIS_URL, &error),
        RedisTargetError::Authority(error) => files.wrong(REDIS_CA, &error),
        RedisTargetError::Identity(error) => files.wrong(REDIS_CLIENT_CERTIFICATE, &error),
    })?;
    let store =
        if credentials.loads_scripts { store } else { store.with_scripts_of_the_publisher() };
    let store = Decisions::new(Store::Redis(store), Arc::new(metrics.store().clone()));
    let records = match before {
        Some(before) if before.records.have_names_of(&credentials.keys, &credentials.names) => {
            before.records.moved_to(store.clone(), credentials.keys)
        }
        _ => {
            Records::new(store.clone(), credentials.keys, Some(credentials.names), metrics.clone())
        }
    };
    let records = if credentials.loads_scripts { records.without_heartbeat() } else { records };
    let (background, public_keys) = match before {
        // Also for another realm, because work under way goes on.
        Some(before) => (before.background.clone(), before.public_keys.clone()),
        None => Default::default(),
    };
    Ok(Service {
        records,
        store,
        delivery: Delivery::new(false),
        caller: credentials.caller,
        expose_codes: false,
        metrics: metrics.clone(),
        background,
        public_keys,
    })
}
