//! Tests mails as mail programs read them, with the parsers of Go and of Python.

use std::fs;

use serde_json::{Value, json};
use twofactor_core::message::Part;
use twofactor_core::provider::SmtpSecurity;
use twofactor_core::realm::RealmRecord;
use twofactor_sidecar::testing::Delivery;
use twofactor_tests::mail::MailTls;
use twofactor_tests::process::run;
use twofactor_tests::scripted_mail::{Answer, Asked, ScriptedMail};
use twofactor_tests::{scratch, tools};

use super::smtp::{deliver, realm, user};

/// What both parsers find in a mail.
fn parse(mail: &str) -> Value {
    let folder = scratch::folder("mail");
    let path = folder.path().join("mail.eml");
    fs::write(&path, mail).unwrap();
    let path = path.to_str().unwrap();
    let (go, python) = (tools::file("mail/parse.go"), tools::file("mail/parse.py"));
    let by_go = run(tools::find("go"), &["run", go.to_str().unwrap(), path]);
    let by_python = run(tools::find("tools-python"), &[python.to_str().unwrap(), path]);
    let read = |text: &str| serde_json::from_str::<Value>(&text.replace("\\r\\n", "\\n")).unwrap();
    assert_eq!(read(&by_go), read(&by_python), "{mail}");
    read(&by_go)
}

fn set(realm: &mut RealmRecord, part: Part, text: &str) {
    realm.message.set(part, Some(part.parse(text).unwrap()));
}

#[tokio::test]
async fn each_mail_is_read_alike_by_independent_parsers_and_has_all_headers() {
    let mail = ScriptedMail::start(MailTls::Plain, |_: &Asked<'_>| Answer::Usual).await;
    let mut realm = realm(&mail, SmtpSecurity::Plain);
    let delivery = Delivery::new(false);
    let mut ids = Vec::new();
    for (number, (from, name, address)) in [
        ("otp@example.org", "", "otp@example.org"),
        ("Smith, John <otp@example.org>", "Smith, John", "otp@example.org"),
        ("FountainAI Inc. <otp@example.org>", "FountainAI Inc.", "otp@example.org"),
        (
            "Büro \"Nord\", Köln <otp@bücher.example>",
            "Büro \"Nord\", Köln",
            "otp@xn--bcher-kva.example",
        ),
        ("a@b: (c) [d]; <otp@example.org>", "a@b: (c) [d];", "otp@example.org"),
    ]
    .into_iter()
    .enumerate()
    {
        realm.providers.smtp.as_mut().unwrap().from = from.parse().unwrap();
        let is_german = number % 2 == 1;
        if is_german {
            set(&mut realm, Part::Subject, "Grüße von {{issuer}}: dein Code für {{service}}");
            set(&mut realm, Part::Text, "Hallo {{username}},\n.\ndein Code für kms ist {{code}}.");
            set(&mut realm, Part::Html, "<p>Für dich: <b>{{code}}</b></p>");
        } else {
            realm.message = RealmRecord::default().message;
        }
        let sent = deliver(&delivery, &realm, &user("alice@example.org"), "123456").await;
        assert_eq!(sent.0, "sent", "{}", sent.1);
        let raw = mail.mails().pop().unwrap();
        assert!(raw.is_ascii() && raw.lines().all(|line| line.len() <= 998), "{raw}");
        let found = parse(&raw.replace("\r\n..", "\r\n."));
        assert_eq!(found["from"], json!([name, address]), "{raw}");
        assert_eq!(found["to"], json!(["", "alice@example.org"]));
        assert_eq!(
            (&found["date"], &found["mime"]),
            (&json!("2026-11-22T11:55:00Z"), &json!("1.0"))
        );
        let text = found["parts"]["text/plain"].as_str().unwrap().trim_end();
        let title = found["title"].as_str().unwrap();
        if is_german {
            assert_eq!(title, "Grüße von FountainAI: dein Code für kms");
            assert_eq!(text, "Hallo alice,\n.\ndein Code für kms ist 123456.");
            let html = found["parts"]["text/html"].as_str().unwrap();
            assert_eq!(html.trim_end(), "<p>Für dich: <b>123456</b></p>");
        } else {
            assert_eq!(title, "Your FountainAI OTP");
            assert!(text.starts_with("Your FountainAI OTP: 123456\nIt expires at 2026-"), "{text}");
        }
        let id = found["id"].as_str().unwrap().to_owned();
        let domain = address.rsplit('@').next().unwrap();
        assert!(id.starts_with('<') && id.ends_with(&format!("@{domain}>")), "{id}");
        assert!(!ids.contains(&id), "each mail has an identifier of its own");
        ids.push(id);
    }
}
