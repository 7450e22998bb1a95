//! Waits for what the leader cannot do without. An obstacle ends nothing: it is a metric, a log
//! line and an Event, and is tried again, because a controller that exits says less and is no
//! safer.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use thiserror::Error;

use super::config::CLUSTER_NAMESPACE;
use super::master_key::{self, MasterKeyError};
use crate::k8s::backoff::{Backoff, LONGEST_UNAVAILABLE};
use crate::k8s::events::{Events, Notice};
use crate::k8s::request::ApiError;
use crate::metrics::Metrics;
use crate::redis::access::AccessError;

/// Interval after which an unchanged obstacle is reported again, because Events expire within an
/// hour.
const REMINDER: Duration = Duration::from_mins(10);

/// What the leader needs before it can work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// The name of the installation.
    Installation,
    /// The master key.
    MasterKey,
    /// The certificate of Redis.
    RedisCertificate,
    /// The password of Redis.
    RedisPassword,
}

impl Need {
    /// Every need.
    pub const ALL: [Self; 4] =
        [Self::Installation, Self::MasterKey, Self::RedisCertificate, Self::RedisPassword];

    /// The value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Installation => "installation",
            Self::MasterKey => "master-key",
            Self::RedisCertificate => "redis-certificate",
            Self::RedisPassword => "redis-password",
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Installation => "InstallationUnavailable",
            Self::MasterKey => "MasterKeyUnavailable",
            Self::RedisCertificate => "RedisCertificateUnavailable",
            Self::RedisPassword => "RedisPasswordUnavailable",
        }
    }
}

/// Why the leader cannot work yet.
#[derive(Debug, Error)]
pub enum Obstacle {
    /// The UID that names the installation cannot be read.
    #[error(
        "the UID of the namespace {CLUSTER_NAMESPACE} cannot be read ({0}): set --installation"
    )]
    Installation(ApiError),
    /// The UID is not a valid identifier.
    #[error("the UID of the namespace {CLUSTER_NAMESPACE} is not usable: set --installation")]
    InstallationName,
    /// The master key is not available.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The access to Redis is not available, or invalid.
    #[error(transparent)]
    RedisAccess(#[from] AccessError),
}

/// Repeats the steps of the preparation until they succeed.
pub struct Preparation<'a> {
    /// The operator's namespace, which contains its Secrets.
    pub namespace: &'a str,
    /// The Secret with the certificate of Redis.
    pub redis_certificate: Option<&'a str>,
    /// The Secret with the password of Redis.
    pub redis_password: Option<&'a str>,
    pub metrics: &'a Metrics,
    pub events: &'a Events,
}

impl Preparation<'_> {
    /// Repeats `attempt` until it succeeds.
    pub async fn wait_for<T, F: Future<Output = Result<T, Obstacle>> + Send>(
        &self,
        need: Need,
        attempt: impl Fn() -> F + Send,
    ) -> T {
        let backoff = Backoff::default();
        let mut reported: Option<(String, Instant)> = None;
        loop {
            let obstacle = match attempt().await {
                Ok(value) => {
                    self.metrics.show_need(need.name(), false);
                    return value;
                }
                Err(obstacle) => obstacle.to_string(),
            };
            self.metrics.show_need(need.name(), true);
            if reported
                .as_ref()
                .is_none_or(|(last, at)| *last != obstacle || at.elapsed() > REMINDER)
            {
                tracing::warn!(error = %obstacle, "failed to prepare the leader; trying again");
                let notice = Notice::warning(need.reason(), obstacle.clone());
                self.events.emit(&self.regarding(need), notice);
                reported = Some((obstacle, Instant::now()));
            }
            let pause = backoff.failed(&need, LONGEST_UNAVAILABLE, &mut UnwrapErr(SysRng));
            tokio::time::sleep(pause).await;
        }
    }

    /// The object that an administrator has to correct.
    fn regarding(&self, need: Need) -> ObjectReference {
        let (kind, namespace, name) = match need {
            // Events about objects without a namespace belong to the namespace default.
            Need::Installation => ("Namespace", None, CLUSTER_NAMESPACE),
            Need::MasterKey => ("Secret", Some(self.namespace), master_key::SECRET),
            Need::RedisCertificate => {
                ("Secret", Some(self.namespace), self.redis_certificate.unwrap_or_default())
            }
            Need::RedisPassword => {
                ("Secret", Some(self.namespace), self.redis_password.unwrap_or_default())
            }
        };
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        }
    }
}
