//! Says why the operator did not start, or ended early.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use twofactor_store::redis::RedisTargetError;

use super::redis_password::RedisPasswordError;

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
    /// The URL of Redis does not fit the Secret with its password.
    #[error(transparent)]
    RedisPassword(#[from] RedisPasswordError),
    /// Another replica may lead now.
    #[error("leadership lost")]
    LeadershipLost,
    /// Another operator writes to Redis now.
    #[error("another operator of this installation has taken over the data in Redis")]
    RedisLost,
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

/// Names the flag of an invalid target.
pub fn redis_target(error: RedisTargetError) -> String {
    match error {
        RedisTargetError::Url(error) => format!("--redis-url {error}"),
        RedisTargetError::Authority(error) => format!("--redis-ca-file {error}"),
    }
}
