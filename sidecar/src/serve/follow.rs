//! Follows the credentials while the sidecar serves. Enters: the folder that a Secret is mounted
//! at. Leaves: a service on the credentials that are in there now, in the place of the one before.
//!
//! The kubelet brings a changed Secret into running pods within a minute or so. The folder is
//! looked at rather than watched: a few system calls now and then are cheaper than a watch that has
//! to be made again whenever a link is swapped.

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
use crate::otp::service::{Current, Service};
use crate::serve::credentials::{CredentialFiles, CredentialsError, REDIS_CA, REDIS_URL, Version};

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Credentials in use, and the folder that they come from.
pub struct Follower {
    directory: PathBuf,
    /// What was last read there.
    version: Version,
    /// What is in use.
    files: CredentialFiles,
    /// Why what was last read is not in use; told once.
    trouble: Option<CredentialsError>,
    current: Current,
    check: Check,
}

impl Follower {
    /// Reads the credentials for the first time, and prepares the service on them. Redis need not
    /// be there. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Names the file that is missing or wrong, and what would be right.
    pub fn start(directory: &Path, metrics: &Metrics) -> Result<Self, CredentialsError> {
        let (version, files) = CredentialFiles::read(directory);
        let files = files?;
        let current = Current::new(service(&files, metrics, None)?);
        let check = Check::informational("credentials");
        check.set(true);
        metrics.credentials_current(true);
        Ok(Self { directory: directory.to_owned(), version, files, trouble: None, current, check })
    }

    /// The service, now and after each change.
    #[must_use]
    pub fn current(&self) -> Current {
        self.current.clone()
    }

    /// Whether the credentials in use are those of the folder.
    #[must_use]
    pub fn check(&self) -> Check {
        self.check.clone()
    }

    /// Looks at the folder until it is told to stop.
    pub async fn follow(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = async {
            loop {
                ticks.tick().await;
                self.look().await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn look(&mut self) {
        // What could not be read, for want of file descriptors for example, may be readable without
        // having changed.
        if self.trouble.is_none() && Version::of(&self.directory) == self.version {
            return;
        }
        // Small files in memory: reading them here holds up nobody.
        let (version, files) = CredentialFiles::read(&self.directory);
        self.version = version;
        let trouble = match files {
            Ok(files) if files == self.files => None,
            Ok(files) => self.go_over_to(files).await.err(),
            Err(error) => Some(error),
        };
        self.tell(trouble);
    }

    async fn go_over_to(&mut self, files: CredentialFiles) -> Result<(), CredentialsError> {
        let before = self.current.load();
        let service = service(&files, &before.metrics, Some((&self.files, &before)))?;
        // Connects and reads the realm before the first request needs it. Should Redis not answer,
        // the new credentials are taken all the same: the old ones may be those of somebody who is
        // no longer let in.
        let _ = service.records.refresh_realm().await;
        tracing::info!(caller = %service.caller, "the credentials have changed, and the new ones are in use");
        before.metrics.credentials_changed("taken-over");
        self.current.replace(service);
        self.files = files;
        Ok(())
    }

    fn tell(&mut self, trouble: Option<CredentialsError>) {
        let metrics = &self.current.load().metrics;
        match &trouble {
            Some(error) if self.trouble.as_ref() != Some(error) => {
                metrics.credentials_changed("refused");
                tracing::warn!(%error, "the credentials have changed and cannot be used; the known ones stay in use");
            }
            None if self.trouble.is_some() => tracing::info!("the credentials can be used again"),
            _ => {}
        }
        metrics.credentials_current(trouble.is_none());
        self.check.set(trouble.is_none());
        self.trouble = trouble;
    }
}

/// The service on `files`. On another connection to the same realm, it knows what the one before
/// knew.
fn service(
    files: &CredentialFiles,
    metrics: &Metrics,
    before: Option<(&CredentialFiles, &Service)>,
) -> Result<Service, CredentialsError> {
    let credentials = files.parse()?;
    let store = RedisStore::with_authority(
        credentials.redis_url.expose_secret(),
        credentials.redis_authority.as_deref(),
        credentials.names,
        Clock::System,
    )
    .map_err(|error| match error {
        RedisTargetError::Url(error) => files.wrong(REDIS_URL, &error),
        RedisTargetError::Authority(error) => files.wrong(REDIS_CA, &error),
    })?;
    let store = Decisions::new(Store::Redis(store), Arc::new(metrics.store().clone()));
    let records = match before {
        Some((known, before)) if known.is_same_realm(files) => {
            before.records.moved_to(store.clone())
        }
        _ => Records::new(store.clone(), credentials.keys, metrics.clone()),
    };
    let (work, public_keys) = match before {
        // Also with another realm's credentials: what was begun goes on.
        Some((_, before)) => (before.work.clone(), before.public_keys.clone()),
        None => Default::default(),
    };
    Ok(Service {
        records,
        store,
        delivery: Delivery::new(false),
        caller: credentials.caller,
        expose_codes: false,
        metrics: metrics.clone(),
        work,
        public_keys,
    })
}
