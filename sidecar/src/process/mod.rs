//! Runs a sidecar from its first listener to its last answer. Every task is joined here, and if one
//! ends, all end.

pub mod listen;
mod redis_settings;
mod refresh;

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::{self, Check, NamedChecks};
use twofactor_server::http::{self, Limits};
use twofactor_server::startup::stop_on_signals;
use twofactor_store::redis::SettingsWatch;

use self::listen::Listeners;
use self::refresh::{Checks, refresh};
use crate::error::RunError;
use crate::otp::service::CurrentService;
use crate::routes;

/// Maximum lifetime of a connection to the admin port, so that no client can hold one for longer.
const ADMIN_LIFETIME: Duration = Duration::from_secs(15);

/// A task of one mode, which runs beside those that serve.
pub struct ModeTask<F> {
    /// The name in messages.
    pub name: &'static str,
    /// The work; it must not end before `stop`.
    pub task: F,
    /// The check in `/readyz?verbose`.
    pub check: Option<Check>,
}

/// Serves until SIGTERM or SIGINT, together with `mode_task`. Fails if a task ends early.
pub async fn run(
    current: CurrentService,
    listeners: Listeners,
    mode_task: ModeTask<impl Future<Output = ()> + Send + 'static>,
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

    let api = routes::routes(&current, listeners.rules);
    for listener in listeners.api {
        spawn("api", Box::pin(http::serve(listener, api.clone(), Limits::default(), stop.clone())));
    }
    let settings = NamedChecks::new(SettingsWatch::check_names());
    let shown =
        [checks.redis.clone(), checks.namespace_allowed.clone()].into_iter().chain(mode_task.check);
    let shown = shown.chain(settings.all()).collect();
    let admin = admin::routes(shown, current.load().metrics.registry());
    let limits = Limits { single_request: Some(ADMIN_LIFETIME), ..admin::limits() };
    spawn("admin", Box::pin(http::serve(listeners.admin, admin, limits, stop.clone())));
    let background = current.load().background.clone();
    spawn(
        "redis settings",
        Box::pin(redis_settings::watch(current.clone(), settings, stop.clone())),
    );
    spawn("realm refresh", Box::pin(refresh(current, checks, stop.clone())));
    spawn(mode_task.name, Box::pin(mode_task.task));

    let mut result = Ok(());
    tokio::select! {
        // Checked first, because after a signal tasks end at the same moment.
        biased;
        () = stop.cancelled() => {}
        ended = tasks.join_next() => {
            result = Err(RunError::TaskEnded(ended.and_then(Result::ok).unwrap_or("unknown")));
        }
    }
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    background.finish().await;
    result
}
