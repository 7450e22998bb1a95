//! Tests codes by mail, through a real SMTP server.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;
use twofactor_tests::mail::{MailServer, MailStage, MailTls, MailTrouble};
use twofactor_tests::process::Launch;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::{scratch, tools};

/// Each user may request one code a minute.
const PEOPLE: [&str; 6] = ["alice", "bob", "carol", "dave", "erin", "frank"];
const BOUND: Duration = Duration::from_secs(10);

async fn sidecar(mail: &MailServer, variables: &[(&str, &str)]) -> (SidecarProcess, TempDir) {
    let folder = scratch::folder("manifests");
    let users = PEOPLE.map(|name| {
        format!(
            "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: {{ name: {name} }}\n\
             spec: {{ email: {name}@example.org }}\n"
        )
    });
    fs::write(folder.path().join("users.yaml"), users.join("---\n")).unwrap();
    let (path, port) = (folder.path().to_str().unwrap().to_owned(), mail.port().to_string());
    let ca = mail.ca_path().to_str().unwrap().to_owned();
    let mut builder = SidecarProcess::builder()
        .args(["dev", &path])
        .env("SMTP_SERVER", "localhost")
        .env("SMTP_PORT", &port)
        .env("SMTP_CA_FILE", &ca)
        .env("SMTP_FROM_EMAIL", "FountainAI <otp@example.org>");
    for (name, value) in variables {
        builder = builder.env(name, value);
    }
    (builder.start().await, folder)
}

const LOGIN: [(&str, &str); 2] =
    [("SMTP_USERNAME", "otp"), ("SMTP_PASSWORD", "a password of the mail server")];

#[tokio::test]
async fn a_code_arrives_over_starttls_with_the_contracts_text_and_is_accepted() {
    let mail =
        MailServer::builder().tls(MailTls::StartTls).login(LOGIN[0].1, LOGIN[1].1).start().await;
    let (sidecar, _folder) = sidecar(&mail, &LOGIN).await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json().get("otp_code"), None, "with a mail server, codes are not in answers");
    let message = mail.wait_for_message("alice@example.org", BOUND).await;
    assert!(message.tls);
    assert_eq!(message.user.as_deref(), Some("otp"));
    assert_eq!(message.subject(), "Your FountainAI OTP");
    assert_eq!(message.from, "otp@example.org");
    assert_eq!(message.to, ["alice@example.org"]);
    let mut lines = message.text.lines();
    let code = lines
        .next()
        .and_then(|line| line.strip_prefix("Your FountainAI OTP: "))
        .unwrap()
        .to_owned();
    let expires = reply.json()["expires_at"].as_str().unwrap().to_owned();
    assert_eq!(lines.next(), Some(format!("It expires at {expires}.").as_str()));
    assert_eq!(lines.next(), Some("It was asked for by dev."));
    assert_eq!(
        (message.html.as_str(), message.header("Auto-Submitted")),
        ("", Some("auto-generated"))
    );
    assert_eq!(sidecar.api().verify("alice", &code).await.status, 200);
    assert!(!sidecar.process().output().contains(&code));
}

#[tokio::test]
async fn a_code_arrives_over_implicit_tls() {
    let mail = MailServer::builder().tls(MailTls::Implicit).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[("SMTP_SECURITY", "implicit")]).await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    assert!(mail.wait_for_message("alice@example.org", BOUND).await.tls);
}

#[tokio::test]
async fn a_second_request_in_the_same_step_sends_the_same_code() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[("OTP_GENERATE_INTERVAL_SECONDS", "0")]).await;
    // Two requests in one step: a step may end between them once, but not twice in a row.
    let same = async || {
        let first = sidecar.api().generate("alice").await.json()["expires_at"].clone();
        let one = mail.wait_for_message("alice@example.org", BOUND).await.text;
        let second = sidecar.api().generate("alice").await.json()["expires_at"].clone();
        let two = mail.wait_for_message("alice@example.org", BOUND).await.text;
        first == second && one == two
    };
    assert!(same().await || same().await);
}

#[tokio::test]
async fn no_code_is_sent_to_an_smtp_server_without_starttls() {
    let mail = MailServer::builder().tls(MailTls::Plain).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert!(mail.messages().await.is_empty());
}

