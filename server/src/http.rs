//! Serves HTTP, with limits, until the program is stopped.
//!
//! warp's own server has no timeout for headers and no limit on connections, so a client that sends
//! nothing, or opens connections without end, could block it. Here both are bounded, for every port
//! of every program.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, StatusCode};
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

/// For a client to take in what was sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; further ones wait in the listener's backlog.
    pub connections: usize,
    /// For TLS to be agreed on, and for a request's head to arrive; also for a kept connection to
    /// stay without one, unless `idle` says otherwise.
    pub header_timeout: Duration,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// For requests under way to end after the signal to stop.
    pub drain: Duration,
    /// For a whole connection, where it serves one request only; connections are kept when absent.
    pub single_request: Option<Duration>,
    /// For a kept connection to stay without a request, and for the head of its next one to arrive.
    /// A client must let go of its connections earlier: one that sends a request at the moment of
    /// the end cannot know whether it was carried out.
    pub idle: Option<Duration>,
    /// For a request from its head to the head of its answer, the body included; then the answer is
    /// 408.
    pub request: Option<Duration>,
    /// For a connection to be kept: the first answer after that ends it, so that nothing under way
    /// is lost.
    pub lifetime: Option<Duration>,
    /// For clients to notice that this server is about to go: after the signal to stop it goes on
    /// for this long, but every answer ends its connection. Zero where nobody keeps connections.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            header_timeout: Duration::from_secs(15),
            header_bytes: 16 * 1024,
            drain: Duration::from_secs(15),
            single_request: None,
            idle: None,
            request: None,
            lifetime: None,
            farewell: Duration::ZERO,
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
    run(listener, None, routes, limits, stop).await;
}

/// [`serve`] with TLS, of which [`crate::tls::configuration`] says how.
pub async fn serve_tls(
    listener: TcpListener,
    configuration: Arc<ServerConfig>,
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
) {
    run(listener, Some(configuration.into()), routes, limits, stop).await;
}

async fn run(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let server = Server { routes, limits, stop: stop.clone() };
    let mut closed = pin!(async {
        stop.cancelled().await;
        sleep(limits.farewell).await;
    });
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            () = &mut closed => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (server, tls, watcher) = (server.clone(), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            match tls {
                None => server.converse(stream, watcher).await,
                Some(tls) => match timeout(limits.header_timeout, tls.accept(stream)).await {
                    Ok(Ok(stream)) => server.converse(stream, watcher).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS could not be agreed on"),
                    Err(_) => tracing::debug!("TLS took too long"),
                },
            }
            drop(slot);
        });
    }

    drop(listener);
    if timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(after = ?limits.drain, "requests were still under way at the end of the drain");
    }
}

/// What every connection works with.
#[derive(Clone)]
struct Server {
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    stop: CancellationToken,
}

impl Server {
    /// Answers the requests of one connection.
    async fn converse(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        watcher: Watcher,
    ) {
        let Self { routes, limits, stop } = self;
        let inner = TowerToHyperService::new(warp::service(routes));
        let (asked, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let service = service_fn({
            let asked = asked.clone();
            move |request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
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
        // hyper knows one time-out for the first head and for a kept connection, which may have
        // longer.
        let never_asked = async {
            sleep(limits.header_timeout).await;
            if limits.idle.is_none() || asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let whole = limits.single_request.unwrap_or(Duration::MAX);
        tokio::select! {
            // A client that went away is its own affair.
            ended = timeout(whole, connection) => if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "connection ended early");
            },
            () = never_asked => tracing::debug!("connection without a request"),
        }
    }
}

/// The next connection, with a slot for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            unreachable!("nobody closes the semaphore")
        };
        match listener.accept().await {
            // A neighbour on the network may be able to send to loopback addresses (CVE-2020-8558).
            Ok((_, peer)) if loopback && !peer.ip().is_loopback() => {
                tracing::warn!(%peer, "somebody else reached a loopback address, and was not answered");
            }
            Ok((stream, _)) => {
                // Answers are small: waiting to fill a packet would only delay them.
                let _ = stream.set_nodelay(true);
                // A client that does not read its answer is let go, and its slot with it.
                let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT));
                return (stream, slot);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely: some have to be closed first.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
