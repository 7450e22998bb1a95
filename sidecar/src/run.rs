//! A sidecar from its first listener to its last answer. Enters: a service and addresses. Leaves: the end, clean
//! or with the reason. Every task is joined here, and the end of one ends all.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::{self, Check};
use twofactor_server::http::{self, Limits};

use crate::routes;
use crate::service::Service;

/// How often the realm's record and the guards are read again.
const REFRESH: Duration = Duration::from_secs(2);
/// Probes and Prometheus: few connections are enough.
const ADMIN_CONNECTIONS: usize = 64;
/// For a probe or a scrape, answer included: nobody holds a slot for longer.
const ADMIN_LIFETIME: Duration = Duration::from_secs(15);

/// Why a sidecar did not start, or ended early.
#[derive(Debug, Error)]
pub enum RunError {
    /// An address that others can reach, without being told that this is meant.
    #[error(
        "--listen {0} can be reached from other machines, and the API has no authentication: \
         use a loopback address, or add --allow-non-loopback if that is what you want"
    )]
    NotLoopback(SocketAddr),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}. Choose another address with {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signal(#[source] io::Error),
    /// Something configured is wrong.
    #[error("{0}")]
    Configuration(String),
    /// A task ended although it should not have.
    #[error("the task {0} ended")]
    TaskEnded(&'static str),
}

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The API's address; both loopback addresses on port 8004 when absent.
    pub api: Option<SocketAddr>,
    /// Whether `api` may be reached from other machines.
    pub allow_non_loopback: bool,
    /// The admin port's address.
    pub admin: SocketAddr,
}

/// Bound listeners.
#[derive(Debug)]
pub struct Listeners {
    api: Vec<TcpListener>,
    admin: TcpListener,
    loopback_only: bool,
}

/// The port of the API, unless another one is asked for.
pub const API_PORT: u16 = 8004;

impl Listeners {
    /// Binds the addresses, before anything else is begun.
    ///
    /// # Errors
    /// When an address is taken, or is not a loopback address without that being allowed.
    pub async fn bind(addresses: &Addresses) -> Result<Self, RunError> {
        let mut api = Vec::new();
        if let Some(address) = addresses.api {
            if !address.ip().is_loopback() && !addresses.allow_non_loopback {
                return Err(RunError::NotLoopback(address));
            }
            api.push(listen(address, "--listen").await?);
        } else {
            api.push(listen(SocketAddr::from(([127, 0, 0, 1], API_PORT)), "--listen").await?);
            // "localhost" may mean this one too. Machines without IPv6 do not have it.
            let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), API_PORT);
            match TcpListener::bind(address).await {
                Ok(listener) => api.push(listener),
                // Whoever has it would be taken for this service.
                Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                    return Err(RunError::Listen { address, flag: "--listen", source });
                }
                Err(error) => tracing::debug!(%address, %error, "not listening on the IPv6 loopback address"),
            }
        }
        Ok(Self {
            api,
            admin: listen(addresses.admin, "--admin-listen").await?,
            loopback_only: addresses.api.is_none_or(|address| address.ip().is_loopback()),
        })
    }

    /// The address of the API that is to be shown to people.
    #[must_use]
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api.first().and_then(|listener| listener.local_addr().ok())
    }
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, flag, source })
}

/// Serves until SIGTERM or SIGINT, together with `background`, a task that must not end before.
///
/// # Errors
/// When a task ends early.
pub async fn run(
    service: Arc<Service>,
    listeners: Listeners,
    background: Option<(&'static str, impl Future<Output = ()> + Send + 'static)>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signal)?;
    let redis = Check::informational("redis");
    let mut tasks = JoinSet::new();
    let mut spawn = |name: &'static str, task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        tasks.spawn(async move {
            task.await;
            name
        });
    };

    let api = routes::routes(service.clone(), listeners.loopback_only);
    for listener in listeners.api {
        spawn("api", Box::pin(http::serve(listener, api.clone(), Limits::default(), stop.clone())));
    }
    let admin = admin::routes(vec![redis.clone()], service.metrics.registry());
    let limits =
        Limits { connections: ADMIN_CONNECTIONS, single_request: Some(ADMIN_LIFETIME), ..Limits::default() };
    spawn("admin", Box::pin(http::serve(listeners.admin, admin, limits, stop.clone())));
    spawn("realm refresh", Box::pin(refresh(service, redis, stop.clone())));
    if let Some((name, task)) = background {
        spawn(name, Box::pin(task));
    }

    let mut result = Ok(());
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: letting requests under way end"),
        _ = interrupt.recv() => tracing::info!("SIGINT: letting requests under way end"),
        () = stop.cancelled() => {}
        ended = tasks.join_next() => {
            result = Err(RunError::TaskEnded(ended.and_then(Result::ok).unwrap_or("unknown")));
        }
    }
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    result
}

/// Keeps the realm's policy and the guards current, and knows whether Redis answers.
async fn refresh(service: Arc<Service>, redis: Check, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let result = service.records.refresh_realm().await;
        if let Err(error) = &result
            && redis.is_good()
        {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, cause, "Redis does not answer; requests are answered with 503 until it does");
        }
        if result.is_ok() && !redis.is_good() {
            tracing::info!("the store answers");
        }
        redis.set(result.is_ok());
    }
}
