//! A sidecar from its first listener to its last answer. Enters: a service and addresses. Leaves:
//! the end, clean or with the reason. Every task is joined here, and the end of one ends all.

pub mod listen;
mod redis_settings;
mod refresh;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::{self, Check, NamedChecks};
use twofactor_server::http::{self, Limits};
use twofactor_server::startup::stop_on_signals;
use twofactor_store::redis::SettingsWatch;

use self::listen::Listeners;
use self::refresh::{Checks, refresh};
use crate::otp::service::Current;
use crate::routes;

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

/// A task beside those that serve.
pub struct Background<F> {
    /// Its name in messages.
    pub name: &'static str,
    /// The work; it must not end before it is told to stop.
    pub task: F,
    /// What it tells `/readyz?verbose`.
    pub check: Option<Check>,
}

/// Serves until SIGTERM or SIGINT, together with `background`.
///
/// # Errors
/// When a task ends early.
pub async fn run(
    current: Current,
    listeners: Listeners,
    background: Background<impl Future<Output = ()> + Send + 'static>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    stop_on_signals(&stop).map_err(RunError::Signal)?;
    let checks = Checks::new();
    let mut tasks = JoinSet::new();
    let mut spawn = |name: &'static str,
                     task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        tasks.spawn(async move {
            task.await;
            name
        });
    };

    let api = routes::routes(&current, listeners.loopback_only);
    for listener in listeners.api {
        spawn("api", Box::pin(http::serve(listener, api.clone(), Limits::default(), stop.clone())));
    }
    let settings = NamedChecks::new(SettingsWatch::check_names());
    let shown = [checks.redis.clone(), checks.namespace_allowed.clone()]
        .into_iter()
        .chain(background.check);
    let shown = shown.chain(settings.all()).collect();
    let admin = admin::routes(shown, current.load().metrics.registry());
    let limits = Limits { single_request: Some(ADMIN_LIFETIME), ..admin::limits() };
    spawn("admin", Box::pin(http::serve(listeners.admin, admin, limits, stop.clone())));
    let work = current.load().work.clone();
    spawn(
        "redis settings",
        Box::pin(redis_settings::watch(current.clone(), settings, stop.clone())),
    );
    spawn("realm refresh", Box::pin(refresh(current, checks, stop.clone())));
    spawn(background.name, Box::pin(background.task));

    let mut result = Ok(());
    tokio::select! {
        () = stop.cancelled() => {}
        ended = tasks.join_next() => {
            result = Err(RunError::TaskEnded(ended.and_then(Result::ok).unwrap_or("unknown")));
        }
    }
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    work.finish().await;
    result
}
