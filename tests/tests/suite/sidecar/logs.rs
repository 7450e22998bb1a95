//! Tests the sidecar's log lines as a program reads them.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;
use twofactor_tests::{ports, scratch};

const USERS: &str = r#"
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: alice }
spec: { email: alice@example.org }
---
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: odd }
spec: { username: 'Zoë "Q" \ {x}', email: odd@example.org }
"#;

const ODD: &str = r#"Zoë "Q" \ {x}"#;
const HOSTILE: &str = r#"x" outcome="accepted" username="alice"#;
const HIDDEN: &str = "\u{202e}gnp.exe";
const AGENT: &str = r#"kms/1.0 ("quoted"; back\slash)"#;

/// Runs `dev` with this format of log lines, sends five requests, and returns the audit lines.
async fn audit_lines(format: &str) -> Vec<String> {
    let folder = scratch::folder("manifests");
    fs::write(folder.path().join("users.yaml"), USERS).unwrap();
    let sidecar = SidecarProcess::builder()
        .args(["dev", folder.path().to_str().unwrap()])
        .env("TWOFACTOR_LOG_FORMAT", format)
        .start()
        .await;
    let headers = [
        ("content-type", "application/json"),
        ("user-agent", AGENT),
        ("x-forwarded-for", "10.0.0.1, 2001:db8::1"),
    ];
    for name in ["alice", ODD, HOSTILE, HIDDEN] {
        let body = json!({ "username": name, "otp_code": "000000" }).to_string();
        sidecar.api().raw("POST", "/auth/verify", &headers, body).await;
    }
    sidecar.api().generate("alice").await;
    eventually(Duration::from_secs(5), "five audit lines", async || {
        let log = sidecar.process().stderr();
        let lines = log.lines().filter(|line| line.contains("audit")).map(str::to_owned);
        let lines: Vec<_> = lines.collect();
        if lines.len() == 5 { Ok(lines) } else { Err(log) }
    })
    .await
}

#[tokio::test]
async fn a_query_for_a_username_finds_the_user_in_json_lines() {
    let lines = audit_lines("json").await;
    let lines: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    let of = |name: &str| lines.iter().filter(|line| line["username"] == name).count();
    assert_eq!((of("alice"), of(ODD), of(HOSTILE), of(HIDDEN)), (2, 1, 1, 1), "{lines:?}");
    let of = |name: &str| lines.iter().find(|line| line["operation"] == name).unwrap();
    let (verify, generate) = (of("verify"), of("generate"));
    assert_eq!((&verify["user_agent"], &verify["address"]), (&json!(AGENT), &json!("2001:db8::1")));
    assert_eq!(
        (&generate["outcome"], &generate["channel"]),
        (&json!("delivered"), &json!("email"))
    );
    assert_eq!((&generate["caller"], &generate["target"]), (&json!("dev"), &json!("audit")));
    // What is absent is no field, and no value has quotation marks of the log's own.
    assert!(generate.get("address").is_none() && verify.get("channel").is_none(), "{lines:?}");
    for value in lines.iter().filter_map(Value::as_object).flat_map(serde_json::Map::values) {
        assert!(value.as_str().is_none_or(|text| !text.starts_with('"')), "{value}");
    }
}

#[tokio::test]
async fn text_lines_quote_what_a_caller_chose() {
    let lines = audit_lines("text").await;
    for (line, expected) in lines.iter().zip([
        r#"username="alice""#,
        r#"username="Zoë \"Q\" \\ {x}""#,
        r#"username="x\" outcome=\"accepted\" username=\"alice""#,
        r#"username="\u{202e}gnp.exe""#,
    ]) {
        assert!(line.contains(expected), "{expected} is missing in: {line}");
        assert!(!line.contains("outcome=\"accepted\""), "{line}");
        assert!(line.contains(r#"user_agent="kms/1.0 (\"quoted\"; back\\slash)""#), "{line}");
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The spans of the JSON lines that contain a text.
fn spans(log: &str, text: &str) -> Vec<Value> {
    let lines = log.lines().filter(|line| line.contains(text));
    let span = |line| serde_json::from_str::<Value>(line).expect("a JSON object")["span"].take();
    lines.map(span).collect()
}

#[tokio::test]
async fn the_lines_of_a_request_have_the_trace_or_the_request_id_of_its_caller() {
    let folder = scratch::folder("manifests");
    fs::write(folder.path().join("users.yaml"), USERS).unwrap();
    let sidecar = SidecarProcess::builder()
        .args(["dev", folder.path().to_str().unwrap()])
        .env("TWOFACTOR_LOG_FORMAT", "json")
        .env("SMTP_SERVER", "127.0.0.1")
        .env("SMTP_PORT", &ports::free_port().to_string())
        .env("SMTP_SECURITY", "plain")
        .env("SMTP_FROM_EMAIL", "otp@example.org")
        .start()
        .await;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let no_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
    let (upper, too_long) = (parent.to_uppercase(), "x".repeat(65));
    let body = json!({ "username": "alice", "otp_code": "000000" }).to_string();
    let json = ("content-type", "application/json");
    // What is invalid is ignored, and the request gets an id of the sidecar's own.
    let sent = [
        (("traceparent", parent.as_str()), Some(("trace_id", TRACE))),
        (("x-request-id", "req-7"), Some(("request_id", "req-7"))),
        (("accept", "*/*"), None),
        (("traceparent", upper.as_str()), None),
        (("traceparent", no_trace.as_str()), None),
        (("traceparent", "00-\"x\" outcome=\"accepted"), None),
        (("x-request-id", too_long.as_str()), None),
        (("x-request-id", "7\" outcome=\"accepted"), None),
    ];
    for (more, _) in sent {
        sidecar.api().raw("POST", "/auth/verify", &[json, more], body.clone()).await;
    }
    let found = eventually(Duration::from_secs(5), "an audit line of each", async || {
        let log = sidecar.process().stderr();
        let spans = spans(&log, "\"audit\"");
        if spans.len() == sent.len() { Ok(spans) } else { Err(log) }
    })
    .await;
    for ((header, expected), span) in sent.iter().zip(&found) {
        if let Some((field, value)) = expected {
            assert_eq!(span[field], *value, "{header:?}");
        } else {
            let own = span["request_id"].as_str().unwrap();
            let is_number = own.len() == 16 && own.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_number && span["trace_id"].is_null(), "{header:?}: {span}");
        }
    }

    // The line of a delivery that fails has the trace too.
    let headers = [json, ("traceparent", parent.as_str())];
    let body = json!({ "username": "alice" }).to_string();
    let reply = sidecar.api().raw("POST", "/auth/generate", &headers, body).await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    let log = sidecar.process().stderr();
    let failed = spans(&log, "code not delivered");
    assert!(failed.len() == 1 && failed[0]["trace_id"] == TRACE, "{log}");
}
