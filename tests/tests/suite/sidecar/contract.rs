//! Tests the service's contract over HTTP, on the real program in `dev` with users from manifests.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use twofactor_tests::http::{ApiClient, Reply};
use twofactor_tests::scratch;
use twofactor_tests::sidecar::SidecarProcess;

/// Manifests for every kind of user that a request can be about.
const USERS: &str = r#"
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: alice }
spec: { email: alice@example.org }
---
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: odd }
spec: { username: "Odd {name} [1]", email: odd@example.org, totp: { digits: 8 } }
---
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: disabled }
spec: { email: disabled@example.org, enabled: false }
---
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: carol }
spec: { deliveryMethod: app }
---
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: seedless }
spec: { email: seedless@example.org, secretRef: { name: missing } }
"#;

struct Dev {
    sidecar: SidecarProcess,
    api: ApiClient,
    _folder: TempDir,
}

async fn dev() -> Dev {
    dev_with(&[]).await
}

async fn dev_with(arguments: &[&str]) -> Dev {
    let folder = scratch::folder("manifests");
    fs::write(folder.path().join("users.yaml"), USERS).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let arguments = ["dev", &path].into_iter().chain(arguments.iter().copied());
    let sidecar = SidecarProcess::builder().args(arguments).start().await;
    Dev { api: sidecar.api(), sidecar, _folder: folder }
}

/// Checks status and sentence, and the other fields against RFC 9457 and the contract.
#[track_caller]
fn assert_problem(reply: &Reply, status: u16, detail: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let problem = reply.json();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["detail"], detail);
    assert!(problem["type"].as_str().unwrap().starts_with("urn:fountainai:2fa:"), "{problem}");
    assert!(!problem["title"].as_str().unwrap().is_empty());
}

fn code(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["otp_code"].as_str().unwrap().to_owned()
}

/// A wrong code of the same length, with every digit changed.
fn other(code: &str) -> String {
    code.chars().map(|digit| if digit == '9' { '0' } else { char::from(digit as u8 + 1) }).collect()
}

#[tokio::test]
async fn the_service_says_that_it_runs() {
    let dev = dev().await;
    let reply = dev.api.get("/").await;
    assert_eq!(
        (reply.status, reply.json()),
        (200, json!({ "status": "2FA Service is up and running!" }))
    );
}

#[tokio::test]
async fn a_generated_code_is_accepted_once() {
    let dev = dev().await;
    let reply = dev.api.generate("alice").await;
    let expires = reply.json()["expires_at"].as_str().unwrap().to_owned();
    assert!(expires.ends_with('Z') && expires.len() == "2026-01-01T00:00:00Z".len(), "{expires}");
    let code = code(&reply);
    assert_eq!(code.len(), 6);
    let reply = dev.api.verify("alice", &code).await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "success": true })));
    assert_problem(
        &dev.api.verify("alice", &code).await,
        400,
        "OTP already used or no matching record.",
    );
    let again = dev.api.generate("alice").await;
    assert_eq!(again.status, 429, "{}", again.body);
    let seconds: u64 = again.header("retry-after").unwrap().parse().unwrap();
    assert!((50..=60).contains(&seconds), "{seconds}");
    assert_problem(
        &again,
        429,
        &format!("Codes were asked for too often. Ask again in {seconds} seconds."),
    );
    assert_eq!(again.json().get("code_in_flight_until"), None, "it is used up");
}

