//! Codes by mail, through a real SMTP server.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;
use twofactor_tests::mail::{MailServer, MailStage, MailTls};
use twofactor_tests::scratch;
use twofactor_tests::sidecar::SidecarProcess;

const ALICE: &str = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: { name: alice }\n\
                     spec: { email: alice@example.org }\n";
const BOUND: Duration = Duration::from_secs(10);

async fn sidecar(mail: &MailServer, variables: &[(&str, &str)]) -> (SidecarProcess, TempDir) {
    let folder = scratch::folder("manifests");
    fs::write(folder.path().join("users.yaml"), ALICE).unwrap();
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
    let mail = MailServer::builder().tls(MailTls::StartTls).login(LOGIN[0].1, LOGIN[1].1).start().await;
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
    let code = lines.next().and_then(|line| line.strip_prefix("Your FountainAI OTP: ")).unwrap().to_owned();
    let expires = reply.json()["expires_at"].as_str().unwrap().to_owned();
    assert_eq!(lines.next(), Some(format!("It expires at {expires}.").as_str()));
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
async fn asked_again_in_the_same_step_the_same_code_is_sent_again() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[("OTP_GENERATE_INTERVAL_SECONDS", "0")]).await;
    // Two requests in one step: a step may end between them once, not twice in a row.
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
async fn a_server_that_offers_no_starttls_is_not_given_a_code() {
    let mail = MailServer::builder().tls(MailTls::Plain).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert!(mail.messages().await.is_empty());
}

#[tokio::test]
async fn a_server_whose_certificate_is_not_trusted_is_not_given_a_code() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let stranger = MailServer::builder().tls(MailTls::StartTls).start().await;
    let ca = stranger.ca_path().to_str().unwrap().to_owned();
    let (sidecar, _folder) = sidecar(&mail, &[("SMTP_CA_FILE", &ca)]).await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert!(mail.messages().await.is_empty());
}

#[tokio::test]
async fn a_refused_delivery_is_told_without_what_the_server_said() {
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
    // The minute was given back, and is taken by the one that arrived.
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    assert_eq!(sidecar.api().generate("alice").await.status, 429);
}

#[tokio::test]
async fn a_wrong_password_is_a_refused_delivery_and_is_never_shown() {
    let mail = MailServer::builder().tls(MailTls::StartTls).login("otp", "the right password").start().await;
    let (sidecar, _folder) =
        sidecar(&mail, &[("SMTP_USERNAME", "otp"), ("SMTP_PASSWORD", "the-wrong-one")]).await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert!(!reply.body.contains("the-wrong-one") && !sidecar.process().output().contains("the-wrong-one"));
}

#[tokio::test]
async fn a_server_that_is_gone_or_hangs_is_a_refused_delivery_in_bounded_time() {
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (sidecar, _folder) = sidecar(&mail, &[]).await;
    mail.process().pause().await;
    let reply = tokio::time::timeout(Duration::from_secs(12), sidecar.api().generate("alice")).await.unwrap();
    assert_eq!(reply.status, 502, "{}", reply.body);
    mail.process().resume();
    mail.process().kill();
    assert_eq!(sidecar.api().generate("alice").await.status, 502);
}
