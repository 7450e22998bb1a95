//! Tests codes as text messages, through a server that answers like Twilio.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;
use twofactor_core::provider::{Endpoint, Providers, TwilioSender, TwilioSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::secret::SecretText;
use twofactor_core::user::{DeliveryMethod, PhoneNumber};
use twofactor_tests::provider::{Provider, Trouble};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::scratch;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;

use crate::support::sidecar::Served;
use crate::support::world::{World, record};

const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";
const TOKEN: &str = "the-token-of-the-account";
const NUMBER: &str = "+4930123456";
const BOUND: Duration = Duration::from_secs(10);

pub(super) async fn twilio() -> Provider {
    Provider::twilio(ACCOUNT, TOKEN).await
}

/// A sidecar for `count` users with a phone each, each of which requests one code.
pub(super) async fn sidecar(
    provider: &Provider,
    count: usize,
    variables: &[(&str, &str)],
) -> (SidecarProcess, TempDir) {
    let folder = scratch::folder("manifests");
    let users: Vec<String> = (0..count)
        .map(|number| {
            format!(
                "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: {{ name: user{number} }}\n\
                 spec: {{ deliveryMethod: sms, phoneNumber: \"{NUMBER}{number}\" }}\n"
            )
        })
        .collect();
    fs::write(folder.path().join("users.yaml"), users.join("---\n")).unwrap();
    let ca = provider.ca_path().to_str().unwrap().to_owned();
    let defaults = [
        ("TWILIO_ACCOUNT_SID", ACCOUNT),
        ("TWILIO_AUTH_TOKEN", TOKEN),
        ("TWILIO_PHONE_NUMBER", "+15005550006"),
        ("TWILIO_API_URL", provider.url()),
        ("TWILIO_CA_FILE", &ca),
    ];
    let mut builder = SidecarProcess::builder().args(["dev", folder.path().to_str().unwrap()]);
    for (name, value) in defaults.iter().chain(variables) {
        builder = builder.env(name, value);
    }
    (builder.start().await, folder)
}

fn code_in(text: &str) -> String {
    text.lines().next().and_then(|line| line.rsplit(' ').next()).unwrap().to_owned()
}

/// Checks that the sidecar's output holds no secret.
fn assert_silent(sidecar: &SidecarProcess) {
    let output = sidecar.process().output();
    for secret in [TOKEN, NUMBER] {
        assert!(!output.contains(secret), "{secret} in: {output}");
    }
}

#[tokio::test]
async fn a_code_arrives_as_a_text_message_and_is_accepted() {
    let provider = twilio().await;
    let (sidecar, _folder) = sidecar(&provider, 1, &[]).await;
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json().get("otp_code"), None, "with a provider, codes are not in answers");
    let request = provider.wait_for_request(0, BOUND).await;
    assert_eq!(
        (request.field("To"), request.field("From")),
        (format!("{NUMBER}0"), "+15005550006".to_owned())
    );
    let (text, expires) =
        (request.field("Body"), reply.json()["expires_at"].as_str().unwrap().to_owned());
    let code = code_in(&text);
    assert_eq!(
        text,
        format!("Your FountainAI OTP: {code}\nIt expires at {expires}. Asked for by dev."),
        "the contract's text, and who asked"
    );
    assert_eq!(sidecar.api().verify("user0", &code).await.status, 200);
    let metrics = sidecar.admin().get("/metrics").await.body;
    for line in [
        r#"twofactor_deliveries_total{channel="sms",outcome="sent"} 1"#,
        r#"twofactor_delivery_duration_seconds_count{channel="sms"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} in: {metrics}");
    }
    assert!(!sidecar.process().output().contains(&code));
    assert_silent(&sidecar);
}

#[tokio::test]
async fn a_messaging_service_and_a_custom_text_replace_the_defaults() {
    let provider = twilio().await;
    let service = "MG0123456789abcdef0123456789abcdef";
    let (sidecar, _folder) = sidecar(
        &provider,
        1,
        &[
            ("TWILIO_PHONE_NUMBER", ""),
            ("TWILIO_MESSAGING_SERVICE_SID", service),
            ("MESSAGE_SMS", "{{code}} für {{username}} 🔑"),
        ],
    )
    .await;
    assert_eq!(sidecar.api().generate("user0").await.status, 200);
    let request = provider.wait_for_request(0, BOUND).await;
    assert_eq!(
        (request.field("MessagingServiceSid"), request.field("From")),
        (service.to_owned(), String::new())
    );
    let text = request.field("Body");
    assert!(text.ends_with(" für user0 🔑"), "{text}");
}

