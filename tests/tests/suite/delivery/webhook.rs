//! Tests codes through a signed webhook.

use std::fs;
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::Value;
use tempfile::TempDir;
use twofactor_tests::process::{Launch, run};
use twofactor_tests::provider::{Provider, Received, Trouble};
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::{scratch, tools};

const PAGE: &str = include_str!("../../../../docs/reference/webhook-delivery.md");
const BOUND: Duration = Duration::from_secs(10);

fn secret(seed: u8) -> String {
    format!("whsec_{}", BASE64.encode(&[seed; 32]))
}

/// A sidecar for `count` users whose codes go to the webhook.
pub(super) async fn sidecar(
    provider: &Provider,
    secrets: &str,
    count: usize,
    variables: &[(&str, &str)],
) -> (SidecarProcess, TempDir) {
    let folder = scratch::folder("manifests");
    let users: Vec<String> = (0..count)
        .map(|number| {
            format!(
                "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: {{ name: user{number} }}\n\
                 spec: {{ deliveryMethod: webhook, email: user{number}@example.org }}\n"
            )
        })
        .collect();
    fs::write(folder.path().join("users.yaml"), users.join("---\n")).unwrap();
    let ca = provider.ca_path().to_str().unwrap().to_owned();
    let url = format!("{}/codes?key=a-secret-of-the-address", provider.url());
    let defaults =
        [("WEBHOOK_URL", url.as_str()), ("WEBHOOK_SECRET", secrets), ("WEBHOOK_CA_FILE", &ca)];
    let mut builder = SidecarProcess::builder().args(["dev", folder.path().to_str().unwrap()]);
    for (name, value) in defaults.iter().chain(variables) {
        builder = builder.env(name, value);
    }
    (builder.start().await, folder)
}

/// The result of the documented receiver for a request at the moment `now`.
fn received_by_example(secret: &str, request: &Received, now: u64) -> String {
    let source =
        PAGE.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let folder = scratch::folder("receiver");
    let path = folder.path().join("receiver.py");
    let headers: Vec<String> = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .map(|name| format!("{name:?}: {:?}", request.header(name)))
        .to_vec();
    let call = format!(
        "\nimport sys\nprint(verify(sys.argv[1], {{{}}}, sys.argv[2].encode(), int(sys.argv[3])))\n",
        headers.join(", ")
    );
    fs::write(&path, format!("{source}{call}")).unwrap();
    let path = path.to_str().unwrap();
    run(tools::find("tools-python"), &[path, secret, &request.body, &now.to_string()])
        .trim()
        .to_owned()
}

fn timestamp(request: &Received) -> u64 {
    request.header("webhook-timestamp").parse().unwrap()
}

#[tokio::test]
async fn a_code_arrives_signed_and_the_documented_receiver_accepts_it() {
    let provider = Provider::webhook().await;
    let (sidecar, _folder) =
        sidecar(&provider, &format!("{} {}", secret(1), secret(2)), 1, &[]).await;
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json().get("otp_code"), None, "with a provider, codes are not in answers");
    let request = provider.wait_for_request(0, BOUND).await;
    assert_eq!(
        (request.method.as_str(), request.header("content-type")),
        ("POST", "application/json")
    );
    let now = timestamp(&request);
    for known in [1, 2] {
        assert_eq!(received_by_example(&secret(known), &request, now), "True");
    }
    assert_eq!(received_by_example(&secret(3), &request, now), "False");
    assert_eq!(received_by_example(&secret(1), &request, now + 600), "False", "an old one");
    let mut changed = request.clone();
    changed.body = changed.body.replace("user0", "user1");
    assert_eq!(received_by_example(&secret(1), &changed, now), "False");

    let event: Value = serde_json::from_str(&request.body).unwrap();
    let data = &event["data"];
    assert_eq!(event["type"], "otp.requested");
    assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&data["username"], &data["email"]), (&"user0".into(), &"user0@example.org".into()));
    assert_eq!((&data["issuer"], &data["service"]), (&"FountainAI".into(), &"dev".into()));
    assert_eq!(data["expires_at"], reply.json()["expires_at"]);
    let code = data["code"].as_str().unwrap();
    assert!(data["text"].as_str().unwrap().starts_with(&format!("Your FountainAI OTP: {code}\n")));
    assert!(data.get("phone_number").is_none() && data.get("context").is_none());
    assert_eq!(sidecar.api().verify("user0", code).await.status, 200);
    let output = sidecar.process().output();
    assert!(!output.contains(code) && !output.contains("a-secret-of-the-address"), "{output}");
}

