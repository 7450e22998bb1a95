//! Says why the operator did not start, or ended early.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use twofactor_store::redis::RedisTargetError;

use super::config::CLUSTER_NAMESPACE;
use super::master_key::MasterKeyError;
use super::redis_password::RedisPasswordError;
use crate::k8s::request::ApiError;

/// Why an operator did not start, or ended early.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}. Choose another address with {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The URL of Redis is none, or its certificate authority.
    #[error("{}", redis_target(*.0))]
    RedisTarget(#[from] RedisTargetError),
    /// There is no master key.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// There is no password for Redis.
    #[error(transparent)]
    RedisPassword(#[from] RedisPasswordError),
    /// The installation has no name.
    #[error(
        "the UID of the namespace {CLUSTER_NAMESPACE} cannot be read ({0}): set --installation"
    )]
    Installation(ApiError),
    /// The UID is not an identifier.
    #[error("the UID of the namespace {CLUSTER_NAMESPACE} is not usable: set --installation")]
    InstallationName,
    /// Another operator may lead now.
    #[error("the leadership is lost")]
    LeadershipLost,
    /// TLS cannot be set up: a defect.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A metric has a wrong name: a defect.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A task ended although it should not have.
    #[error("the task {0} ended")]
    TaskEnded(&'static str),
}

fn redis_target(error: RedisTargetError) -> String {
    match error {
        RedisTargetError::Url(error) => format!("--redis-url {error}"),
        RedisTargetError::Authority(error) => format!("--redis-ca-file {error}"),
    }
}