#[tokio::test]
async fn a_code_requested_too_soon_is_refused_and_the_one_in_flight_stays_valid() {
    let dev = dev().await;
    let first = dev.api.generate("alice").await;
    let code = code(&first);
    let again = dev.api.generate("alice").await;
    let seconds: u64 = again.header("retry-after").unwrap().parse().unwrap();
    let expires = first.json()["expires_at"].as_str().unwrap().to_owned();
    assert_problem(
        &again,
        429,
        &format!(
            "A code was asked for already, and is accepted until {expires}. Ask for another one in {seconds} seconds."
        ),
    );
    assert_eq!(again.json()["type"], "urn:fountainai:2fa:asked-too-soon");
    assert_eq!(again.json()["code_in_flight_until"], expires);
    assert_eq!(
        dev.sidecar.process().stdout().matches("Your FountainAI OTP").count(),
        1,
        "nothing is sent again"
    );
    assert_eq!(dev.api.verify("alice", &code).await.status, 200);
    let metrics = dev.sidecar.admin().get("/metrics").await.body;
    let counted = r#"twofactor_decisions_total{operation="generate",outcome="asked-too-soon"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn without_an_interval_the_next_code_comes_with_the_next_step() {
    let dev = dev_with(&["--otp-generate-interval-seconds", "0"]).await;
    let used = code(&dev.api.generate("alice").await);
    assert_eq!(dev.api.verify("alice", &used).await.status, 200);
    let again = dev.api.generate("alice").await;
    if again.status == 200 {
        // The step has ended in between.
        assert_ne!(code(&again), used);
    } else {
        assert_eq!(again.json()["type"], "urn:fountainai:2fa:code-consumed", "{}", again.body);
        let seconds: u64 = again.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=30).contains(&seconds), "{seconds}");
    }
}

#[tokio::test]
async fn a_realm_that_has_reached_its_delivery_limit_sends_no_more_codes() {
    let dev = dev_with(&["--otp-deliveries-per-hour", "1"]).await;
    assert_eq!(dev.api.generate("alice").await.status, 200);
    let reply = dev.api.generate("Odd {name} [1]").await;
    assert_eq!(reply.status, 429, "{}", reply.body);
    assert_eq!(reply.json()["type"], "urn:fountainai:2fa:delivery-limit-reached");
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((3540..=3600).contains(&seconds), "{seconds}");
    // The next request meets the user's limit, because a request counts even if no code is sent.
    let reply = dev.api.generate("Odd {name} [1]").await;
    assert_eq!(reply.json()["type"], "urn:fountainai:2fa:asked-too-soon", "{}", reply.body);
    assert_eq!(dev.sidecar.process().stdout().matches("Your FountainAI OTP").count(), 1);
    let log = dev.sidecar.process().stderr();
    assert!(
        log.contains("outcome=\"delivery-limit-reached\"")
            && log.contains("the realm's hourly limit is reached"),
        "{log}"
    );
}

#[tokio::test]
async fn the_end_users_address_and_agent_are_not_logged_where_that_is_switched_off() {
    let dev = dev_with(&["--audit-origin", "false"]).await;
    let headers = [
        ("content-type", "application/json"),
        ("x-forwarded-for", "203.0.113.7"),
        ("user-agent", "kms/1.0"),
    ];
    let body = json!({ "username": "alice", "otp_code": "000000" }).to_string();
    dev.api.raw("POST", "/auth/verify", &headers, body).await;
    let line =
        dev.sidecar.process().wait_for_line("operation=\"verify\"", Duration::from_secs(5)).await;
    assert!(!line.contains("203.0.113.7") && !line.contains("kms/1.0"), "{line}");
}

#[tokio::test]
async fn the_username_may_stand_in_a_json_body() {
    let dev = dev().await;
    let body = json!({ "username": "Odd {name} [1]" });
    let code = code(&dev.api.post_json("/auth/generate", &body).await);
    assert_eq!(code.len(), 8);
    assert_eq!(dev.api.verify("Odd {name} [1]", &code).await.status, 200);
}

#[tokio::test]
async fn usernames_are_matched_exactly() {
    let dev = dev().await;
    for name in ["Alice", "ALICE", "alice ", " alice", "odd", "odd {name} [1]", "*", "alice*"] {
        let reply = dev.api.generate(name).await;
        assert_problem(&reply, 404, "User not found or 2FA not enabled.");
        assert_problem(
            &dev.api.verify(name, "123456").await,
            404,
            "User not found or 2FA not enabled.",
        );
    }
}

