//! Tests deliveries through an HTTP proxy that opens, refuses, asks for a login or says nothing.

use std::time::{Duration, Instant};

use twofactor_tests::connect_proxy::{ConnectProxy, Manner};
use twofactor_tests::provider::Provider;
use twofactor_tests::sidecar::SidecarProcess;

use super::{sms, webhook};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PASSWORD: &str = "password-of-the-proxy";

/// The line with which the proxy is asked for a tunnel to the provider.
fn connect_to(provider: &Provider) -> String {
    format!("CONNECT {} HTTP/1.1", provider.url().trim_start_matches("https://"))
}

/// Requests a code that cannot be delivered, and checks what answer, metrics and log say.
async fn assert_fails(sidecar: &SidecarProcess, user: &str, outcome: &str, cause: &str) {
    let reply = sidecar.api().generate(user).await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    let metrics = sidecar.admin().get("/metrics").await.body;
    let counter = format!("twofactor_deliveries_total{{channel=\"sms\",outcome=\"{outcome}\"}} 1");
    assert!(metrics.contains(&counter), "{counter} in: {metrics}");
    let log = sidecar.process().output();
    assert!(log.contains(cause), "{cause} in: {log}");
    assert!(!log.contains(PASSWORD) && !reply.body.contains(PASSWORD), "{log}");
}

#[tokio::test]
async fn each_provider_is_reached_through_its_own_proxy_and_through_no_other() {
    let (of_sms, of_webhook) =
        tokio::join!(ConnectProxy::start(Manner::Open), ConnectProxy::start(Manner::Open));
    let of_environment = ConnectProxy::start(Manner::Open).await;
    let url = |proxy: &ConnectProxy| format!("http://{}", proxy.address());
    let from_environment = url(&of_environment);
    let (twilio, receiver) = tokio::join!(sms::twilio(), Provider::webhook());

    let variables = [
        ("TWILIO_PROXY", url(&of_sms)),
        ("HTTPS_PROXY", from_environment.clone()),
        ("ALL_PROXY", from_environment.clone()),
    ];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (sidecar, _folder) = sms::sidecar(&twilio, 1, &variables).await;
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!((of_sms.asked(), twilio.received().len()), (vec![connect_to(&twilio)], 1));

    let variables = [("WEBHOOK_PROXY", url(&of_webhook)), ("https_proxy", from_environment)];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (sidecar, _folder) = webhook::sidecar(&receiver, SECRET, 1, &variables).await;
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!((of_webhook.asked(), receiver.received().len()), (vec![connect_to(&receiver)], 1));
    assert_eq!(of_environment.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_proxy_that_asks_for_a_login_gets_it_and_a_wrong_one_is_said_without_the_password() {
    // otp:password-of-the-proxy
    let login = "Basic b3RwOnBhc3N3b3JkLW9mLXRoZS1wcm94eQ==".to_owned();
    let proxy = ConnectProxy::start(Manner::Login(login)).await;
    let twilio = sms::twilio().await;
    let url = format!("http://otp:{PASSWORD}@{}", proxy.address());
    let (sidecar, _folder) = sms::sidecar(&twilio, 2, &[("TWILIO_PROXY", &url)]).await;
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(!sidecar.process().output().contains(PASSWORD));

    let url = format!("http://other:{PASSWORD}@{}", proxy.address());
    let (sidecar, _folder) = sms::sidecar(&twilio, 1, &[("TWILIO_PROXY", &url)]).await;
    let asked = proxy.asked().len();
    let cause = "tunnel error: proxy authorization required";
    assert_fails(&sidecar, "user0", "misconfigured", cause).await;
    assert_eq!(proxy.asked().len(), asked + 1, "there is no second attempt");
    assert_eq!(twilio.received().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_refuses_or_says_nothing_is_an_unreachable_provider_until_it_opens() {
    let proxy = ConnectProxy::start(Manner::Refuse(403)).await;
    let twilio = sms::twilio().await;
    let url = format!("http://otp:{PASSWORD}@{}", proxy.address());
    let (sidecar, _folder) = sms::sidecar(&twilio, 1, &[("TWILIO_PROXY", &url)]).await;
    assert_fails(&sidecar, "user0", "unreachable", "tunnel error: unsuccessful").await;

    proxy.set(Manner::Silent);
    let began = Instant::now();
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());

    proxy.set(Manner::Open);
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(twilio.received().len(), 1, "nothing was sent before");
}

#[tokio::test]
async fn a_proxy_that_does_not_exist_is_an_unreachable_provider() {
    let twilio = sms::twilio().await;
    let proxy = format!("http://otp:{PASSWORD}@127.0.0.1:{}", twofactor_tests::ports::free_port());
    let (sidecar, _folder) = sms::sidecar(&twilio, 1, &[("TWILIO_PROXY", &proxy)]).await;
    assert_fails(&sidecar, "user0", "unreachable", "onnection refused").await;
}
