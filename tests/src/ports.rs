//! Returns free loopback ports, each of them once per test process.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// Lowest port; those below belong to well-known services.
const LOWEST: u16 = 10_000;

/// A free port of 127.0.0.1.
///
/// It lies below the kernel's range for outgoing connections if possible. Otherwise a client could
/// take the port of a server that restarts, or even connect to itself there.
#[must_use]
pub fn free_port() -> u16 {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let port = below_the_ephemeral_range()
        .find(|port| !given.contains(port) && bindable(*port).is_some())
        .or_else(|| (0..100).find_map(|_| bindable(0).filter(|port| !given.contains(port))))
        .expect("a free loopback port");
    given.insert(port);
    port
}

fn bindable(port: u16) -> Option<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    Some(listener.local_addr().ok()?.port())
}

/// Every candidate once. The first one differs between processes, so that two test runs do not
/// choose the same port between probing and listening.
fn below_the_ephemeral_range() -> impl Iterator<Item = u16> {
    let end = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse::<u16>().ok())
        .unwrap_or(LOWEST);
    let span = u32::from(end.saturating_sub(LOWEST));
    let start = std::process::id().wrapping_mul(211);
    (0..span).filter_map(move |step| {
        u16::try_from(u32::from(LOWEST) + start.wrapping_add(step) % span).ok()
    })
}