#[tokio::test]
async fn generate_says_why_a_user_cannot_get_a_code() {
    let dev = dev().await;
    assert_problem(&dev.api.generate("disabled").await, 404, "User not found or 2FA not enabled.");
    assert_problem(
        &dev.api.verify("disabled", "123456").await,
        404,
        "User not found or 2FA not enabled.",
    );
    assert_problem(&dev.api.generate("carol").await, 400, "No valid delivery method configured.");
    assert_problem(&dev.api.generate("seedless").await, 400, "OTP secret not configured.");
    assert_problem(&dev.api.verify("seedless", "123456").await, 401, "Invalid OTP or expired.");
}

#[tokio::test]
async fn wrong_codes_are_refused_and_then_throttled() {
    let dev = dev().await;
    let right = code(&dev.api.generate("alice").await);
    for _ in 0..5 {
        assert_problem(
            &dev.api.verify("alice", &other(&right)).await,
            401,
            "Invalid OTP or expired.",
        );
    }
    let blocked = dev.api.verify("alice", &right).await;
    assert_eq!(blocked.status, 429, "{}", blocked.body);
    let seconds: u64 = blocked.header("retry-after").unwrap().parse().unwrap();
    assert!((25..=30).contains(&seconds), "{seconds}");
    // Another user is not affected.
    assert_eq!(dev.api.verify("carol", "000000").await.status, 401);
}

#[tokio::test]
async fn a_code_with_another_number_of_digits_is_wrong_not_malformed() {
    let dev = dev().await;
    let code = code(&dev.api.generate("alice").await);
    assert_problem(
        &dev.api.verify("alice", &format!("{code}0")).await,
        401,
        "Invalid OTP or expired.",
    );
    assert_problem(&dev.api.verify("Odd {name} [1]", &code).await, 401, "Invalid OTP or expired.");
}

#[tokio::test]
async fn codes_that_are_not_plain_digits_are_malformed_and_never_accepted() {
    let dev = dev().await;
    let right = code(&dev.api.generate("alice").await);
    let wide: String =
        right.chars().map(|digit| char::from_u32(digit as u32 - 0x30 + 0xff10).unwrap()).collect();
    let variants = [
        format!(" {right}"),
        format!("{right} "),
        format!("{right}\n"),
        format!("\t{right}"),
        format!("\u{a0}{right}"),
        format!("{} {}", &right[..3], &right[3..]),
        format!("+{right}"),
        wide,
        right[..5].to_owned(),
        format!("{right}000"),
        String::new(),
    ];
    let sentence =
        "otp_code: must be a string of 6 to 8 ASCII digits, without spaces or other characters";
    for _ in 0..2 {
        for variant in &variants {
            assert_problem(&dev.api.verify("alice", variant).await, 422, sentence);
        }
        // Malformed requests do not count as failures, so the right code passes, and afterwards
        // none of them is accepted.
        let status = dev.api.verify("alice", &right).await.status;
        assert!(status == 200 || status == 400, "{status}");
    }
}

