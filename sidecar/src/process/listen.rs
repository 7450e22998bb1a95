//! Where to listen. Enters: what the command line says about addresses. Leaves: bound listeners, or
//! a sentence that says what would be right.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::process::RunError;

/// The port of the API, unless another one is asked for.
pub const API_PORT: u16 = 8004;
/// Connections that wait to be accepted, as many as the standard library's listeners have.
const BACKLOG: i32 = 1024;

/// Where the API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiAddress {
    /// Both loopback addresses, 127.0.0.1 and `::1` where there is IPv6, at this port.
    Loopback(u16),
    /// This address and no other.
    One(SocketAddr),
}

/// Where probes and Prometheus are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// This address and no other.
    One(SocketAddr),
    /// Every address of the pod at this port: IPv6 and IPv4, or IPv4 alone where there is no IPv6.
    Every(u16),
}

/// Text that is neither an address with a port nor `*` with one.
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

impl fmt::Display for AdminAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(address) => address.fmt(formatter),
            Self::Every(port) => write!(formatter, "*:{port}"),
        }
    }
}

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The API's address.
    pub api: ApiAddress,
    /// Whether `api` may be reached from other machines.
    pub allow_non_loopback: bool,
    /// The admin port's address.
    pub admin: AdminAddress,
}

/// Bound listeners.
#[derive(Debug)]
pub struct Listeners {
    pub(crate) api: Vec<TcpListener>,
    pub(crate) admin: TcpListener,
    /// Whether nobody else's machine can reach the API.
    pub(crate) loopback_only: bool,
}

impl Listeners {
    /// Binds the addresses, before anything else is begun. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When an address is taken, or is not a loopback address without that being allowed.
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
        let loopback_only = match addresses.api {
            ApiAddress::One(address) => address.ip().is_loopback(),
            ApiAddress::Loopback(_) => true,
        };
        Ok(Self { api, admin, loopback_only })
    }

    /// The address of the API that is to be shown to people.
    #[must_use]
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api.first().and_then(|listener| listener.local_addr().ok())
    }
}

fn one(address: SocketAddr, flag: &'static str) -> Result<TcpListener, RunError> {
    bound(address).map_err(|source| RunError::Listen { address, flag, source })
}

fn loopback(port: u16) -> Result<Vec<TcpListener>, RunError> {
    let mut listeners = vec![one(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "--port")?];
    // "localhost" may mean this one too. Machines without IPv6 do not have it.
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    match bound(address) {
        Ok(listener) => listeners.push(listener),
        // Whoever has it would be taken for this service.
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
            return Err(RunError::Listen { address, flag: "--port", source });
        }
        Err(error) => {
            tracing::debug!(%address, %error, "not listening on the IPv6 loopback address");
        }
    }
    Ok(listeners)
}

/// Probes and scrapes come to the pod's address, which is an IPv4 one, an IPv6 one, or both, as the
/// cluster has it.
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
            tracing::debug!(%error, "there is no IPv6; listening on every IPv4 address");
            one(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), "--admin-listen")
        }
    }
}

/// Listens on `address`; on every IPv4 address too when it is every IPv6 one, whatever the
/// machine's default is.
fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    // A sidecar that is started again finds connections of the one before that are not quite over.
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
    fn a_star_is_every_address() {
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
