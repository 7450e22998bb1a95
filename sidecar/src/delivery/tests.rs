use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use twofactor_core::provider::{Endpoint, Providers, WebhookSettings};
use twofactor_core::secret::SecretText;
use twofactor_core::totp::TotpParameters;
use twofactor_core::webhook::WebhookSecrets;

use super::*;

const PAGE: &str = include_str!("../../../docs/development/adding-a-channel.md");

/// A channel that does what the test chooses, and counts.
#[derive(Clone, Debug)]
struct Scripted {
    does: Does,
    calls: Arc<AtomicUsize>,
    release: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
enum Does {
    Succeed,
    FailToConnect,
    BreakOff,
    WaitForRelease,
}

impl Scripted {
    fn new(does: Does) -> Self {
        Self { does, calls: Arc::default(), release: Arc::default() }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Channel for Scripted {
    fn method(&self) -> DeliveryMethod {
        DeliveryMethod::Webhook
    }

    fn can_reach(&self, _: &UserDefinition, _: &RealmRecord) -> bool {
        true
    }

    fn send<'a>(&'a self, order: &'a Order<'a>) -> Sending<'a> {
        Box::pin(async move {
            assert_eq!(order.values.service, "kms");
            self.calls.fetch_add(1, Ordering::SeqCst);
            match self.does {
                Does::Succeed => Ok(()),
                Does::FailToConnect => Err(DeliveryError::Unreachable("refused".to_owned())),
                Does::BreakOff => Err(DeliveryError::Broken("reset".to_owned())),
                Does::WaitForRelease => {
                    self.release.notified().await;
                    Ok(())
                }
            }
        })
    }
}

fn user(method: DeliveryMethod) -> UserDefinition {
    UserDefinition {
        username: "alice".parse().unwrap(),
        enabled: true,
        delivery_method: method,
        email: None,
        phone_number: None,
        totp: TotpParameters::default(),
        issuer: None,
        locale: None,
    }
}

async fn deliver(delivery: &Delivery, method: DeliveryMethod) -> Result<(), DeliveryError> {
    deliver_in(&RealmRecord::default(), delivery, method).await
}

async fn deliver_in(
    realm: &RealmRecord,
    delivery: &Delivery,
    method: DeliveryMethod,
) -> Result<(), DeliveryError> {
    let (code, service) = (Code::parse("123456").unwrap(), "kms".parse().unwrap());
    let message = Message {
        code: &code,
        expires_at: UnixMillis::new(0),
        issuer: "FountainAI",
        service: &service,
        context: None,
        now: UnixMillis::new(0),
    };
    delivery.deliver(&user(method), realm, &message).await
}

#[tokio::test]
async fn a_user_is_reached_through_the_channel_of_their_method() {
    let channel = Scripted::new(Does::Succeed);
    let delivery = Delivery::over(vec![Box::new(channel.clone())], false);
    assert!(delivery.can_reach(&user(DeliveryMethod::Webhook), &RealmRecord::default()));
    assert!(!delivery.can_reach(&user(DeliveryMethod::Sms), &RealmRecord::default()));
    assert!(deliver(&delivery, DeliveryMethod::Webhook).await.is_ok());
    assert_eq!(
        deliver(&delivery, DeliveryMethod::Sms).await.unwrap_err().outcome(),
        "misconfigured"
    );
    assert_eq!(channel.calls(), 1);
}

#[tokio::test]
async fn a_delivery_is_tried_again_only_if_nothing_can_have_been_sent() {
    for (does, calls, outcome) in
        [(Does::FailToConnect, 2, "unreachable"), (Does::BreakOff, 1, "broken-off")]
    {
        let channel = Scripted::new(does);
        let delivery = Delivery::over(vec![Box::new(channel.clone())], false);
        assert_eq!(
            deliver(&delivery, DeliveryMethod::Webhook).await.unwrap_err().outcome(),
            outcome
        );
        assert_eq!(channel.calls(), calls);
    }
}

#[tokio::test]
async fn a_delivery_beyond_the_maximum_is_refused_at_once() {
    let channel = Scripted::new(Does::WaitForRelease);
    let delivery = Arc::new(Delivery::over(vec![Box::new(channel.clone())], false));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..MOST_IN_FLIGHT {
        let delivery = delivery.clone();
        tasks.spawn(async move { deliver(&delivery, DeliveryMethod::Webhook).await.is_ok() });
    }
    while channel.calls() < MOST_IN_FLIGHT {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        deliver(&delivery, DeliveryMethod::Webhook).await.unwrap_err().outcome(),
        "overloaded"
    );
    channel.release.notify_waiters();
    assert!(tasks.join_all().await.into_iter().all(|sent| sent));
    channel.release.notify_one();
    assert!(deliver(&delivery, DeliveryMethod::Webhook).await.is_ok());
}

#[tokio::test]
async fn the_code_of_an_authenticator_is_never_sent() {
    let delivery = Delivery::new(true);
    assert!(!delivery.can_reach(&user(DeliveryMethod::App), &RealmRecord::default()));
    assert!(deliver(&delivery, DeliveryMethod::App).await.is_err());
}

#[test]
fn the_documentation_contains_the_example_file() {
    assert!(
        PAGE.contains(include_str!("example.rs")),
        "docs/development/adding-a-channel.md differs from example.rs"
    );
}

#[tokio::test]
async fn the_example_of_the_documentation_sends_its_text() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let webhook = WebhookSettings {
        receiver: Endpoint {
            url: SecretText::new(format!("http://{}/alerts", listener.local_addr().unwrap())),
            ca_certificates: None,
            proxy: None,
        },
        secrets: WebhookSecrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(),
    };
    let providers = Providers { webhook: Some(webhook), ..Providers::default() };
    let realm = RealmRecord { providers, ..RealmRecord::default() };
    let receiver = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut request, mut buffer) = (String::new(), [0; 4096]);
        while !request.contains("Asked for by kms.") {
            let count = stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "{request}");
            request.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        request
    });
    let delivery = Delivery::over(vec![Box::new(example::Push::default())], false);
    // The program chooses the TLS provider, and this test is no program.
    let _ = rustls::crypto::ring::default_provider().install_default();
    deliver_in(&realm, &delivery, DeliveryMethod::Webhook).await.unwrap();
    let request = receiver.await.unwrap();
    assert!(
        request.starts_with("POST /alerts HTTP/1.1\r\n")
            && request.contains("title: Your FountainAI OTP\r\n")
    );
}
