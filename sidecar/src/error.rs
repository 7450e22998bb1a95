//! Why the process did not start, or ended early.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

/// Why a sidecar did not start, or ended early.
#[derive(Debug, Error)]
pub enum RunError {
    /// The API would be reachable from other machines, which has to be allowed explicitly.
    #[error(
        "--listen {0} can be reached from other machines, and the API has no authentication: \
         use a loopback address, or add --allow-non-loopback if that is what you want"
    )]
    NotLoopback(SocketAddr),
    #[error("cannot listen on {address}: {source}. Choose another address with {flag}")]
    Listen {
        address: SocketAddr,
        /// The flag that sets the address.
        flag: &'static str,
        source: io::Error,
    },
    #[error("cannot receive signals: {0}")]
    Signal(#[source] io::Error),
    /// The configuration is invalid; the text says which part.
    #[error("{0}")]
    Configuration(String),
    #[error("the task {0} ended")]
    TaskEnded(&'static str),
}
