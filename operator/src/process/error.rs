//! Says why the operator did not start, or ended early.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::redis::access::AccessError;
use crate::webhook::clients::ClientRulesError;

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
    /// The access to Redis is invalid.
    #[error(transparent)]
    RedisAccess(#[from] AccessError),
    /// Another replica may lead now.
    #[error("leadership lost")]
    LeadershipLost,
    /// Another operator writes to Redis now.
    #[error("another operator of this installation has taken over the data in Redis")]
    RedisLost,
    /// The authority of the webhook's clients is invalid.
    #[error("--webhook-client-ca-file {file}: {source}", file = .file.display())]
    WebhookClients {
        /// The file.
        file: PathBuf,
        /// The error.
        source: ClientRulesError,
    },
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
