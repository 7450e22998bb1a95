//! Connects to the API server, so that a connection that has died in silence is noticed: within
//! [`SILENCE`] by every request, and so by every watch.
//!
//! kube's own client cannot set options of TCP and shows nothing of a watch but its events.

use std::error::Error;
use std::time::Duration;

use http::{HeaderValue, Request, header};
use http_body_util::BodyExt;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, service_fn};

use super::request::REQUEST_TIMEOUT;
use super::watch_signs::{WATCH_TIMEOUT, WatchSigns};

/// Maximum time for which the API server may send nothing while the operator waits for it. A watch
/// ends earlier by itself.
const SILENCE: Duration = Duration::from_secs(WATCH_TIMEOUT as u64 + 10);
/// Time without traffic after which TCP asks whether the other end still exists, and the interval
/// between further questions.
const KEEPALIVE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(5)];
/// Number of questions without an answer after which TCP gives up.
const KEEPALIVE_RETRIES: u32 = 3;
/// Maximum time for which TCP waits for the acknowledgement of what was sent.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum time for which an unused connection is kept.
const IDLE: Duration = Duration::from_secs(20);

/// Returns a client without built-in retries, because each caller has its own schedule for retries,
/// and the signs of life of its watches.
pub async fn connect() -> Result<(Client, WatchSigns), Box<dyn Error>> {
    let mut configuration =
        Config::infer().await.map_err(|error| format!("no usable kubeconfig: {error}"))?;
    let agent = concat!("twofactor-operator/", env!("CARGO_PKG_VERSION"));
    configuration.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
    if configuration.proxy_url.is_some() {
        return Err("the kubeconfig or HTTPS_PROXY sets a proxy, which is not supported".into());
    }
    let signs = WatchSigns::default();
    Ok((client(&configuration, signs.clone())?, signs))
}

fn client(configuration: &Config, signs: WatchSigns) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE[0]));
    tcp.set_keepalive_interval(Some(KEEPALIVE[1]));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let tls = configuration.rustls_https_connector_with_connector(tcp)?;
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(Some(REQUEST_TIMEOUT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_reset_reader_on_write(true);
    let http: legacy::Client<_, Body> =
        legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector);
    let send = service_fn(move |request: Request<Body>| {
        let sign = signs.of(request.method(), request.uri());
        let response = http.request(request);
        async move {
            let response = response.await;
            if let Some(sign) = &sign {
                sign.answered(response.as_ref().is_ok_and(|answer| answer.status().is_success()));
            }
            let seen = move |frame| {
                if let Some(sign) = &sign {
                    sign.answered(true);
                }
                frame
            };
            response.map(|answer| answer.map(|body| body.map_frame(seen))).map_err(BoxError::from)
        }
    });
    let service = ServiceBuilder::new()
        .layer(configuration.base_uri_layer())
        .option_layer(configuration.auth_layer()?)
        .layer(configuration.extra_headers_layer()?)
        .service(send);
    Ok(ClientBuilder::new(service, configuration.default_namespace.clone()).build())
}