async fn post(dev: &Dev, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Reply {
    dev.api.raw("POST", path, &[("content-type", content_type)], body).await
}

#[tokio::test]
async fn a_malformed_request_is_answered_with_the_field_that_is_wrong() {
    let dev = dev().await;
    let long = "x".repeat(300);
    let code = "otp_code: must be a string";
    for (body, detail) in [
        (json!({ "otp_code": "123456" }), "username: is required"),
        (json!({ "username": "", "otp_code": "123456" }), "username: must not be empty"),
        (
            json!({ "username": long, "otp_code": "123456" }),
            "username: has 300 characters, at most 253 are allowed",
        ),
        (
            json!({ "username": "a\u{0}b", "otp_code": "123456" }),
            "username: must not contain control characters",
        ),
        (json!({ "username": 1, "otp_code": "123456" }), "username: must be a string"),
        (json!({ "username": "alice" }), "otp_code: is required"),
        (json!({ "username": "alice", "otp_code": 123_456 }), code),
        (json!({ "username": "alice", "otp_code": null }), code),
        (json!({ "username": "alice", "otp_code": ["123456"] }), code),
        (
            json!({ "username": "alice", "otp_code": "123456", "user": "bob" }),
            "\"user\": is not a known field; known are username, otp_code, context, audience",
        ),
        (json!(["alice", "123456"]), "body: must be a JSON object"),
    ] {
        assert_problem(&dev.api.post_json("/auth/verify", &body).await, 422, detail);
    }
    let reply = post(&dev, "/auth/verify", "application/json", "{\"username\": \"alice\", ").await;
    assert_problem(&reply, 422, "body: is not valid JSON (line 1, column 22)");
    let reply = post(&dev, "/auth/verify", "application/json", b"\xff\xfe".as_slice()).await;
    assert_eq!(reply.status, 422);
    let reply =
        post(&dev, "/auth/verify", "text/plain", r#"{"username":"alice","otp_code":"123456"}"#)
            .await;
    assert_problem(&reply, 422, "Content-Type: must be application/json");
}

#[tokio::test]
async fn a_malformed_generate_is_answered_with_the_field_that_is_wrong() {
    let dev = dev().await;
    let long = format!("/auth/generate?username={}", "x".repeat(300));
    for (path, detail) in [
        ("/auth/generate", "username: is required, in the query or in a JSON body"),
        ("/auth/generate?name=alice", "username: is required, in the query or in a JSON body"),
        ("/auth/generate?username=", "username: must not be empty"),
        ("/auth/generate?username=a%0Ab", "username: must not contain control characters"),
        (
            "/auth/generate?username=alice&username=bob",
            "username: stands in the query more than once",
        ),
        (&long, "username: has 300 characters, at most 253 are allowed"),
    ] {
        assert_problem(&dev.api.raw("POST", path, &[], "").await, 422, detail);
    }
    let both =
        dev.api.post_json("/auth/generate?username=alice", &json!({ "username": "bob" })).await;
    assert_problem(&both, 422, "username: differs between the query and the body");
    let unknown = dev
        .api
        .post_json("/auth/generate", &json!({ "username": "alice", "to": "me@example.org" }))
        .await;
    assert_problem(&unknown, 422, "\"to\": is not a known field; known are username, context");
}

#[tokio::test]
async fn requests_that_no_route_accepts_get_the_status_that_http_defines() {
    let dev = dev().await;
    assert_problem(
        &dev.api.get("/auth/users").await,
        404,
        "There is nothing at this path. The API is described at /docs.",
    );
    assert_eq!(dev.api.raw("HEAD", "/", &[], "").await.status, 200);
    for (method, path, allowed) in [
        ("GET", "/auth/verify", "POST"),
        ("PUT", "/auth/generate", "POST"),
        ("POST", "/", "GET"),
        ("DELETE", "/docs", "GET"),
    ] {
        let reply = dev.api.raw(method, path, &[], "").await;
        assert_problem(&reply, 405, &format!("This path answers {allowed} only."));
        assert_eq!(reply.header("allow"), Some(allowed));
    }
    let large = json!({ "username": "x".repeat(9000), "otp_code": "123456" });
    let reply = dev.api.post_json("/auth/verify", &large).await;
    assert_problem(&reply, 413, "The request body is larger than 8192 bytes.");
}

#[tokio::test]
async fn a_body_that_says_nothing_counts_as_absent() {
    let dev = dev_with(&["--otp-generate-interval-seconds", "0"]).await;
    let json = [("content-type", "application/json")];
    for body in ["null", " null\r\n", "{}", r#"{"username":null}"#, r#"{"context":null}"#, ""] {
        let reply = dev.api.raw("POST", "/auth/generate?username=alice", &json, body).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        let reply = dev.api.raw("POST", "/auth/generate", &json, body).await;
        assert_problem(&reply, 422, "username: is required, in the query or in a JSON body");
    }
    let reply = dev.api.generate("alice").await;
    let body =
        json!({ "username": "alice", "otp_code": code(&reply), "context": null, "audience": null });
    assert_eq!(dev.api.post_json("/auth/verify", &body).await.status, 200);
    // Only JSON has a null, and a body that must be there is not null.
    let text = [("content-type", "text/plain")];
    let reply = dev.api.raw("POST", "/auth/generate?username=alice", &text, "null").await;
    assert_problem(&reply, 422, "Content-Type: must be application/json");
    let reply = dev.api.raw("POST", "/auth/verify", &json, "null").await;
    assert_problem(&reply, 422, "body: must be a JSON object");
}

/// Sends bytes on a connection of its own, and returns the status line and the body of each answer.
async fn exchange(api: &ApiClient, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = api.base_url().strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an end").unwrap();
    answer
}

#[tokio::test]
async fn requests_are_read_as_http_clients_send_them() {
    let unlimited = ["--otp-generate-interval-seconds", "0", "--otp-generates-per-hour", "0"];
    let dev = dev_with(&unlimited).await;
    let body = r#"{"username":"alice"}"#;
    let json = "Host: localhost\r\nContent-Type: application/json\r\nConnection: close";
    let length = format!("Content-Length: {}", body.len());
    let chunked = format!("{:x};extension=1\r\n{body}\r\n0\r\nTrailer: x\r\n\r\n", body.len());
    for request in [
        // HTTP/1.0 without a Host, as the benchmark `ab` sends it.
        format!(
            "POST /auth/generate HTTP/1.0\r\nContent-Type: application/json\r\n{length}\r\n\r\n{body}"
        ),
        // Java's client asks for an upgrade to HTTP/2, which may be ignored.
        format!(
            "POST /auth/generate HTTP/1.1\r\n{json}, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n{length}\r\n\r\n{body}"
        ),
        // A request through a proxy has the whole URL.
        format!("POST http://localhost/auth/generate HTTP/1.1\r\n{json}\r\n{length}\r\n\r\n{body}"),
        format!(
            "POST /auth/generate HTTP/1.1\r\n{json}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
        ),
        format!(
            "POST /auth/generate HTTP/1.1\r\n{json}\r\nExpect: 100-continue\r\n{length}\r\n\r\n{body}"
        ),
        // The username of the original service, with an empty form.
        "POST /auth/generate?username=%61lice&x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "POST /auth/generate?username=alice HTTP/1.1\r\nHost: [::1]:8004\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let answer = exchange(&dev.api, request.as_bytes()).await;
        assert!(answer.contains(" 200 OK") && answer.contains("otp_code"), "{request}\n{answer}");
    }
    for content_type in [
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        "application/vnd.api+json",
    ] {
        let reply =
            dev.api.raw("POST", "/auth/generate", &[("content-type", content_type)], body).await;
        assert_eq!(reply.status, 200, "{content_type}: {}", reply.body);
    }
    let json = [("content-type", "application/json")];
    for body in ["\u{feff}{\"username\":\"alice\"}", "\r\n\t{ \"username\" : \"\\u0061lice\" }\n"] {
        let reply = dev.api.raw("POST", "/auth/generate", &json, body).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    }
    // Two requests at once on one connection are answered in their order.
    let first = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let second = "HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answers = exchange(&dev.api, format!("{first}{second}").as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

#[tokio::test]
async fn a_field_that_is_written_twice_is_refused() {
    let dev = dev().await;
    let json = [("content-type", "application/json")];
    for (path, body, name) in [
        ("/auth/generate", r#"{"context":null,"username":"alice","context":null}"#, "context"),
        ("/auth/verify", r#"{"username":"a","otp_code":"123456","\u006ftp_code":"1"}"#, "otp_code"),
        ("/auth/verify", r#"{"a":{"b":1},"a":{"b":1}}"#, "a"),
        ("/auth/generate", r#"{"username":"bob","username":"alice"}"#, "username"),
        ("/auth/generate?username=alice", r#"{"username":"alice","username":"alice"}"#, "username"),
        ("/auth/generate", r#"{"username":"alice","context":"a","context":null}"#, "context"),
        ("/auth/generate", r#"{"username":"alice","usern\u0061me":"bob"}"#, "username"),
        ("/auth/verify", r#"{"username":"alice","otp_code":"1","otp_code":"123456"}"#, "otp_code"),
        ("/auth/verify", r#"{"a":1,"a":2,"username":"alice","otp_code":"123456"}"#, "a"),
    ] {
        let reply = dev.api.raw("POST", path, &json, body).await;
        assert_problem(&reply, 422, &format!("\"{name}\": stands in the body more than once"));
    }
}

#[tokio::test]
async fn what_happened_is_logged_without_any_code() {
    let dev = dev_with(&["--trusted-proxies", "1"]).await;
    let right = code(&dev.api.generate("alice").await);
    let wrong = other(&right);
    let headers = [
        ("content-type", "application/json"),
        ("x-forwarded-for", "forged, 203.0.113.7, 10.0.0.1"),
        ("user-agent", "kms/1.0"),
    ];
    let body = json!({ "username": "alice", "otp_code": wrong }).to_string();
    dev.api.raw("POST", "/auth/verify", &headers, body).await;
    dev.api.verify("alice", &right).await;
    let line =
        dev.sidecar.process().wait_for_line("outcome=\"accepted\"", Duration::from_secs(5)).await;
    assert!(
        line.contains("operation=\"verify\"")
            && line.contains("username=\"alice\"")
            && line.contains("caller=dev")
    );
    let log = dev.sidecar.process().stderr();
    assert!(
        log.contains("address=\"203.0.113.7\"") && log.contains("user_agent=\"kms/1.0\""),
        "{log}"
    );
    assert!(log.contains("channel=\"email\""), "{log}");
    assert!(!log.contains(&right) && !log.contains(&wrong), "{log}");
    let metrics = dev.sidecar.admin().get("/metrics").await.body;
    assert!(
        metrics.contains(r#"twofactor_decisions_total{operation="verify",outcome="accepted"} 1"#),
        "{metrics}"
    );
    assert!(!metrics.contains("alice"));
}

#[tokio::test]
async fn the_admin_port_serves_health_and_metrics_only() {
    let dev = dev().await;
    let admin = dev.sidecar.admin();
    assert_eq!((admin.get("/livez").await.status, admin.get("/readyz").await.status), (200, 200));
    // Set by the first read of the realm, which the start does not wait for.
    twofactor_tests::wait::eventually(Duration::from_secs(5), "the check of Redis", async || {
        admin.get("/readyz?verbose").await.body.contains("redis ok")
    })
    .await;
    assert_eq!(admin.raw("POST", "/auth/verify", &[], "").await.status, 405);
    assert_eq!(admin.get("/auth/verify").await.status, 404);
    assert_eq!(dev.api.get("/metrics").await.status, 404);
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_answered_in_time() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dev = dev().await;
    let address = dev.api.base_url().strip_prefix("http://").unwrap().to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(8), stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn requests_in_progress_are_answered_when_the_sidecar_is_stopped() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use twofactor_tests::process::Signal;
    let dev = dev().await;
    let address = dev.api.base_url().strip_prefix("http://").unwrap().to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let body = json!({ "username": "alice", "otp_code": "000000" }).to_string();
    let head = format!(
        "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server has read the head when it answers this later request.
    dev.api.get("/").await;
    dev.sidecar.process().signal(Signal::Term);
    dev.sidecar.process().wait_for_line("SIGTERM", Duration::from_secs(5)).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(dev.sidecar.process().wait_exit(Duration::from_secs(5)).await.success());
}

#[tokio::test]
async fn codes_are_in_answers_only_where_that_is_switched_on() {
    let folder = scratch::folder("manifests");
    fs::write(folder.path().join("users.yaml"), USERS).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let sidecar =
        SidecarProcess::builder().args(["dev", &path, "--expose-codes=false"]).start().await;
    let reply = sidecar.api().generate("alice").await;
    let Value::Object(members) = reply.json() else { panic!("{}", reply.body) };
    assert_eq!(members.keys().collect::<Vec<_>>(), ["expires_at"]);
}

#[tokio::test]
async fn a_request_with_no_host_two_hosts_or_an_odd_host_is_refused() {
    let dev = dev().await;
    for hosts in ["", "Host: localhost\r\nhost: localhost\r\n", "Host:\r\n", "Host: a b\r\n"] {
        for line in ["GET / ", "POST /auth/generate?username=alice ", "GET /nowhere "] {
            let request = format!("{line}HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
            let answer = exchange(&dev.api, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{request}\n{answer}");
            assert!(answer.contains("urn:fountainai:2fa:invalid-host"), "{request}\n{answer}");
        }
    }
}

#[tokio::test]
async fn an_address_that_others_can_reach_exposes_no_code_and_answers_to_no_foreign_name() {
    let folder = scratch::folder("manifests");
    fs::write(folder.path().join("users.yaml"), USERS).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let sidecar = SidecarProcess::builder()
        .args(["dev", &path, "--allowed-host", "twofactor,other.example"])
        .on_every_address()
        .start()
        .await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!((reply.status, reply.json().get("otp_code")), (200, None));
    for (host, expected) in [
        ("twofactor:8004", 200),
        ("Other.Example", 200),
        ("10.1.2.3:8004", 200),
        ("rebound.example", 403),
        ("third", 403),
    ] {
        let reply = sidecar.api().raw("GET", "/", &[("host", host)], "").await;
        assert_eq!(reply.status, expected, "{host}: {}", reply.body);
    }
    let metrics = sidecar.admin().get("/metrics").await.body;
    assert!(metrics.contains("twofactor_codes_exposed 0"), "{metrics}");
    assert!(!sidecar.process().stderr().contains("codes exposed"));
}

#[tokio::test]
async fn exposed_codes_are_warned_of_at_each_start_and_counted() {
    let dev = dev().await;
    assert!(dev.sidecar.process().stderr().contains("codes exposed in answers"));
    let metrics = dev.sidecar.admin().get("/metrics").await.body;
    assert!(metrics.contains("twofactor_codes_exposed 1"), "{metrics}");
}

#[tokio::test]
async fn web_pages_from_elsewhere_are_not_answered() {
    let dev = dev().await;
    let host = dev.api.base_url().strip_prefix("http://").unwrap().to_owned();
    let own = format!("http://{host}");
    for (headers, expected) in [
        (&[("origin", "https://example.org")][..], 403),
        (&[("host", "rebound.example")], 403),
        (&[("origin", "null")], 403),
        (&[("origin", &own)], 200),
        // Allowed, and too soon after the request before.
        (&[("host", "localhost:8004")], 429),
    ] {
        let reply = dev.api.raw("POST", "/auth/generate?username=alice", headers, "").await;
        assert_eq!(reply.status, expected, "{headers:?}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_its_line_in_the_log() {
    use tokio::io::AsyncWriteExt;
    let dev = dev().await;
    let address = dev.api.base_url().strip_prefix("http://").unwrap().to_owned();
    let body = json!({ "username": "alice", "otp_code": "000000" }).to_string();
    let request = format!(
        "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for _ in 0..4 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    // The fifth failure blocks only if the four before it were counted, not only logged.
    let failures =
        async || dev.sidecar.process().stderr().matches("outcome=\"invalid-code\"").count();
    let counted = async || {
        let metrics = dev.sidecar.admin().get("/metrics").await.body;
        let name = "twofactor_decisions_total{operation=\"verify\",outcome=\"invalid-code\"} ";
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map_or(0, |number| number.parse().unwrap())
    };
    twofactor_tests::wait::eventually(Duration::from_secs(5), "every line", async || {
        let (logged, counted): (usize, usize) = (failures().await, counted().await);
        if logged == counted && logged > 0 {
            Ok(())
        } else {
            Err(format!("{logged} lines, {counted} counted"))
        }
    })
    .await;
}

#[tokio::test]
async fn clients_that_do_not_read_do_not_block_the_probes() {
    use tokio::io::AsyncWriteExt;
    let dev = dev().await;
    let address = dev.sidecar.admin().base_url().strip_prefix("http://").unwrap().to_owned();
    let mut held = Vec::new();
    for _ in 0..70 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let _ = stream
            .write_all("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50).as_bytes())
            .await;
        held.push(stream);
    }
    twofactor_tests::wait::eventually(
        Duration::from_secs(20),
        "a probe to get through",
        async || {
            dev.sidecar
                .admin()
                .try_raw("GET", "/livez", &[], "")
                .await
                .map(|reply| assert_eq!(reply.status, 200))
        },
    )
    .await;
}
