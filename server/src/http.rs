//! The one HTTP server. Enters: a listener and routes. Leaves: answers, until it is told to stop.
//!
//! warp's own server has no time-out for headers and no limit on connections, so a client that sends nothing, or
//! connects without end, could hold it. Here both are bounded, for every port of every program.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// For a client to take in what was sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; further ones wait in the listener's backlog.
    pub connections: usize,
    /// For a request's head to arrive, and for a kept connection to stay without one.
    pub header_timeout: Duration,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// For requests under way to end after the signal to stop.
    pub drain: Duration,
    /// For a whole connection, where it serves one request only; connections are kept when absent.
    pub single_request: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            header_timeout: Duration::from_secs(15),
            header_bytes: 16 * 1024,
            drain: Duration::from_secs(15),
            single_request: None,
        }
    }
}

/// Serves `routes` on `listener` until `stop`, then lets requests under way end.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
) {
    let service = TowerToHyperService::new(warp::service(routes));
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes);

    builder.keep_alive(limits.single_request.is_none());
    let lifetime = limits.single_request.unwrap_or(Duration::MAX);
    while let Some((stream, slot)) = accept(&listener, &slots, &stop).await {
        let connection = builder.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that went away is its own affair.
            if let Ok(Err(error)) = tokio::time::timeout(lifetime, connection).await {
                tracing::debug!(%error, "connection ended early");
            }
            drop(slot);
        });
    }

    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(after = ?limits.drain, "requests were still under way at the end of the drain");
    }
}

/// The next connection with a slot for it, or nothing when it is time to stop.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => return None,
            slot = slots.clone().acquire_owned() => slot.ok()?,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // A neighbour on the network may be able to send to loopback addresses (CVE-2020-8558).
            Ok((_, peer)) if loopback && !peer.ip().is_loopback() => {
                tracing::warn!(%peer, "somebody else reached a loopback address, and was not answered");
            }
            Ok((stream, _)) => {
                // Answers are small: waiting to fill a packet would only delay them.
                let _ = stream.set_nodelay(true);
                // A client that does not read its answer is let go, and its slot with it.
                let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT));
                return Some((stream, slot));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely: some have to be closed first.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
