//! Serves HTTP, with limits, until the program is stopped.
//!
//! warp's own server has no timeout for headers and no limit on connections, so a client that sends
//! nothing, or opens connections without end, could block it. Here both are bounded, for every port
//! of every program.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

use crate::slots::{Slots, Ticket};

/// Timeout for a client to acknowledge what was sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// Limits on the resources that clients can use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of open connections. Further ones wait: in the backlog of a loopback address,
    /// otherwise for `header_timeout`.
    pub connections: usize,
    /// Maximum number of open connections of one address, unless the listener's address is a
    /// loopback address. Some further ones wait; beyond those, connections are closed.
    pub share: usize,
    /// Timeout for the TLS handshake, and for the head of a request. It is also the idle timeout of
    /// a connection, unless `idle` is set.
    pub header_timeout: Duration,
    /// Maximum size of a request's head, in bytes.
    pub header_bytes: usize,
    /// Timeout for requests in progress to finish after the signal to stop.
    pub drain: Duration,
    /// Timeout for a whole connection that serves only one request. If absent, connections are kept
    /// open.
    pub single_request: Option<Duration>,
    /// Idle timeout of a connection, and timeout for the head of its next request. Clients should
    /// have a shorter one, because a client that sends a request at the moment of the end cannot
    /// know whether it was carried out.
    pub idle: Option<Duration>,
    /// Timeout for a request, from its head to the head of its answer, including the body. After
    /// it, the answer is 408.
    pub request: Option<Duration>,
    /// Maximum age of a connection. The first answer after that closes it, so that no request in
    /// progress is lost.
    pub lifetime: Option<Duration>,
    /// Time for which the server continues after the signal to stop, so that clients notice that it
    /// is about to stop: every answer closes its connection. Zero if clients do not keep
    /// connections open.
    pub shutdown_delay: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            share: 1024,
            header_timeout: Duration::from_secs(15),
            header_bytes: 16 * 1024,
            drain: Duration::from_secs(15),
            single_request: None,
            idle: None,
            request: None,
            lifetime: None,
            shutdown_delay: Duration::ZERO,
        }
    }
}

/// Serves `routes` on `listener` until `stop`, and then lets requests in progress finish.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
) {
    run(listener, None, routes, limits, stop).await;
}

/// How connections are encrypted.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    rejected: Option<Rejected>,
}

/// Handles the rejection of a client's certificate.
type Rejected = Arc<dyn Fn(&rustls::Error) + Send + Sync>;

impl Tls {
    /// Calls `rejected` when a client has no certificate, or one that is not accepted.
    #[must_use]
    pub fn on_rejected(
        mut self,
        rejected: impl Fn(&rustls::Error) + Send + Sync + 'static,
    ) -> Self {
        self.rejected = Some(Arc::new(rejected));
        self
    }

    fn failed(&self, error: &std::io::Error) {
        tracing::debug!(%error, "failed to complete the TLS handshake");
        let inside = error.get_ref().and_then(|inside| inside.downcast_ref());
        if let (Some(error), Some(rejected)) = (inside, &self.rejected)
            && matches!(
                error,
                rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)
            )
        {
            rejected(error);
        }
    }
}

impl From<Arc<ServerConfig>> for Tls {
    fn from(configuration: Arc<ServerConfig>) -> Self {
        Self { acceptor: configuration.into(), rejected: None }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tls")
    }
}

/// [`serve`] with TLS as in [`crate::tls::configuration`].
pub async fn serve_tls(
    listener: TcpListener,
    tls: impl Into<Tls>,
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
) {
    run(listener, Some(tls.into()), routes, limits, stop).await;
}

async fn run(
    listener: TcpListener,
    tls: Option<Tls>,
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
) {
    let slots = Slots::new(limits.connections, limits.share);
    let graceful = GracefulShutdown::new();
    let server = Server { routes, limits, stop: stop.clone() };
    let mut closed = pin!(async {
        stop.cancelled().await;
        sleep(limits.shutdown_delay).await;
    });
    loop {
        let (stream, mut ticket) = tokio::select! {
            biased;
            () = &mut closed => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (server, tls, watcher) = (server.clone(), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            if timeout(limits.header_timeout, ticket.slot()).await.is_err() {
                tracing::debug!("connection closed, because no slot was free in time");
                return;
            }
            match tls {
                None => server.answer(stream, watcher).await,
                Some(tls) => {
                    match timeout(limits.header_timeout, tls.acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => server.answer(stream, watcher).await,
                        Ok(Err(error)) => tls.failed(&error),
                        Err(_) => tracing::debug!("TLS handshake timed out"),
                    }
                }
            }
            drop(ticket);
        });
    }

    drop(listener);
    if timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(after = ?limits.drain, "requests were still in progress after the drain timeout");
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Server {
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
}

impl Server {
    /// Answers the requests of one connection.
    async fn answer(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        watcher: Watcher,
    ) {
        let Self { routes, limits, stop } = self;
        let inner = TowerToHyperService::new(warp::service(routes));
        let (asked, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let service = service_fn({
            let asked = asked.clone();
            move |mut request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                // Routes cannot see it otherwise, and it matters only where it is an old one.
                let version = request.version();
                if version != Version::HTTP_11 {
                    request.extensions_mut().insert(version);
                }
                let (answer, stop) = (inner.call(request), stop.clone());
                async move {
                    let mut answer = match limits.request {
                        None => answer.await?,
                        Some(limit) => match timeout(limit, answer).await {
                            Ok(answer) => answer?,
                            Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
                        },
                    };
                    let old = limits.lifetime.is_some_and(|lifetime| began.elapsed() >= lifetime);
                    if old || stop.is_cancelled() || answer.status() == StatusCode::REQUEST_TIMEOUT
                    {
                        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, std::convert::Infallible>(answer)
                }
            }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle.unwrap_or(limits.header_timeout))
            .max_buf_size(limits.header_bytes)
            .keep_alive(limits.single_request.is_none());
        let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service));
        // hyper has one timeout for the first head and for an idle connection, whose timeout may be
        // longer.
        let never_asked = async {
            sleep(limits.header_timeout).await;
            if limits.idle.is_none() || asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let whole = limits.single_request.unwrap_or(Duration::MAX);
        tokio::select! {
            // A client may close its connection at any time, which is not an error.
            ended = timeout(whole, connection) => if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "connection closed early");
            },
            () = never_asked => tracing::debug!("connection closed without a request"),
        }
    }
}

/// Accepts the next connection, with a ticket for a slot.
async fn accept(listener: &TcpListener, slots: &Arc<Slots>) -> (TcpStream, Ticket) {
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    loop {
        // Other machines cannot connect to a loopback address, so its connections can wait in the
        // backlog. Otherwise those of a neighbour would fill it.
        let slot = if loopback { Some(slots.any().await) } else { None };
        match listener.accept().await {
            // Another machine on the network may be able to send to loopback addresses
            // (CVE-2020-8558).
            Ok((_, peer)) if loopback && !peer.ip().is_loopback() => {
                tracing::warn!(%peer, "connection from another machine to a loopback address rejected");
            }
            Ok((stream, peer)) => {
                let Some(ticket) = slot.or_else(|| slots.enter(peer.ip())) else { continue };
                // Answers are small, so waiting to fill a packet would only delay them.
                let _ = stream.set_nodelay(true);
                // A client that does not read its answer is disconnected, which frees its permit.
                let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT));
                return (stream, ticket);
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                // The process has probably reached its limit of file descriptors, so some must be
                // closed first.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
