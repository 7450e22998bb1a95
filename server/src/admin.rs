//! The port for probes and Prometheus: `/livez`, `/readyz`, `/metrics`.
//!
//! Enters: checks and a registry of metrics. Leaves: text. Nothing on this port is secret or can be
//! changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use http::{StatusCode, header};
use prometheus::{Registry, TextEncoder};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

/// One thing that health depends on, told by whoever takes care of it.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    /// Whether `/readyz` fails while this check does.
    required: bool,
    state: Arc<AtomicU8>,
}

const UNKNOWN: u8 = 0;
const GOOD: u8 = 1;
const BAD: u8 = 2;

impl Check {
    /// A check without which no request should come in.
    #[must_use]
    pub fn required(name: &'static str) -> Self {
        Self { name, required: true, state: Arc::default() }
    }

    /// A check that `/readyz?verbose` tells about, but that does not take the pod out of its
    /// Service.
    #[must_use]
    pub fn informational(name: &'static str) -> Self {
        Self { name, required: false, state: Arc::default() }
    }

    /// Tells how it is.
    pub fn set(&self, good: bool) {
        self.state.store(if good { GOOD } else { BAD }, Ordering::Relaxed);
    }

    /// Whether it was last told to be good.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.state.load(Ordering::Relaxed) == GOOD
    }

    fn line(&self) -> String {
        let mark = if self.is_good() { "[+]" } else { "[-]" };
        let state = match self.state.load(Ordering::Relaxed) {
            GOOD => "ok",
            UNKNOWN => "not known yet",
            _ => "failed",
        };
        let remark = if self.required { "" } else { " (does not affect readiness)" };
        format!("{mark} {} {state}{remark}\n", self.name)
    }
}

/// The routes of the admin port.
#[must_use]
pub fn routes(checks: Vec<Check>, registry: Registry) -> BoxedFilter<(Response,)> {
    let checks: Arc<[Check]> = checks.into();
    let livez = warp::path!("livez").map(|| "ok\n".into_response());
    let readyz = warp::path!("readyz")
        .and(optional_query())
        .map(move |query: String| ready(&checks, &query));
    let metrics = warp::path!("metrics").map(move || metrics(&registry));
    warp::get().and(livez.or(readyz).unify().or(metrics).unify()).boxed()
}

fn optional_query() -> impl Filter<Extract = (String,), Error = std::convert::Infallible> + Clone {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

fn ready(checks: &[Check], query: &str) -> Response {
    let good = checks.iter().all(|check| check.is_good() || !check.required);
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verdict = if good { "ok\n" } else { "not ready\n" };
    let verbose =
        !good || query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
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
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
