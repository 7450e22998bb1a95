//! Runs `examples/sms-receiver` between a sidecar's delivery and a server that answers as the
//! provider of text messages does.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use twofactor_core::message::Part;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::{DeliveryMethod, UserDefinition};
use twofactor_sidecar::testing::Delivery;
use twofactor_store::clock::Clock;
use twofactor_tests::http::ApiClient;
use twofactor_tests::process::{Launch, Process};
use twofactor_tests::tools;

use super::http_answers::{Raw, answer, realm, receiver};
use super::smtp::{deliver, deliver_at};

const BOUND: Duration = Duration::from_secs(20);
const SECRETS: [&str; 2] =
    ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_bmV3IHNlY3JldCBvZiB0aGUgcmVhbG0h"];

/// The example, with the provider at `api`.
struct Receiver {
    process: Process,
    url: String,
}

impl Receiver {
    async fn start(api: &str) -> Self {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/sms-receiver/receiver.py");
        let process = Launch::new(tools::find("tools-python"))
            .isolated()
            .patience(Duration::ZERO)
            .arg(path)
            .env("WEBHOOK_SECRET", SECRETS.join(" "))
            .env("VONAGE_URL", api)
            .env("VONAGE_KEY", "the-key")
            .env("VONAGE_SECRET", "the-secret")
            .env("VONAGE_FROM", "FountainAI")
            .env("TIMEOUT", "2")
            .env("LISTEN", "127.0.0.1:0")
            .start();
        let line = process.wait_for_line("listening on ", BOUND).await;
        let url = format!("http://{}", line.trim_start_matches("listening on "));
        Self { process, url }
    }

    fn realm(&self, secret: &str) -> RealmRecord {
        realm(&[
            ("WEBHOOK_URL", &self.url),
            ("WEBHOOK_ALLOW_HTTP", "true"),
            ("WEBHOOK_SECRET", secret),
        ])
    }
}

fn vonage(statuses: &[&str]) -> String {
    let messages: Vec<_> = statuses.iter().map(|status| json!({ "status": status })).collect();
    answer("200 OK", &json!({ "message-count": messages.len().to_string(), "messages": messages }))
}

async fn send(realm: &RealmRecord, user: &UserDefinition, code: &str) -> (&'static str, String) {
    deliver_at(Clock::System.now(), &Delivery::new(false), realm, user, code).await
}

#[tokio::test]
async fn a_code_is_sent_as_a_text_message_once_and_a_forged_request_never() {
    let provider = Raw::start(vonage(&["0"])).await;
    let program = Receiver::start(&provider.url).await;
    let user = receiver(DeliveryMethod::Webhook);
    // The receiver knows the new secret and the old one.
    for (secret, code) in SECRETS.into_iter().zip(["123456", "234567"]) {
        let realm = program.realm(secret);
        // The same code again has the same id.
        for _ in 0..2 {
            let sent = send(&realm, &user, code).await;
            assert_eq!(sent.0, "sent", "{} {}", sent.1, program.process.output());
        }
        let request = provider.requests().pop().unwrap();
        for field in ["api_key=the-key", "from=FountainAI", "to=4930123456&", "text=Your+Fount"] {
            assert!(request.contains(field), "{field} in {request}");
        }
        assert!(request.contains(&format!("OTP%3A+{code}%0A")), "{request}");
        assert!(!request.contains("type=unicode"), "{request}");
    }
    assert_eq!(provider.requests().len(), 2, "each code once");

    let mut realm = program.realm(SECRETS[0]);
    let old = deliver(&Delivery::new(false), &realm, &user, "345678").await;
    assert_eq!(old.0, "misconfigured", "an old request: {}", old.1);
    let forged = program.realm("whsec_c29tZSBvdGhlciBzZWNyZXQgb2YgbWluZSEh");
    assert_eq!(send(&forged, &user, "345678").await.0, "misconfigured");
    let reply = ApiClient::new(&program.url).post_json("/", &json!({ "data": {} })).await;
    assert_eq!(reply.status, 401);
    let without_phone = UserDefinition { phone_number: None, ..user.clone() };
    assert_eq!(send(&realm, &without_phone, "345678").await.0, "refused");
    assert_eq!(provider.requests().len(), 2, "nothing of this was sent");

    realm.message.set(Part::Text, Some(Part::Text.parse("{{code}} für dich").unwrap()));
    assert_eq!(send(&realm, &user, "345678").await.0, "sent");
    let request = provider.requests().pop().unwrap();
    assert!(request.contains("text=345678+f%C3%BCr+dich&type=unicode"), "{request}");
    let output = program.process.output();
    assert!(!output.contains("345678") && !output.contains("4930123456"), "{output}");
}

#[tokio::test]
async fn a_message_that_the_provider_did_not_take_is_no_delivery_and_can_be_sent_again() {
    for (said, outcome) in [
        (vonage(&["0", "0"]), "sent"),
        (vonage(&["1"]), "deferred"),
        (vonage(&["4"]), "refused"),
        (vonage(&["0", "6"]), "refused"),
        (vonage(&[]), "refused"),
        (answer("200 OK", &json!("welcome to the hotel")), "deferred"),
        (answer("500 Internal Server Error", &json!({})), "deferred"),
        (answer("401 Unauthorized", &json!({})), "refused"),
        (String::new(), "deferred"),
    ] {
        let provider = Raw::start(said.as_str()).await;
        let program = Receiver::start(&provider.url).await;
        let (realm, user) = (program.realm(SECRETS[0]), receiver(DeliveryMethod::Webhook));
        for _ in 0..2 {
            let sent = send(&realm, &user, "123456").await;
            assert_eq!(sent.0, outcome, "{said:?}: {} {}", sent.1, program.process.output());
        }
        let attempts = if outcome == "sent" { 1 } else { 2 };
        assert_eq!(provider.requests().len(), attempts, "{said:?}");
    }
}