#[tokio::test]
async fn no_code_is_sent_to_an_smtp_server_with_an_untrusted_certificate() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let untrusted = MailServer::builder().tls(MailTls::StartTls).start().await;
    let ca = untrusted.ca_path().to_str().unwrap().to_owned();
    let (sidecar, _folder) = sidecar(&mail, &[("SMTP_CA_FILE", &ca)]).await;
    assert_eq!(refused(&sidecar, "alice").await, "there is no trusted connection to the provider.");
    assert!(mail.messages().await.is_empty());
}

#[tokio::test]
async fn a_refused_delivery_is_reported_without_the_servers_text() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    mail.fail(MailStage::Rcpt, "550 5.1.1 alice@example.org unknown here", None).await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert_eq!(reply.json()["detail"], "The OTP could not be delivered: the provider refused it.");
    let metrics = sidecar.admin().get("/metrics").await.body;
    assert!(
        metrics.contains(r#"twofactor_deliveries_total{channel="email",outcome="refused"} 1"#),
        "{metrics}"
    );
    mail.heal().await;
    // The refused delivery freed the minute, and the delivered one takes it.
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    assert_eq!(sidecar.api().generate("alice").await.status, 429);
}

#[tokio::test]
async fn a_wrong_password_is_a_refused_delivery_and_is_never_shown() {
    let mail = MailServer::builder()
        .tls(MailTls::StartTls)
        .login("otp", "the right password")
        .start()
        .await;
    let (sidecar, _folder) =
        sidecar(&mail, &[("SMTP_USERNAME", "otp"), ("SMTP_PASSWORD", "the-wrong-one")]).await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert!(
        !reply.body.contains("the-wrong-one")
            && !sidecar.process().output().contains("the-wrong-one")
    );
}

#[tokio::test]
async fn an_smtp_server_that_is_unavailable_or_hangs_is_a_refused_delivery_in_bounded_time() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    mail.process().pause().await;
    let reply = tokio::time::timeout(Duration::from_secs(12), sidecar.api().generate("alice"))
        .await
        .unwrap();
    assert_eq!(reply.status, 502, "{}", reply.body);
    mail.process().resume();
    mail.process().kill();
    assert_eq!(sidecar.api().generate("alice").await.status, 502);
}

/// The answer to a refused generate, within the time limit of a delivery.
async fn refused(sidecar: &SidecarProcess, username: &str) -> String {
    let reply = tokio::time::timeout(Duration::from_secs(12), sidecar.api().generate(username))
        .await
        .unwrap();
    assert_eq!(reply.status, 502, "{}", reply.body);
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    detail.strip_prefix("The OTP could not be delivered: ").unwrap().to_owned()
}

