//! Binds the addresses of the API and of the admin port.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use twofactor_server::probe;

use crate::error::RunError;
use crate::routes::{HostName, RequestRules};

/// Default port of the API.
pub const API_PORT: u16 = 8004;
/// Maximum number of connections that wait to be accepted, as in the standard library.
const BACKLOG: i32 = 1024;

/// Where the API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiAddress {
    /// This port on the loopback addresses that there are: 127.0.0.1 and `::1`.
    Loopback(u16),
    /// This address and no other.
    One(SocketAddr),
}

/// Where the admin port listens, for probes and Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// This address and no other.
    One(SocketAddr),
    /// This port on every address of the pod: IPv6 and IPv4, or IPv4 alone if there is no IPv6.
    Every(u16),
}

/// The text is neither an address with a port nor `*` with one.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "must be ADDRESS:PORT, such as 127.0.0.1:18004 or [::1]:18004, or *:18004 for every address of this machine"
)]
pub struct AdminAddressError;

impl FromStr for AdminAddress {
    type Err = AdminAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = match text.strip_prefix("*:") {
            Some(port) => port.parse().map(Self::Every).ok(),
            None => text.parse().map(Self::One).ok(),
        };
        address.ok_or(AdminAddressError)
    }
}

impl AdminAddress {
    /// Returns the addresses at which the sidecar can be reached from its own pod.
    pub fn own(self) -> Vec<SocketAddr> {
        match self {
            Self::One(address) => probe::own_addresses(address),
            Self::Every(port) => {
                probe::own_addresses(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            }
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(address) => address.fmt(formatter),
            Self::Every(port) => write!(formatter, "*:{port}"),
        }
    }
}

/// Where to listen, and whose requests to answer.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub api: ApiAddress,
    /// Whether `api` may be reached from other machines.
    pub allow_non_loopback: bool,
    pub admin: AdminAddress,
    /// As in [`RequestRules`].
    pub allowed_hosts: Vec<HostName>,
    /// As in [`RequestRules`].
    pub trusted_proxies: u8,
}

impl Addresses {
    /// Whether no other machine can reach the API.
    pub fn loopback_only(&self) -> bool {
        match self.api {
            ApiAddress::One(address) => address.ip().is_loopback(),
            ApiAddress::Loopback(_) => true,
        }
    }
}

/// Bound listeners.
#[derive(Debug)]
pub struct Listeners {
    pub api: Vec<TcpListener>,
    pub admin: TcpListener,
    pub rules: RequestRules,
}

impl Listeners {
    /// Binds the addresses. Fails if one is taken, or is not a loopback address although only those
    /// are allowed. Must be called within a tokio runtime.
    pub fn bind(addresses: &Addresses) -> Result<Self, RunError> {
        let api = match addresses.api {
            ApiAddress::One(address) => {
                if !address.ip().is_loopback() && !addresses.allow_non_loopback {
                    return Err(RunError::NotLoopback(address));
                }
                vec![one(address, "--listen")?]
            }
            ApiAddress::Loopback(port) => loopback(port)?,
        };
        let admin = match addresses.admin {
            AdminAddress::One(address) => one(address, "--admin-listen")?,
            AdminAddress::Every(port) => every(port)?,
        };
        let rules = RequestRules {
            loopback_only: addresses.loopback_only(),
            allowed_hosts: addresses.allowed_hosts.clone(),
            trusted_proxies: addresses.trusted_proxies,
        };
        Ok(Self { api, admin, rules })
    }

    /// Returns the address of the API to show to people.
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api.first().and_then(|listener| listener.local_addr().ok())
    }
}

fn one(address: SocketAddr, flag: &'static str) -> Result<TcpListener, RunError> {
    bound(address).map_err(|source| RunError::Listen { address, flag, source })
}

/// Listens on both loopback addresses, or on the one that this machine has: "localhost" may resolve
/// to either.
fn loopback(port: u16) -> Result<Vec<TcpListener>, RunError> {
    let (mut listeners, mut problem) = (Vec::new(), None);
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        match bound(address) {
            Ok(listener) => listeners.push(listener),
            // A process that has this address would be taken for this service.
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                return Err(RunError::Listen { address, flag: "--port", source });
            }
            Err(source) => {
                tracing::debug!(%address, error = %source, "not listening on a loopback address");
                problem.get_or_insert(RunError::Listen { address, flag: "--port", source });
            }
        }
    }
    match problem {
        Some(problem) if listeners.is_empty() => Err(problem),
        _ => Ok(listeners),
    }
}

/// Probes and scrapes use the address of the pod, which is IPv4, IPv6 or both, as the cluster is.
fn every(port: u16) -> Result<TcpListener, RunError> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match bound(address) {
        Ok(listener) => Ok(listener),
        Err(source)
            if matches!(
                source.kind(),
                io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
            ) =>
        {
            Err(RunError::Listen { address, flag: "--admin-listen", source })
        }
        Err(error) => {
            tracing::debug!(%error, "no IPv6, listening on every IPv4 address");
            one(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), "--admin-listen")
        }
    }
}

/// Listens on `address`. If it is every IPv6 address, it is every IPv4 address too, whatever the
/// machine's default is.
fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    // After a restart, connections of the previous process may not be closed yet.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_means_every_address() {
        assert_eq!("*:18004".parse(), Ok(AdminAddress::Every(18004)));
        let one = AdminAddress::One(SocketAddr::from((Ipv6Addr::LOCALHOST, 1)));
        assert_eq!("[::1]:1".parse(), Ok(one));
        assert_eq!(one.to_string(), "[::1]:1");
        assert_eq!(AdminAddress::Every(18004).to_string(), "*:18004");
        for wrong in ["", "*", "*:", "*:70000", "18004", "localhost:18004", "::1:18004", "0.0.0.0"]
        {
            assert_eq!(wrong.parse::<AdminAddress>(), Err(AdminAddressError), "{wrong}");
        }
    }
}
