//! Says why the operator did not start, or ended early.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use twofactor_store::redis::RedisTargetError;

use super::config::CLUSTER_NAMESPACE;
use super::master_key::MasterKeyError;
use super::redis_password::RedisPasswordError;
use crate::k8s::request::ApiError;

/// Why the operator did not start, or ended early.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address is not available.
    #[error("cannot listen on {address}: {source}. Choose another address with {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The URL or the certificate authority of Redis is invalid.
    #[error("{}", redis_target(*.0))]
    RedisTarget(#[from] RedisTargetError),
    /// The master key is not available.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The password of Redis is not available.
    #[error(transparent)]
    RedisPassword(#[from] RedisPasswordError),
    /// The UID that names the installation cannot be read.
    #[error(
        "the UID of the namespace {CLUSTER_NAMESPACE} cannot be read ({0}): set --installation"
    )]
    Installation(ApiError),
    /// The UID is not a valid identifier.
    #[error("the UID of the namespace {CLUSTER_NAMESPACE} is not usable: set --installation")]
    InstallationName,
    /// Another replica may lead now.
    #[error("leadership lost")]
    LeadershipLost,
    /// TLS cannot be configured, which is a defect.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A metric has an invalid name, which is a defect.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A task ended before the signal to stop.
    #[error("the task {0} ended")]
    TaskEnded(&'static str),
}

fn redis_target(error: RedisTargetError) -> String {
    match error {
        RedisTargetError::Url(error) => format!("--redis-url {error}"),
        RedisTargetError::Authority(error) => format!("--redis-ca-file {error}"),
    }
}