async fn delivered(sidecar: &SidecarProcess, username: &str) {
    let reply = sidecar.api().generate(username).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_delivery_until_the_server_closes_it() {
    let mail =
        MailServer::builder().tls(MailTls::StartTls).login(LOGIN[0].1, LOGIN[1].1).start().await;
    let (sidecar, _folder) = sidecar(&mail, &LOGIN).await;
    delivered(&sidecar, "alice").await;
    delivered(&sidecar, "bob").await;
    assert_eq!(mail.connections().await, 1);
    mail.close_connections().await;
    // The code arrives whether or not the sidecar has noticed the close.
    delivered(&sidecar, "carol").await;
    assert_eq!((mail.connections().await, mail.messages().await.len()), (2, 3));
    let metrics = sidecar.admin().get("/metrics").await.body;
    assert!(
        metrics.contains(r#"twofactor_deliveries_total{channel="email",outcome="sent"} 3"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn an_smtp_connection_of_an_abandoned_delivery_is_never_used_again() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    delivered(&sidecar, "alice").await;
    mail.go_silent(MailStage::Data, MailTrouble::Hang, Some(1)).await;
    assert_eq!(refused(&sidecar, "bob").await, "the provider did not answer in time.");
    assert_eq!(mail.connections().await, 1);
    delivered(&sidecar, "carol").await;
    assert_eq!(mail.connections().await, 2, "the one that hangs still owes an answer");
    let receivers: Vec<_> = mail.messages().await.into_iter().flat_map(|mail| mail.to).collect();
    assert_eq!(receivers, ["alice@example.org", "carol@example.org"]);
}

#[tokio::test]
async fn an_smtp_server_that_disconnects_is_reported_and_nothing_is_sent_twice() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    let stages = [MailStage::Mail, MailStage::Rcpt, MailStage::Data];
    for (number, stage) in stages.into_iter().enumerate() {
        mail.go_silent(stage, MailTrouble::Drop, Some(1)).await;
        assert_eq!(
            refused(&sidecar, PEOPLE[2 * number]).await,
            "the provider broke off.",
            "{stage:?}"
        );
        let attempts = mail.attempts().await;
        delivered(&sidecar, PEOPLE[2 * number + 1]).await;
        assert_eq!(mail.attempts().await, attempts + 1, "{stage:?}");
        // Without a kept connection, because its end would cause another attempt.
        mail.close_connections().await;
        if stage == MailStage::Mail {
            assert_eq!(attempts, 1, "a new connection that breaks is not tried again");
        }
    }
}

#[tokio::test]
async fn a_temporary_refusal_of_the_smtp_server_differs_from_a_permanent_one() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    for (stage, person) in
        [(MailStage::Mail, "alice"), (MailStage::Rcpt, "bob"), (MailStage::Data, "carol")]
    {
        mail.fail(stage, "451 4.3.0 carol@example.org later", None).await;
        assert_eq!(refused(&sidecar, person).await, "the provider cannot take it at the moment.");
    }
    mail.heal().await;
    delivered(&sidecar, "dave").await;
    let metrics = sidecar.admin().get("/metrics").await.body;
    assert!(metrics.contains(r#"{channel="email",outcome="deferred"} 3"#), "{metrics}");
    assert!(!sidecar.process().output().contains("example.org later"));
}

#[tokio::test]
async fn plain_smtp_needs_an_explicit_setting_and_is_logged() {
    let mail = MailServer::builder().tls(MailTls::Plain).start().await;
    let (careful, _folder) = sidecar(&mail, &[]).await;
    assert_eq!(refused(&careful, "alice").await, "there is no trusted connection to the provider.");
    let (plain, _folder) = sidecar(&mail, &[("SMTP_SECURITY", "plain")]).await;
    delivered(&plain, "alice").await;
    assert!(!mail.wait_for_message("alice@example.org", BOUND).await.tls);
    assert!(plain.process().output().contains("unencrypted, because SMTP_SECURITY is plain"));
}

#[tokio::test]
async fn custom_texts_are_filled_in_and_html_is_an_alternative_part() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(
        &mail,
        &[
            ("ISSUER", "Zoë & <Sons>"),
            ("MESSAGE_SUBJECT", "{{issuer}}: a code for {{service}}"),
            ("MESSAGE_TEXT", "Hello {{username}},\n.\nyour code is {{code}}"),
            ("MESSAGE_HTML", "<html><body><b>{{code}}</b> from {{issuer}}</body></html>"),
        ],
    )
    .await;
    delivered(&sidecar, "alice").await;
    let message = mail.wait_for_message("alice@example.org", BOUND).await;
    assert_eq!(message.subject(), "Zoë & <Sons>: a code for dev");
    let code = message.text.trim_end().rsplit(' ').next().unwrap();
    assert_eq!(
        message.text.trim_end().replace("\r\n", "\n"),
        format!("Hello alice,\n.\nyour code is {code}")
    );
    let html = format!("<html><body><b>{code}</b> from Zoë &amp; &lt;Sons&gt;</body></html>");
    assert_eq!(message.html.trim_end(), html);
    assert_eq!(sidecar.api().verify("alice", code).await.status, 200);
}

#[tokio::test]
async fn an_invalid_message_text_is_refused_at_startup() {
    for (variable, text, sentence) in [
        ("MESSAGE_TEXT", "no code", "MESSAGE_TEXT must contain {{code}}"),
        ("MESSAGE_SUBJECT", "two\nlines", "MESSAGE_SUBJECT must be one line"),
        (
            "MESSAGE_HTML",
            "{{code}} {{password}}",
            "MESSAGE_HTML has an unknown placeholder at character 10",
        ),
        ("MESSAGE_SMS", "{{code", "MESSAGE_SMS has {{ without }} at character 1"),
    ] {
        let process = Launch::new(tools::project_binary("twofactor-sidecar"))
            .isolated()
            .args(["dev", "/nowhere", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .env(variable, text)
            .start();
        assert!(!process.wait_exit(BOUND).await.success());
        assert!(process.stderr().contains(sentence), "{}", process.stderr());
    }
}
