//! Tests that any sealed record, manifest, template and request is handled without a panic, with
//! generated input.
//!
//! The number of cases is bounded; `PROPTEST_CASES=100000 cargo test -p twofactor-tests --test
//! suite fuzz` tries more.

use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twofactor_api::manifest;
use twofactor_core::code::Code;
use twofactor_core::key::{MasterKey, RealmKeys};
use twofactor_core::message::{MessageTemplates, Part};
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::{self, Revision, Subject};
use twofactor_core::template::Values;
use twofactor_core::user::DeliveryMethod;
use twofactor_tests::scratch;
use twofactor_tests::sidecar::SidecarProcess;

use crate::support::world::{random, realm_id, record};

/// Timeout for an answer or for the end of the connection.
const ANSWER: Duration = Duration::from_secs(10);
/// Number of requests to the real program.
const REQUESTS: usize = 1500;

fn keys() -> RealmKeys {
    MasterKey::generate(&mut random()).realm_key(&realm_id(), 1).keys(&realm_id())
}

/// Text that resembles the JSON of a record.
fn nearly_json() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("username"),
        Just("seed"),
        Just("totp"),
        Just("issuer"),
        Just("otp_lifetime"),
        Just("smtp"),
        Just("enabled"),
        Just("delivery_method"),
        Just("callers"),
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|truth| truth.to_string()),
        ".{0,40}".prop_map(|text| serde_json::Value::from(text).to_string()),
        Just("null".to_owned()),
        Just("[[[[[[[[[[{}]]]]]]]]]]".to_owned()),
    ];
    prop::collection::vec((word, value), 0..8).prop_map(|members| {
        let members: Vec<_> =
            members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

proptest! {
    #[test]
    fn bytes_in_place_of_a_sealed_record_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let keys = keys();
        let alice = keys.pseudonym(&"alice".parse().unwrap());
        prop_assert!(UserRecord::open(&keys, alice, &bytes).is_err());
        prop_assert!(RealmRecord::open(&keys, &bytes).is_err());
    }

    #[test]
    fn a_changed_record_is_refused(place in any::<prop::sample::Index>(), bit in 0..8_u32, cut in any::<prop::sample::Index>()) {
        let keys = keys();
        let alice = keys.pseudonym(&"alice".parse().unwrap());
        let sealed = record("alice", DeliveryMethod::Email).seal(&keys, alice, Revision(7), &mut random());
        let mut changed = sealed.clone();
        changed[place.index(sealed.len())] ^= 1 << bit;
        prop_assert!(UserRecord::open(&keys, alice, &changed).is_err());
        prop_assert!(UserRecord::open(&keys, alice, &sealed[..cut.index(sealed.len())]).is_err());
    }

    #[test]
    fn what_another_version_sealed_is_read_or_refused(content in prop_oneof![nearly_json(), ".{0,200}"]) {
        let keys = keys();
        let alice = keys.pseudonym(&"alice".parse().unwrap());
        let sealed = seal::seal(&keys, Subject::User(alice), Revision(1), content.as_bytes(), &mut random());
        let _ = UserRecord::open(&keys, alice, &sealed);
        let sealed = seal::seal(&keys, Subject::Realm, Revision(1), content.as_bytes(), &mut random());
        let _ = RealmRecord::open(&keys, &sealed);
    }

    #[test]
    fn a_manifest_of_any_text_is_read_or_named_with_its_line(text in ".{0,400}") {
        let found = manifest::read("any.yaml", text.as_bytes());
        for problem in found.problems {
            prop_assert!(problem.line >= 1 && !problem.message.is_empty());
        }
    }

    #[test]
    fn a_manifest_with_a_part_that_is_something_else_is_read_or_named(
        part in prop::sample::select(vec!["alice", "example.org", "spec", "metadata", "email", "v1alpha1", "TwoFactorUser", ":", "{", "\n"]),
        other in prop_oneof![".{0,60}", Just("&a [*a]".to_owned()), Just("!!binary x".to_owned()), Just("{a: {b: [".to_owned()), Just("\t".to_owned())],
    ) {
        let whole = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: { name: alice }\nspec: { email: alice@example.org }\n";
        let found = manifest::read("any.yaml", whole.replacen(part, &other, 1).as_bytes());
        for user in &found.users {
            let _ = user.validate();
        }
    }
}

/// Text with parts of placeholders.
fn nearly_a_template() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{{code}}".to_owned()),
        Just("{{ context }}".to_owned()),
        Just("{{username}}".to_owned()),
        Just("{{".to_owned()),
        Just("}}".to_owned()),
        Just("{".to_owned()),
        "\\{\\{[a-z_ ]{0,12}\\}\\}",
        ".{0,20}",
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_template_of_any_text_is_read_or_refused_and_no_value_breaks_out_of_it(
        text in nearly_a_template(),
        value in prop_oneof!["\\PC{0,60}", ".{0,60}", Just("a\r\nBcc: x@example.org\u{2028}<b>&\u{202e}\u{0}".to_owned())],
    ) {
        let code = Code::parse("123456").unwrap();
        let values = Values {
            code: &code,
            expires_at: "2026-11-22T12:00:00Z",
            issuer: &value,
            username: &value,
            service: "kms",
            context: Some(&value),
        };
        for part in [Part::Subject, Part::Text, Part::Html, Part::Sms] {
            let Ok(template) = part.parse(&text) else { continue };
            let mut templates = MessageTemplates::default();
            templates.set(part, Some(template));
            let lines = |filled: &str| filled.lines().count();
            prop_assert!(!templates.subject(&values).contains(['\r', '\n', '\0']));
            // A value stays within its line: another value adds no line and no markup.
            let plain = Values { issuer: "x", username: "x", context: Some("x"), ..values };
            prop_assert_eq!(lines(&templates.text(&values)), lines(&templates.text(&plain)));
            prop_assert!(lines(&templates.sms(&values)) <= lines(&templates.sms(&plain)));
            let tags = |html: Option<String>| html.map(|html| html.matches('<').count());
            prop_assert_eq!(tags(templates.html(&values)), tags(templates.html(&plain)));
            prop_assert!(templates.text(&values).contains("123456") && templates.sms(&values).contains("123456"));
        }
    }
}

