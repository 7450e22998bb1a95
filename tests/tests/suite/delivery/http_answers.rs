//! Tests what receivers of webhooks, Twilio and servers with its API answer, byte by byte.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use twofactor_core::provider::Providers;
use twofactor_core::realm::RealmRecord;
use twofactor_core::settings::providers::providers;
use twofactor_core::user::{DeliveryMethod, UserDefinition};
use twofactor_sidecar::testing::Delivery;

use super::smtp::{deliver, user};

const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";
const KEY: &str = "SK0123456789abcdef0123456789abcdef";
/// Far less than the timeout of a delivery.
const SOON: Duration = Duration::from_secs(5);

/// A server that answers every request with the same bytes, and keeps the connection open.
pub(super) struct Raw {
    pub(super) url: String,
    requests: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Raw {
    pub(super) async fn start(answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let shared = requests.clone();
        let serving = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, answer.clone(), shared.clone()));
            }
        });
        Self { url, requests, task: serving.abort_handle() }
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<[u8]>, requests: Arc<Mutex<Vec<String>>>) {
    let (mut request, mut buffer) = (String::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        request.push_str(&String::from_utf8_lossy(&buffer[..count]));
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let length = head
            .to_ascii_lowercase()
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.lines().next().unwrap().trim().parse().unwrap());
        if body.len() < length {
            continue;
        }
        requests.lock().unwrap().push(std::mem::take(&mut request));
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

pub(super) fn realm(variables: &[(&str, &str)]) -> RealmRecord {
    // The program chooses the TLS provider, and this test is no program.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let found = providers(|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    });
    assert_eq!(found.errors, []);
    assert_ne!(found.providers, Providers::default());
    RealmRecord { providers: found.providers, ..RealmRecord::default() }
}

fn webhook(server: &Raw) -> RealmRecord {
    realm(&[
        ("WEBHOOK_URL", &server.url),
        ("WEBHOOK_ALLOW_HTTP", "true"),
        ("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ])
}

pub(super) fn receiver(method: DeliveryMethod) -> UserDefinition {
    let phone_number = Some("+4930123456".to_owned().try_into().unwrap());
    UserDefinition { delivery_method: method, phone_number, ..user("alice@example.org") }
}

#[tokio::test]
async fn a_webhook_has_answered_once_its_status_is_there() {
    let large =
        format!("HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n{}", "x".repeat(3_000_000));
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx", "sent"),
        ("HTTP/1.1 200 OK\r\n\r\nok", "sent"),
        ("HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "sent"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n", "sent"),
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n\x1f\x0b\x08\x00b",
            "sent",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", "sent"),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", "sent"),
        ("HTTP/1.0 200 OK\r\n\r\nok", "sent"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "sent",
        ),
        (&large, "sent"),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 9\r\n\r\nx",
            "refused",
        ),
        ("HTTP/1.1 410 Gone\r\nContent-Length: 9\r\n\r\nx", "refused"),
        ("HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n", "misconfigured"),
        (
            "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\nContent-Length: 9\r\n\r\n",
            "deferred",
        ),
        ("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9\r\n\r\n", "deferred"),
        ("220 mail.example.org ESMTP\r\n", "broken-off"),
    ] {
        let server = Raw::start(answer).await;
        let (realm, delivery) = (webhook(&server), Delivery::new(false));
        let shown = answer.get(..60).unwrap_or(answer);
        // The second one shows whether the connection of the first can be used again.
        for code in ["123456", "234567"] {
            let begin = Instant::now();
            let (outcome, cause) =
                deliver(&delivery, &realm, &receiver(DeliveryMethod::Webhook), code).await;
            assert_eq!(outcome, expected, "{shown:?}: {cause}");
            assert!(begin.elapsed() < SOON, "{shown:?}: {:?}", begin.elapsed());
        }
        assert_eq!(server.requests().len(), 2, "{shown:?}: nothing is sent twice");
    }
}

fn twilio(server: &Raw, more: &[(&str, &str)]) -> RealmRecord {
    let defaults = [
        ("TWILIO_API_URL", server.url.as_str()),
        ("TWILIO_ALLOW_HTTP", "true"),
        ("TWILIO_ACCOUNT_SID", ACCOUNT),
        ("TWILIO_PHONE_NUMBER", "+15005550006"),
    ];
    realm(&[more, &defaults].concat())
}

pub(super) fn answer(status: &str, body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn an_api_key_logs_in_for_the_account_and_senders_have_any_form() {
    let server =
        Raw::start(answer("201 Created", &json!({"sid": "SM1", "status": "queued"}))).await;
    let (token, secret) = ("the-token", "the-secret-of-the-key");
    let basic = |name: &str, password: &str| {
        format!(
            "authorization: Basic {}\r\n",
            BASE64.encode(format!("{name}:{password}").as_bytes())
        )
    };
    for (variables, login, from) in [
        (&[("TWILIO_AUTH_TOKEN", token)][..], basic(ACCOUNT, token), "From=%2B15005550006"),
        (
            &[("TWILIO_API_KEY", KEY), ("TWILIO_API_SECRET", secret)],
            basic(KEY, secret),
            "From=%2B15005550006",
        ),
        (
            &[("TWILIO_AUTH_TOKEN", token), ("TWILIO_PHONE_NUMBER", "A&B Shop")],
            basic(ACCOUNT, token),
            "From=A%26B+Shop&",
        ),
        (
            &[("TWILIO_AUTH_TOKEN", token), ("TWILIO_PHONE_NUMBER", "12345")],
            basic(ACCOUNT, token),
            "From=12345&",
        ),
        (
            &[
                ("TWILIO_AUTH_TOKEN", token),
                ("TWILIO_PHONE_NUMBER", ""),
                ("TWILIO_MESSAGING_SERVICE_SID", "MG0123456789abcdef0123456789abcdef"),
            ],
            basic(ACCOUNT, token),
            "MessagingServiceSid=MG0123456789abcdef0123456789abcdef&",
        ),
    ] {
        let (realm, user) = (twilio(&server, variables), receiver(DeliveryMethod::Sms));
        let sent = deliver(&Delivery::new(false), &realm, &user, "123456").await;
        assert_eq!(sent.0, "sent", "{}", sent.1);
        let request = server.requests().pop().unwrap();
        assert!(
            request.starts_with(&format!("POST /2010-04-01/Accounts/{ACCOUNT}/Messages.json "))
        );
        assert!(request.contains(&login) && request.contains(from), "{request}");
        assert!(request.contains("To=%2B4930123456"), "{request}");
    }
}

#[tokio::test]
async fn a_failure_of_twilio_has_its_code_in_the_log_whatever_the_status_is() {
    for (status, body, outcome, cause) in [
        ("401 Unauthorized", json!({"code": 20003}), "misconfigured", "Twilio's error 20003"),
        ("403 Forbidden", json!({"code": "20008"}), "misconfigured", "Twilio's error 20008"),
        ("400 Bad Request", json!({"code": 21211}), "refused", "Twilio's error 21211"),
        ("400 Bad Request", json!({"code": ""}), "refused", "HTTP 400"),
        ("400 Bad Request", json!({"code": "+4930123456"}), "refused", "an error of Twilio"),
        ("429 Too Many Requests", json!({"code": 20429}), "deferred", "Twilio's error 20429"),
        (
            "201 Created",
            json!({"sid": "SM1", "status": "failed"}),
            "refused",
            "the message is failed",
        ),
        (
            "201 Created",
            json!({"sid": "SM1", "status": "undelivered", "error_code": "30003"}),
            "refused",
            "Twilio's error 30003",
        ),
        ("201 Created", json!({"sid": "SM1", "error_code": ""}), "sent", ""),
        ("200 OK", json!({"status": "queued"}), "broken-off", "not one of Twilio's"),
    ] {
        let server = Raw::start(answer(status, &body)).await;
        let realm = twilio(&server, &[("TWILIO_AUTH_TOKEN", "the-token")]);
        let user = receiver(DeliveryMethod::Sms);
        let found = deliver(&Delivery::new(false), &realm, &user, "123456").await;
        assert_eq!(found.0, outcome, "{status} {body}: {}", found.1);
        assert!(found.1.ends_with(cause) && !found.1.contains("+49"), "{status}: {}", found.1);
    }
    // A refusal whose body comes late is one all the same.
    let late = "HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{\"code\":";
    let server = Raw::start(late).await;
    let realm = twilio(&server, &[("TWILIO_AUTH_TOKEN", "the-token")]);
    let (begin, user) = (Instant::now(), receiver(DeliveryMethod::Sms));
    assert_eq!(deliver(&Delivery::new(false), &realm, &user, "123456").await.0, "refused");
    assert!(begin.elapsed() < SOON);
}