#[tokio::test]
async fn every_failure_of_the_receiver_has_a_clear_answer_and_the_next_code_arrives() {
    let provider = Provider::webhook().await;
    let elsewhere = Provider::webhook().await;
    let status = |status| Trouble::Status(status, "a-word-of-the-receiver".to_owned());
    let cases = [
        (Trouble::Redirect(elsewhere.url().to_owned()), "the provider refused it."),
        (status(410), "the provider refused it."),
        (status(400), "the provider refused it."),
        (status(401), "the provider is not configured correctly."),
        (status(500), "the provider cannot take it at the moment."),
        (Trouble::Hang, "the provider did not answer in time."),
    ];
    let (sidecar, _folder) = sidecar(&provider, &secret(1), 2 * cases.len(), &[]).await;
    for (number, (trouble, reason)) in cases.into_iter().enumerate() {
        provider.set(Some(trouble.clone()));
        let asked = sidecar.api();
        let user = format!("user{number}");
        let bound = Duration::from_secs(12);
        let reply = tokio::time::timeout(bound, asked.generate(&user)).await.unwrap();
        assert_eq!(reply.status, 502, "{trouble:?}: {}", reply.body);
        assert_eq!(
            reply.json()["detail"],
            format!("The OTP could not be delivered: {reason}"),
            "{trouble:?}"
        );
        provider.set(None);
        assert_eq!(
            asked.generate(&format!("user{}", 11 - number)).await.status,
            200,
            "{trouble:?}"
        );
    }
    assert!(elsewhere.received().is_empty(), "a redirect was followed");
    let output = sidecar.process().output();
    assert!(
        !output.contains("a-secret-of-the-address") && !output.contains("a-word-of"),
        "{output}"
    );
}

#[tokio::test]
async fn another_attempt_with_the_same_code_has_the_same_message_id() {
    let provider = Provider::webhook().await;
    let (sidecar, _folder) = sidecar(&provider, &secret(1), 2, &[]).await;
    // Two requests in one step: a step may end between them once, but not twice in a row.
    let same = async |user: &str| {
        let before = provider.received().len();
        provider.set(Some(Trouble::Status(500, String::new())));
        assert_eq!(sidecar.api().generate(user).await.status, 502);
        provider.set(None);
        assert_eq!(sidecar.api().generate(user).await.status, 200);
        let received = provider.received();
        let code = |request: &Received| {
            serde_json::from_str::<Value>(&request.body).unwrap()["data"]["code"].clone()
        };
        let (first, second) = (&received[before], &received[before + 1]);
        assert_eq!(
            code(first) == code(second),
            first.header("webhook-id") == second.header("webhook-id")
        );
        code(first) == code(second)
    };
    assert!(same("user0").await || same("user1").await);
    let ids: Vec<String> =
        provider.received().iter().map(|request| request.header("webhook-id").to_owned()).collect();
    assert!(ids.iter().all(|id| id.starts_with("msg_")));
}

#[tokio::test]
async fn a_webhook_without_tls_needs_an_explicit_setting() {
    let start = |allowed: &str| {
        let folder = scratch::folder("manifests");
        let process = Launch::new(tools::project_binary("twofactor-sidecar"))
            .isolated()
            .args(["dev", folder.path().to_str().unwrap()])
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .env("WEBHOOK_URL", "http://a-secret-of-the-address.example.org/")
            .env("WEBHOOK_SECRET", secret(1))
            .env("WEBHOOK_ALLOW_HTTP", allowed)
            .start();
        (process, folder)
    };
    let (refused, _folder) = start("false");
    assert!(!refused.wait_exit(BOUND).await.success());
    let said = refused.stderr();
    assert!(
        said.contains("WEBHOOK_URL must be https") && said.contains("WEBHOOK_ALLOW_HTTP=true"),
        "{said}"
    );
    assert!(!said.contains("a-secret-of"), "{said}");
    let (allowed, _folder) = start("true");
    allowed.wait_for_line("Serving", BOUND).await;
}
