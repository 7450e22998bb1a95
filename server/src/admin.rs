//! Serves the port for probes and Prometheus: `/livez`, `/readyz` and `/metrics`.
//!
//! Nothing on this port is secret, and nothing can be changed through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use http::{StatusCode, header};
use prometheus::{Registry, TextEncoder};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

use crate::http::Limits;

/// Maximum number of connections: probes and Prometheus need few.
const CONNECTIONS: usize = 64;
/// Maximum number of connections of one address. Every pod of the cluster can open some.
const SHARE: usize = 16;
/// Timeout for the head of a request. Other pods can reach this port, so a client that sends
/// nothing does not hold a connection for longer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);

/// One condition of readiness, set by the task that is responsible for it.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    /// Whether `/readyz` fails while this check does.
    required: bool,
    state: Arc<AtomicU8>,
}

const UNKNOWN: u8 = 0;
const PASSES: u8 = 1;
const FAILS: u8 = 2;

impl Check {
    /// A check that must pass before the pod receives requests.
    #[must_use]
    pub fn required(name: &'static str) -> Self {
        Self { name, required: true, state: Arc::default() }
    }

    /// A check that `/readyz?verbose` shows, but that does not remove the pod from its Service.
    #[must_use]
    pub fn informational(name: &'static str) -> Self {
        Self { name, required: false, state: Arc::default() }
    }

    /// Sets whether the check passes.
    pub fn set(&self, passes: bool) {
        self.state.store(if passes { PASSES } else { FAILS }, Ordering::Relaxed);
    }

    /// Whether the check passes; false until it is set for the first time.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.state.load(Ordering::Relaxed) == PASSES
    }

    fn line(&self) -> String {
        let symbol = if self.passes() { "[+]" } else { "[-]" };
        let state = match self.state.load(Ordering::Relaxed) {
            PASSES => "ok",
            UNKNOWN => "not known yet",
            _ => "failed",
        };
        let remark = if self.required { "" } else { " (does not affect readiness)" };
        format!("{symbol} {} {state}{remark}\n", self.name)
    }
}

/// Informational checks that are set by name.
#[derive(Clone, Debug)]
pub struct NamedChecks(Vec<Check>);

impl NamedChecks {
    /// One check for each name.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = &'static str>) -> Self {
        Self(names.into_iter().map(Check::informational).collect())
    }

    /// The checks, to be shown.
    #[must_use]
    pub fn all(&self) -> Vec<Check> {
        self.0.clone()
    }

    /// Sets whether the check of this name passes.
    pub fn set(&self, name: &str, passes: bool) {
        for check in self.0.iter().filter(|check| check.name == name) {
            check.set(passes);
        }
    }
}

/// The limits that the admin ports of all programs share.
#[must_use]
pub fn limits() -> Limits {
    Limits {
        connections: CONNECTIONS,
        share: SHARE,
        header_timeout: HEADER_TIMEOUT,
        ..Limits::default()
    }
}

/// The routes of the admin port.
#[must_use]
pub fn routes(checks: Vec<Check>, registry: Registry) -> BoxedFilter<(Response,)> {
    routes_while(|| true, checks, registry)
}

/// The routes of the admin port. `/livez` fails while `is_alive` returns false.
#[must_use]
pub fn routes_while(
    is_alive: impl Fn() -> bool + Clone + Send + Sync + 'static,
    checks: Vec<Check>,
    registry: Registry,
) -> BoxedFilter<(Response,)> {
    let checks: Arc<[Check]> = checks.into();
    let livez = warp::path!("livez").map(move || live(is_alive()));
    let readyz = warp::path!("readyz")
        .and(optional_query())
        .map(move |query: String| ready(&checks, &query));
    let metrics = warp::path!("metrics").map(move || metrics(&registry));
    warp::get().and(livez.or(readyz).unify().or(metrics).unify()).boxed()
}

fn optional_query() -> impl Filter<Extract = (String,), Error = std::convert::Infallible> + Clone {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

fn live(is_alive: bool) -> Response {
    if is_alive {
        "ok\n".into_response()
    } else {
        warp::reply::with_status("stuck\n", StatusCode::SERVICE_UNAVAILABLE).into_response()
    }
}

fn ready(checks: &[Check], query: &str) -> Response {
    let ready = checks.iter().all(|check| check.passes() || !check.required);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verdict = if ready { "ok\n" } else { "not ready\n" };
    let verbose =
        !ready || query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    let body = if verbose {
        checks.iter().map(Check::line).chain([verdict.to_owned()]).collect()
    } else {
        verdict.to_owned()
    };
    warp::reply::with_status(body, status).into_response()
}

fn metrics(registry: &Registry) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => warp::reply::with_header(text, header::CONTENT_TYPE, prometheus::TEXT_FORMAT)
            .into_response(),
        Err(error) => {
            tracing::error!(%error, "failed to write metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