#[tokio::test]
async fn every_failure_of_twilio_has_a_clear_answer_and_the_next_message_arrives() {
    let provider = twilio().await;
    let elsewhere = Provider::webhook().await;
    let twilio_error =
        |code: u32| format!(r#"{{"code":{code},"message":"no: {NUMBER}","status":400}}"#);
    let status = |status, body: String| Trouble::Status(status, body);
    let cases = [
        (status(400, twilio_error(21211)), "refused", "the provider refused it."),
        (
            status(401, twilio_error(20003)),
            "misconfigured",
            "the provider is not configured correctly.",
        ),
        (
            status(429, twilio_error(20429)),
            "deferred",
            "the provider cannot take it at the moment.",
        ),
        (
            status(500, twilio_error(20500)),
            "deferred",
            "the provider cannot take it at the moment.",
        ),
        (status(503, String::new()), "deferred", "the provider cannot take it at the moment."),
        (status(200, format!("<p>Welcome, {NUMBER}")), "broken-off", "the provider broke off."),
        (Trouble::Oversized, "broken-off", "the provider broke off."),
        (Trouble::BreakOff, "broken-off", "the provider broke off."),
        (Trouble::Redirect(elsewhere.url().to_owned()), "refused", "the provider refused it."),
    ];
    let (sidecar, _folder) = sidecar(&provider, 2 * cases.len(), &[]).await;
    for (number, (trouble, outcome, reason)) in cases.into_iter().enumerate() {
        provider.set(Some(trouble.clone()));
        let reply = sidecar.api().generate(&format!("user{number}")).await;
        assert_eq!(reply.status, 502, "{trouble:?}: {}", reply.body);
        assert_eq!(
            reply.json()["detail"],
            format!("The OTP could not be delivered: {reason}"),
            "{trouble:?}"
        );
        let metrics = sidecar.admin().get("/metrics").await.body;
        let counted = format!(r#"twofactor_deliveries_total{{channel="sms",outcome="{outcome}"}}"#);
        assert!(metrics.contains(&counted), "{trouble:?}: {metrics}");
        assert_eq!(
            provider.received().len(),
            2 * number + 1,
            "{trouble:?}: what may have been sent is not sent twice"
        );
        provider.set(None);
        assert_eq!(
            sidecar.api().generate(&format!("user{}", 17 - number)).await.status,
            200,
            "{trouble:?}"
        );
    }
    assert!(elsewhere.received().is_empty(), "a redirect was followed");
    assert!(sidecar.process().output().contains("Twilio's error 21211"));
    assert_silent(&sidecar);
}

#[tokio::test]
async fn a_twilio_that_hangs_is_a_refused_delivery_in_bounded_time() {
    let provider = twilio().await;
    let (sidecar, _folder) = sidecar(&provider, 2, &[]).await;
    provider.set(Some(Trouble::Hang));
    let reply = tokio::time::timeout(Duration::from_secs(12), sidecar.api().generate("user0"))
        .await
        .unwrap();
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert_eq!(
        reply.json()["detail"],
        "The OTP could not be delivered: the provider did not answer in time."
    );
    provider.set(None);
    assert_eq!(sidecar.api().generate("user1").await.status, 200);
    assert_silent(&sidecar);
}

#[tokio::test]
async fn no_code_is_sent_to_an_unavailable_or_untrusted_twilio() {
    let (provider, untrusted) = (twilio().await, twilio().await);
    let untrusted_ca = untrusted.ca_path().to_str().unwrap().to_owned();
    let (mistrusting, _folder) = sidecar(&provider, 1, &[("TWILIO_CA_FILE", &untrusted_ca)]).await;
    let reply = mistrusting.api().generate("user0").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert_eq!(
        reply.json()["detail"],
        "The OTP could not be delivered: there is no trusted connection to the provider."
    );
    assert!(provider.received().is_empty());

    let address = format!("https://localhost:{}", twofactor_tests::ports::free_port());
    let (alone, _folder) = sidecar(&provider, 1, &[("TWILIO_API_URL", &address)]).await;
    let reply = alone.api().generate("user0").await;
    assert_eq!(
        reply.json()["detail"],
        "The OTP could not be delivered: the provider could not be reached."
    );
}

#[tokio::test]
async fn a_published_twilio_account_is_used_and_a_correction_needs_no_restart() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let provider = twilio().await;
    let realm = |token: &str| {
        let twilio = TwilioSettings {
            api: Endpoint {
                url: SecretText::new(provider.url().to_owned()),
                ca_certificates: Some(fs::read_to_string(provider.ca_path()).unwrap()),
                proxy: None,
            },
            account_sid: ACCOUNT.to_owned(),
            api_key: None,
            auth_token: SecretText::new(token.to_owned()),
            sender: TwilioSender::PhoneNumber(
                PhoneNumber::try_from("+15005550006".to_owned()).unwrap(),
            ),
        };
        let providers = Providers { twilio: Some(twilio), ..Providers::default() };
        RealmRecord { providers, ..RealmRecord::default() }
    };
    // Each user requests one code.
    let mut people = Vec::new();
    for number in 0..200 {
        let mut with_phone = record(&format!("user{number}"), DeliveryMethod::Sms);
        with_phone.definition.phone_number = Some(NUMBER.to_owned().try_into().unwrap());
        people.push(world.publish(with_phone, true).await);
    }
    let people: Vec<_> = people.iter().collect();
    world.fill_with(&realm("wrong"), &people).await;
    let sidecar = Served::start(&world, "kms").await;
    let reply = sidecar.api().generate("user0").await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    world.fill_with(&realm(TOKEN), &people).await;
    let asking = std::cell::Cell::new(0);
    let user = eventually(BOUND, "the token to be taken over", async || {
        asking.set(asking.get() + 1);
        let user = format!("user{}", asking.get());
        let reply = sidecar.api().generate(&user).await;
        if reply.status == 200 { Ok(user) } else { Err(reply.body) }
    })
    .await;
    let text = provider.received().last().unwrap().field("Body");
    assert!(text.ends_with("Asked for by kms."), "{text}");
    assert_eq!(sidecar.api().verify(&user, &code_in(&text)).await.status, 200);
    assert_silent(&sidecar);
}
