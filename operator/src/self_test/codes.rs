//! Runs in the pod of the test: submits the code of the user's seed to the pod's own sidecar.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;
use twofactor_core::seed::Seed;
use twofactor_core::totp::{Totp, TotpParameters};
use twofactor_store::clock::Clock;

use super::asked;
use super::failure::{Failure, failure};

/// Port of the sidecar's API.
const PORT: u16 = 8004;
/// Time in which a code must be accepted. Codes are refused for a minute after Redis was restarted.
const BOUND: Duration = Duration::from_secs(100);
const PAUSE: Duration = Duration::from_secs(1);

/// Submits the code of the seed in base32 until one is accepted.
///
/// # Errors
/// The last answer, if none is.
pub async fn verify(username: &str, seed: &str) -> Result<(), Failure> {
    let what = "the sidecar accepts a code";
    let seed = Seed::from_base32(seed).map_err(|error| failure(what, &error))?;
    let totp = Totp::new(&seed, TotpParameters::default());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let end = Instant::now() + BOUND;
    loop {
        let step = TotpParameters::default().step_at(Clock::System.now());
        let code = totp.code_of(step);
        let body = json!({ "username": username, "otp_code": code.expose_secret() }).to_string();
        let request = format!(
            "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        match asked::ask(address, &request).await {
            Ok((200, _)) => return Ok(()),
            Ok((status, body)) if Instant::now() >= end => {
                return Err(failure(what, &format!("status {status}: {body}")));
            }
            Err(error) if Instant::now() >= end => return Err(failure(what, &error)),
            Ok(_) | Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// What the containers of a pod say about why they wait or have ended.
pub(super) fn said(status: &PodStatus) -> String {
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let reasons = all.filter_map(|container| {
        let state = container.state.as_ref()?;
        let waiting =
            state.waiting.as_ref().and_then(|it| it.message.clone().or(it.reason.clone()));
        let ended = state.terminated.as_ref().and_then(|it| it.message.clone());
        Some(format!("{}: {}", container.name, waiting.or(ended)?))
    });
    reasons.collect::<Vec<_>>().join("; ")
}
