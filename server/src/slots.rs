//! Shares the connections of a listener out by the peer's address, so that a neighbour that opens
//! connections and sends nothing fills its own share and not the listener.
//!
//! A connection enters, unless its address has too many already, and then waits for a slot of its
//! address and one of the listener. The machine's own loopback addresses have a share of their own,
//! so that probes get an answer although all slots are in use.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Maximum number of connections of an address that wait for a slot.
const WAITING: usize = 64;
/// Interval between two log lines about closed connections, because a neighbour can cause thousands
/// a second.
const REPORT: Duration = Duration::from_mins(1);

/// The slots of a listener.
#[derive(Debug)]
pub(crate) struct Slots {
    shared: Arc<Semaphore>,
    /// Maximum number of slots of one address.
    share: usize,
    /// Number of connections, waiting ones included, from which on an address that has one gets no
    /// further one. It limits the files that are open.
    crowd: usize,
    peers: Mutex<Peers>,
}

#[derive(Debug, Default)]
struct Peers {
    by_address: HashMap<IpAddr, Peer>,
    /// Connections of all addresses except the own ones.
    total: usize,
    reported: Option<Instant>,
}

#[derive(Debug)]
struct Peer {
    permits: Arc<Semaphore>,
    connections: usize,
}

impl Slots {
    /// Slots for `connections`, of which one address may use `share`.
    pub(crate) fn new(connections: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Semaphore::new(connections)),
            share: share.min(connections),
            crowd: connections + connections / 2,
            peers: Mutex::default(),
        })
    }

    /// Waits for a slot for a connection that is not accepted yet, of any address.
    pub(crate) async fn any(self: &Arc<Self>) -> Ticket {
        Ticket { slots: self.clone(), address: None, permits: vec![permit(&self.shared).await] }
    }

    /// Lets a connection enter; nothing if its address has too many.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Ticket> {
        let address = address.to_canonical();
        let mut peers = self.peers();
        let connections = peers.by_address.get(&address).map_or(0, |peer| peer.connections);
        let crowded = peers.total >= self.crowd && !is_own(address);
        if connections >= self.share + WAITING || (crowded && connections > 0) {
            if peers.reported.is_none_or(|at| at.elapsed() >= REPORT) {
                peers.reported = Some(Instant::now());
                tracing::warn!(peer = %address, "connections closed, because one address opened too many");
            }
            return None;
        }
        peers.total += usize::from(!is_own(address));
        let peer = peers.by_address.entry(address).or_insert_with(|| Peer {
            permits: Arc::new(Semaphore::new(self.share)),
            connections: 0,
        });
        peer.connections += 1;
        let address = Some((address, peer.permits.clone()));
        Some(Ticket { slots: self.clone(), address, permits: Vec::new() })
    }

    fn leave(&self, address: IpAddr) {
        let mut peers = self.peers();
        peers.total -= usize::from(!is_own(address));
        if let Some(peer) = peers.by_address.get_mut(&address) {
            peer.connections -= 1;
            if peer.connections == 0 {
                peers.by_address.remove(&address);
            }
        }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether only processes of this machine, or of this pod, have the address.
fn is_own(address: IpAddr) -> bool {
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&address)
}

async fn permit(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let Ok(permit) = semaphore.clone().acquire_owned().await else {
        unreachable!("the semaphores are never closed")
    };
    permit
}

/// A connection that has entered, or may be accepted. Leaves when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    slots: Arc<Slots>,
    address: Option<(IpAddr, Arc<Semaphore>)>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Ticket {
    /// Waits for a slot.
    pub(crate) async fn slot(&mut self) {
        let Some((address, of_address)) = &self.address else { return };
        // The share comes first, so that an address does not fill the queue of the others.
        self.permits.push(permit(of_address).await);
        if !is_own(*address) {
            self.permits.push(permit(&self.slots.shared).await);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some((address, _)) = &self.address {
            self.slots.leave(*address);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 8));
    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn has_slot(ticket: &mut Ticket) -> bool {
        ticket.slot().now_or_never().is_some()
    }

    #[test]
    fn an_address_gets_its_share_and_others_theirs() {
        let slots = Slots::new(4, 2);
        let mut tickets: Vec<_> = (0..3).map(|_| slots.enter(NEIGHBOUR).unwrap()).collect();
        assert_eq!(tickets.iter_mut().map(has_slot).collect::<Vec<_>>(), [true, true, false]);
        let mut other = slots.enter(OTHER).unwrap();
        assert!(has_slot(&mut other));
        // A mapped address is the same address.
        let mapped = IpAddr::V6(Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped());
        assert!(!has_slot(&mut slots.enter(mapped).unwrap()));
        tickets.remove(0);
        assert!(has_slot(&mut slots.enter(NEIGHBOUR).unwrap()), "a slot is free again");
    }

    #[test]
    fn an_address_with_too_many_waiting_connections_is_closed_out_until_some_end() {
        let slots = Slots::new(100, 2);
        let mut tickets: Vec<_> =
            (0..2 + WAITING).map(|_| slots.enter(NEIGHBOUR).unwrap()).collect();
        assert!(slots.enter(NEIGHBOUR).is_none());
        assert!(slots.enter(OTHER).is_some());
        tickets.pop();
        assert!(slots.enter(NEIGHBOUR).is_some());
        drop(tickets);
        assert!(slots.peers().by_address.is_empty() && slots.peers().total == 0);
    }

    #[test]
    fn while_all_slots_are_in_use_probes_get_theirs_and_a_new_address_may_wait() {
        let slots = Slots::new(2, 1);
        let addresses = (0..3).map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 1, last)));
        let mut tickets: Vec<_> = addresses.map(|it| slots.enter(it).unwrap()).collect();
        assert_eq!(tickets.iter_mut().map(has_slot).collect::<Vec<_>>(), [true, true, false]);
        assert!(slots.enter(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 0))).is_none(), "it has one");
        assert!(slots.enter(OTHER).is_some(), "it has none");
        assert!(has_slot(&mut slots.enter(OWN).unwrap()));
        assert!(has_slot(&mut slots.enter(IpAddr::V6(Ipv6Addr::LOCALHOST)).unwrap()));
    }
}