/// A request with valid and invalid parts.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let method =
        prop_oneof![4 => Just("POST".to_owned()), 1 => Just("GET".to_owned()), 1 => "[A-Z]{1,9}"];
    let path = prop_oneof![
        3 => Just("/auth/verify".to_owned()),
        3 => Just("/auth/generate".to_owned()),
        1 => "/auth/generate\\?username=[a-z%0-9&=+]{0,40}",
        1 => "/[!-~]{0,60}",
    ];
    let body = prop_oneof![
        2 => ("[a-z]{1,9}", "[0-9]{0,9}").prop_map(|(name, code)| format!("{{\"username\":\"{name}\",\"otp_code\":\"{code}\"}}").into_bytes()),
        2 => (".{0,60}", ".{0,20}").prop_map(|(name, code)| {
            serde_json::json!({ "username": name, "otp_code": code }).to_string().into_bytes()
        }),
        1 => nearly_json().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..300),
        1 => Just(format!("{}1{}", "[".repeat(4000), "]".repeat(4000)).into_bytes()),
    ];
    let header = prop_oneof![
        "X-Forwarded-For: [ -~]{0,100}",
        "Forwarded: [ -~]{0,100}",
        "User-Agent: [ -~]{0,300}",
        "Origin: [ -~]{0,60}",
        "Host: [ -~]{0,60}",
        "Accept: [ -~]{0,60}",
    ];
    let headers = prop::collection::vec(header.prop_map(String::into_bytes), 0..4);
    let odd = prop::collection::vec(
        any::<u8>().prop_filter("one line", |byte| ![b'\r', b'\n'].contains(byte)),
        0..80,
    )
    .prop_map(|value| [b"X-Forwarded-For: ".as_slice(), &value].concat());
    (method, path, headers, prop::option::weighted(0.2, odd), body).prop_map(|(method, path, headers, odd, body)| {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len()).into_bytes();
        for header in headers.iter().chain(&odd) {
            request.extend_from_slice(header);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(&body);
        request
    })
}

/// The status of the answer, or `None` if the connection is closed without one.
async fn status(address: &str, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let mut answer = Vec::new();
    // The sidecar may answer and close the connection before it has read everything.
    let _ = stream.write_all(request).await;
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

#[tokio::test]
async fn any_request_is_answered_and_never_with_an_internal_error() {
    let folder = scratch::folder("manifests");
    fs::write(
        folder.path().join("users.yaml"),
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: { name: alice }\nspec: { email: alice@example.org }\n",
    )
    .unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let sidecar = SidecarProcess::builder().args(["dev", &path, "--log", "warn"]).start().await;
    let address = sidecar.api().base_url().trim_start_matches("http://").to_owned();
    let (mut runner, requests) = (TestRunner::default(), request());
    let mut answered = 0;
    for _ in 0..REQUESTS {
        let request = requests.new_tree(&mut runner).unwrap().current();
        let status = tokio::time::timeout(ANSWER, status(&address, &request)).await;
        let status = status
            .unwrap_or_else(|_| panic!("no answer to {:?}", String::from_utf8_lossy(&request)));
        assert_ne!(status, Some(500), "{:?}", String::from_utf8_lossy(&request));
        answered += usize::from(status.is_some());
    }
    assert!(answered > REQUESTS / 2, "only {answered} of {REQUESTS} were answered");
    sidecar.process().assert_running();
    assert!(!sidecar.process().output().contains("panicked"), "{}", sidecar.process().output());
    assert_eq!(sidecar.api().get("/").await.status, 200);
}
