//! Tests realms: allowed namespaces, delivery settings, and the logins in Redis.

use std::time::{Duration, Instant};

use data_encoding::BASE64;
use redis::AsyncCommands;
use serde_json::Value;
use twofactor_tests::mail::MailServer;
use twofactor_tests::process::Launch;
use twofactor_tests::provider::Provider;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::tools;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user, code_of, user};

/// Promised time until a withdrawal takes effect.
const WITHDRAWN: Duration = Duration::from_secs(2);

fn realm(spec: &str) -> String {
    realm_named("default", spec)
}

fn realm_named(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata:\n  name: {name}\nspec:\n  {spec}\n---\n"
    )
}

fn allowing(namespace: &str) -> String {
    realm(&format!("allowedNamespaces: {{names: [{namespace}]}}"))
}

async fn wait_condition(cluster: &Cluster, kind: &str, status: &str, reason: &str) -> String {
    // Secrets with providers are read every 30 seconds.
    let bound = BOUND + Duration::from_secs(30);
    eventually(bound, format_args!("{kind} to be {status}, {reason}"), async || {
        match cluster.condition_of("tfr", "default", kind) {
            Some((found, why, message)) if found == status && why == reason => Ok(message),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// The Redis users other than the administrator's.
async fn logins(redis: &RedisServer) -> Vec<String> {
    let users: Vec<String> =
        redis::cmd("ACL").arg("USERS").query_async(&mut redis.connect().await).await.unwrap();
    users.into_iter().filter(|name| name != "default").collect()
}

/// A sidecar in another, allowed namespace of a realm with the user carol.
async fn allowed_sidecar(cluster: &Cluster) -> Sidecar {
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar_in(&kms).await;
    // The record that allows the namespace is published shortly after its credentials.
    eventually(BOUND, "the namespace to be allowed", async || {
        sidecar.api.verify("unknown", "000000").await.status == 404
    })
    .await;
    sidecar
}

#[tokio::test]
async fn a_namespace_allowed_by_name_verifies_until_the_realm_withdraws_it() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    cluster.wait_ready("carol").await;
    cluster.ask_from(&cluster.namespace);
    let (sidecar, seed) = (cluster.sidecar_in(&kms).await, cluster.seed("carol"));
    let (url, code) = (cluster.credentials_in(&kms, "redis-url").unwrap(), code_of(&seed));
    // The record that allows the namespace is published shortly after its credentials.
    eventually(BOUND, "the namespace to be allowed", async || {
        let reply = sidecar.api.verify("carol", &code).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 400);
    assert_eq!(logins(&cluster.redis).await.len(), 2);

    cluster.apply(&realm("issuer: Another"));
    let began = Instant::now();
    eventually(BOUND, "the withdrawal", async || {
        let reply = sidecar.api.verify("carol", &code).await;
        if reply.status == 503 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    assert!(began.elapsed() < WITHDRAWN, "{:?}", began.elapsed());
    eventually(BOUND, "the credentials to be removed", async || {
        cluster.credentials_in(&kms, "caller").is_none()
    })
    .await;
    assert!(!logins(&cluster.redis).await.iter().any(|name| url.contains(&encoded(name))));

    // A namespace that is allowed again gets other credentials.
    cluster.apply(&allowing(&kms));
    let sidecar = cluster.sidecar_in(&kms).await;
    sidecar.wait_accepted("carol", &seed).await;
    assert_ne!(cluster.credentials_in(&kms, "redis-url").unwrap(), url);
}

/// The name of a login as a URL has it.
fn encoded(name: &str) -> String {
    name.replace(':', "%3A")
}

#[tokio::test]
async fn an_allowed_namespace_gets_its_own_credentials_and_the_realm_counts_it() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    cluster.wait_ready("carol").await;
    cluster.ask_from(&kms);
    cluster.ask_from(&cluster.namespace);
    // The credentials belong to that service, and contain none of the operator's.
    let in_namespace = async |namespace: &str| {
        eventually(BOUND, format_args!("credentials in {namespace}"), async || {
            cluster.credentials_in(namespace, "redis-url")
        })
        .await
    };
    let url = in_namespace(&kms).await;
    assert_ne!(url, cluster.redis.url());
    assert_ne!(url, in_namespace(&cluster.namespace).await);
    assert_eq!(cluster.credentials_in(&kms, "caller").unwrap(), kms);
    assert_eq!(logins(&cluster.redis).await.len(), 2);

    wait_condition(&cluster, "Ready", "True", "Ready").await;
    wait_condition(&cluster, "Isolated", "True", "AclApplied").await;
    let status = eventually(BOUND, "the counts", async || {
        let status = cluster.get("tfr", "default")?["status"].clone();
        (status["usersReady"] == 1).then_some(status)
    })
    .await;
    assert_eq!((&status["namespacesServed"], &status["users"]), (&Value::from(2), &Value::from(1)));
    assert_eq!(status["namespaces"], serde_json::json!([kms, cluster.namespace]));
    let table = cluster.kubectl(&["get", "tfr"]);
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "READY", "NAMESPACES", "USERS", "OUTDATED", "AGE"], "{table}");
    assert_eq!(lines[1][..5], ["default", "True", "2", "1", "0"], "{table}");
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_namespace_is_allowed_while_its_label_matches() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    let label = format!("team={}", cluster.namespace);
    cluster.apply(
        &[
            app_user("carol"),
            realm(&format!(
                "allowedNamespaces: {{selector: {{matchExpressions: [{{key: team, operator: In, values: [{}]}}]}}}}",
                cluster.namespace
            )),
        ]
        .concat(),
    );
    let message =
        wait_condition(&cluster, "NamespacesMatched", "False", "SelectorMatchesNothing").await;
    assert!(message.contains("matches no namespace"), "{message}");
    wait_condition(&cluster, "Ready", "True", "Ready").await;
    cluster.ask_from(&kms);
    assert!(cluster.credentials_in(&kms, "caller").is_none());

    let _ = cluster.server.kubectl(&["label", "namespace", &kms, &label]);
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar_in(&kms).await;
    assert_eq!(sidecar.verify_seed("carol", &cluster.seed("carol")).await.status, 200);
    wait_condition(&cluster, "NamespacesMatched", "True", "Matched").await;

    let _ = cluster.server.kubectl(&["label", "namespace", &kms, "team-"]);
    let began = Instant::now();
    eventually(BOUND, "the withdrawal", async || {
        sidecar.api.verify("carol", "000000").await.status == 503
    })
    .await;
    assert!(began.elapsed() < WITHDRAWN, "{:?}", began.elapsed());
    eventually(BOUND, "the credentials to go", async || {
        cluster.credentials_in(&kms, "caller").is_none()
    })
    .await;
}

#[tokio::test]
async fn a_namespace_created_later_is_allowed_and_a_deleted_one_leaves_no_login() {
    let cluster = Cluster::on_own_server(&["namespace", "garbagecollector"]).await;
    let _operator = cluster.operator().start().await;
    let kms = format!("kms-{}", cluster.namespace);
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    let message = wait_condition(&cluster, "NamespacesMatched", "False", "NamespaceNotFound").await;
    assert!(message.contains(&kms), "{message}");
    cluster.another_namespace("kms");
    cluster.wait_ready("carol").await;
    cluster.ask_from(&cluster.namespace);
    let sidecar = cluster.sidecar_in(&kms).await;
    assert_eq!(sidecar.verify_seed("carol", &cluster.seed("carol")).await.status, 200);
    cluster.stop_asking_from(&kms);
    let _ = cluster.server.kubectl(&["delete", "namespace", &kms]);
    eventually(BOUND, "the login to go", async || logins(&cluster.redis).await.len() == 1).await;
    // When the namespace of a realm is deleted, all its objects in other namespaces are deleted
    // too.
    let other = cluster.another_namespace("other");
    cluster.apply(&allowing(&other));
    cluster.ask_from(&other);
    eventually(BOUND, "the credentials", async || cluster.credentials_in(&other, "caller")).await;
    cluster.stop_asking_from(&cluster.namespace);
    let _ = cluster.server.kubectl(&["delete", "namespace", &cluster.namespace]);
    eventually(BOUND, "the credentials to go", async || {
        cluster.credentials_in(&other, "caller").is_none()
    })
    .await;
    eventually(BOUND, "the logins to go", async || logins(&cluster.redis).await.is_empty()).await;
}

#[tokio::test]
async fn services_have_access_again_after_a_restart_of_redis() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let sidecar = allowed_sidecar(&cluster).await;
    cluster.redis.restart().await;
    let began = Instant::now();
    eventually(BOUND, "the sidecar to have access again", async || {
        let reply = sidecar.api.verify("unknown", "000000").await;
        if reply.status == 404 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(logins(&cluster.redis).await.len(), 1);
}

#[tokio::test]
async fn a_services_login_reads_no_other_realm_and_writes_no_record() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    cluster.wait_ready("carol").await;
    cluster.ask_from(&kms);
    let url =
        eventually(BOUND, "the credentials", async || cluster.credentials_in(&kms, "redis-url"))
            .await;
    let mut service =
        redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut admin = cluster.redis.connect().await;
    let keys: Vec<String> = admin.keys("*").await.unwrap();
    let record = keys.iter().find(|key| key.ends_with(":rec")).unwrap();
    assert!(service.get::<_, Vec<u8>>(record).await.is_ok());
    let refused = |error: redis::RedisError| error.to_string().to_uppercase().contains("NOPERM");
    assert!(refused(service.set::<_, _, ()>(record, "forged").await.unwrap_err()));
    // The key of a realm with another UID.
    let uid = cluster.credentials_in(&kms, "realm").unwrap();
    let theirs = record.replace(&uid, "00000000-0000-0000-0000-000000000000");
    admin.set::<_, _, ()>(&theirs, "sealed").await.unwrap();
    assert!(refused(service.get::<_, Vec<u8>>(&theirs).await.unwrap_err()));
    assert!(refused(service.keys::<_, Vec<String>>("*").await.unwrap_err()));
}

#[tokio::test]
async fn the_realm_reports_invalid_providers_and_uses_them_once_they_are_valid() {
    let cluster = Cluster::start().await;
    let _operator = cluster
        .operator()
        .env("SMTP_SERVER", "nowhere.invalid")
        .env("SMTP_FROM_EMAIL", "operator@example.org")
        .start()
        .await;
    let mail = MailServer::start().await;
    let spec =
        "issuer: Realm\n  otpExpirationMinutes: 2\n  delivery: {secretRef: {name: providers}}";
    cluster.apply(&[user("alice", "email: alice@example.org"), realm(spec)].concat());
    let message = wait_condition(&cluster, "DeliveryReady", "False", "SecretNotFound").await;
    assert!(message.contains("providers"), "{message}");
    wait_condition(&cluster, "Ready", "False", "SecretNotFound").await;
    // Users are still verified; only sending fails.
    cluster.wait_ready("alice").await;
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.api.generate("alice").await.status, 400);

    let secret = |data: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: providers}}\nstringData:\n  SMTP_SERVER: localhost\n{data}"
        )
    };
    let port = mail.port();
    cluster.apply(&secret(&format!("  SMTP_PORT: \"{port}\"\n  SMTP_SECURITY: plain\n")));
    // A change of the realm makes the operator read the Secret at once instead of after 30 seconds.
    cluster.apply(&realm(&spec.replace("otpExpirationMinutes: 2", "otpExpirationMinutes: 3")));
    let message = wait_condition(&cluster, "DeliveryReady", "False", "SecretKeyMissing").await;
    assert!(message.contains("SMTP_FROM_EMAIL"), "{message}");
    cluster.apply(&secret(&format!(
        "  SMTP_PORT: \"{port}\"\n  SMTP_SECURITY: plain\n  SMTP_FROM_EMAIL: realm@example.org\n"
    )));
    wait_condition(&cluster, "DeliveryReady", "True", "Available").await;
    wait_condition(&cluster, "Ready", "True", "Ready").await;
    eventually(BOUND, "a code to be sent", async || {
        let reply = sidecar.api.generate("alice").await;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    let message = mail.wait_for_message("alice@example.org", BOUND).await;
    assert_eq!(message.from, "realm@example.org");
    // Without providers of its own, the realm uses the operator's.
    cluster.apply(&realm("issuer: Realm"));
    wait_condition(&cluster, "DeliveryReady", "True", "OperatorDefaults").await;
    let events = cluster.kubectl(&["get", "events", "-o", "json"]);
    for reason in ["SecretNotFound", "SecretKeyMissing", "Available"] {
        assert!(events.contains(reason), "{reason}: {events}");
    }
}

#[tokio::test]
async fn users_read_messages_in_their_language_or_in_that_of_the_realm() {
    let cluster = Cluster::start().await;
    let mail = MailServer::start().await;
    let _operator = cluster
        .operator()
        .env("SMTP_SERVER", "localhost")
        .env("SMTP_PORT", &mail.port().to_string())
        .env("SMTP_SECURITY", "plain")
        .env("SMTP_FROM_EMAIL", "operator@example.org")
        .start()
        .await;
    let example = include_str!("../../../../examples/german.yaml");
    let realm = example.split("\n---\n").next().unwrap().replace("  namespace: people\n", "");
    let people =
        [("heidi", "de-CH"), ("hans", "DE"), ("anna", "fr"), ("bob", "")].map(|(name, locale)| {
            let locale =
                if locale.is_empty() { String::new() } else { format!("\n  locale: {locale}") };
            user(name, &format!("email: {name}@example.org{locale}"))
        });
    cluster.apply(&format!("{realm}\n---\n{}", people.concat()));
    wait_condition(&cluster, "Ready", "True", "Ready").await;
    let sidecar = cluster.sidecar().await;
    let service = &cluster.namespace;
    for (name, subject, text) in [
        ("heidi", "Ihr Code für", "Guten Tag heidi,"),
        ("hans", "Ihr Code für", "Guten Tag hans,"),
        ("anna", "your code for", "Your code for"),
        ("bob", "your code for", "Your code for"),
    ] {
        cluster.wait_ready(name).await;
        eventually(BOUND, format_args!("a code for {name}"), async || {
            let reply = sidecar.api.generate(name).await;
            if reply.status == 200 { Ok(()) } else { Err(reply.body) }
        })
        .await;
        let message = mail.wait_for_message(&format!("{name}@example.org"), BOUND).await;
        assert_eq!(message.subject(), format!("FountainAI: {subject} {service}"));
        assert!(message.text.starts_with(text), "{name}: {}", message.text);
    }
    // The operator's texts do not count if the realm has its own, and its languages stay beside
    // them.
    cluster.apply(&self::realm(
        "message: {subject: Own, languages: {de: {text: \"{{code}} und {{context}}\"}}}\n  \
         limits: {generateIntervalSeconds: 0, generatesPerHour: 0}",
    ));
    cluster.apply(&user("otto", "email: otto@example.org\n  locale: de"));
    cluster.wait_ready("otto").await;
    let message = eventually(BOUND, "the changed message", async || {
        let _ = sidecar.api.generate("otto").await;
        mail.messages()
            .await
            .into_iter()
            .find(|mail| mail.to == ["otto@example.org"] && mail.subject() == "Own")
            .ok_or("no such mail yet")
    })
    .await;
    assert!(message.text.contains(" und "), "{}", message.text);
}

#[tokio::test]
async fn a_realm_has_the_operators_default_limits_until_it_sets_its_own() {
    let cluster = Cluster::start().await;
    let mail = MailServer::start().await;
    let _operator = cluster
        .operator()
        .env("SMTP_SERVER", "localhost")
        .env("SMTP_PORT", &mail.port().to_string())
        .env("SMTP_SECURITY", "plain")
        .env("SMTP_FROM_EMAIL", "operator@example.org")
        .start()
        .await;
    cluster.apply(&[user("alice", "email: alice@example.org"), realm("issuer: Realm")].concat());
    cluster.wait_ready("alice").await;
    let sidecar = cluster.sidecar().await;
    let code = async |what: &str| {
        eventually(BOUND, what, async || {
            let reply = sidecar.api.generate("alice").await;
            if reply.status == 200 { Ok(()) } else { Err(reply.body) }
        })
        .await;
    };
    code("a first code").await;
    assert_eq!(sidecar.api.generate("alice").await.status, 429);
    cluster.apply(&realm("limits: {generateIntervalSeconds: 0}"));
    code("a second code").await;
}

#[tokio::test]
async fn a_realms_issuer_is_written_to_the_secrets_of_its_users() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&[realm("issuer: Realm"), app_user("alice")].concat());
    cluster.wait_ready("alice").await;
    for issuer in ["Realm", "Other"] {
        cluster.apply(&realm(&format!("issuer: {issuer}")));
        eventually(BOUND, format_args!("the issuer {issuer} in the Secret"), async || {
            let uri = text(cluster.secret("alice-totp", "otpauth-uri").unwrap());
            if uri.starts_with(&format!("otpauth://totp/{issuer}:alice?")) {
                Ok(())
            } else {
                Err(uri)
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_realm_has_its_own_sms_and_webhook_providers_and_texts() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let account = "AC0123456789abcdef0123456789abcdef";
    let (twilio, webhook) = (Provider::twilio(account, "token").await, Provider::webhook().await);
    // A newline at the end of a file is no part of a value.
    let encoded = |value: &str| BASE64.encode(format!("{value}\n").as_bytes());
    let certificates = |provider: &Provider| std::fs::read_to_string(provider.ca_path()).unwrap();
    let secret = |webhook_secret: &str, more: &[(&str, &str)]| {
        let providers = [
            ("TWILIO_ACCOUNT_SID", account),
            ("TWILIO_AUTH_TOKEN", "token"),
            ("TWILIO_PHONE_NUMBER", "+15005550006"),
            ("TWILIO_API_URL", twilio.url()),
            ("TWILIO_CA", &certificates(&twilio)),
            ("WEBHOOK_URL", webhook.url()),
            ("WEBHOOK_SECRET", webhook_secret),
            ("WEBHOOK_CA", &certificates(&webhook)),
        ];
        let lines = providers.iter().chain(more);
        let data = lines.map(|(key, value)| format!("  {key}: {}\n", encoded(value)));
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: providers}}\ndata:\n{}---\n",
            data.collect::<String>()
        )
    };
    let spec = "delivery: {secretRef: {name: providers}}\n  message: {text: \"{{code}} for {{service}}\", sms: \"{{code}}!\"}";
    let users = [
        user("alice", "deliveryMethod: sms\n  phoneNumber: \"+4930123456\""),
        user("bob", "deliveryMethod: webhook"),
    ];
    let mail =
        [("SMTP_SERVER", "a.secret.example.org:587"), ("SMTP_FROM_EMAIL", "otp@example.org")];
    cluster.apply(&[secret("a-wrong-secret", &mail), realm(spec), users.concat()].concat());
    let message = wait_condition(&cluster, "EmailReady", "False", "SecretKeyInvalid").await;
    assert!(
        message.contains("SMTP_SERVER of the Secret providers must be a host name")
            && message.contains("that belongs in SMTP_PORT")
            && !message.contains("a.secret"),
        "{message}"
    );
    let message = wait_condition(&cluster, "WebhookReady", "False", "SecretKeyInvalid").await;
    assert!(message.contains("WEBHOOK_SECRET") && !message.contains("a-wrong-secret"), "{message}");
    wait_condition(&cluster, "SmsReady", "True", "Available").await;
    wait_condition(&cluster, "DeliveryReady", "False", "SecretKeyInvalid").await;
    for name in ["alice", "bob"] {
        cluster.wait_ready(name).await;
    }
    let sidecar = cluster.sidecar().await;
    let reply = sidecar.api.generate("alice").await;
    assert_eq!(reply.status, 200, "one that is wrong does not stop the others: {}", reply.body);
    let text = twilio.wait_for_request(0, BOUND).await.field("Body");
    let code = text.strip_suffix('!').expect("the realm's words");
    assert_eq!(sidecar.api.verify("alice", code).await.status, 200);
    assert_eq!(sidecar.api.generate("bob").await.status, 400);

    cluster.apply(&secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &[]));
    cluster.apply(&realm(&format!("otpExpirationMinutes: 3\n  {spec}")));
    let message = wait_condition(&cluster, "DeliveryReady", "True", "Available").await;
    assert!(message.contains("sms, webhook"), "{message}");
    eventually(BOUND, "a code to be sent", async || {
        let reply = sidecar.api.generate("bob").await;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    let event: Value =
        serde_json::from_str(&webhook.wait_for_request(0, BOUND).await.body).unwrap();
    let text = event["data"]["text"].as_str().unwrap();
    assert!(text.ends_with(&format!(" for {}", cluster.namespace)), "{text}");
}

#[tokio::test]
async fn the_api_server_refuses_an_invalid_realm() {
    let cluster = Cluster::start().await;
    let expressions =
        |text: &str| format!("allowedNamespaces: {{selector: {{matchExpressions: [{text}]}}}}");
    for (manifest, sentence) in [
        (realm_named("other", "issuer: A"), "must be default"),
        (
            realm("allowedNamespaces: {selector: {}}"),
            "an empty selector would allow every namespace",
        ),
        (realm("allowedNamespaces: {selector: {matchLabels: {}}}"), "an empty selector"),
        (realm(&expressions("{key: a, operator: In}")), "must be set for In and NotIn"),
        (
            realm(&expressions("{key: a, operator: Exists, values: [b]}")),
            "must be set for In and NotIn",
        ),
        (realm(&expressions("{key: a, operator: Equals, values: [b]}")), "operator"),
        (realm(&expressions("{key: /a, operator: Exists}")), "key"),
        (
            realm("allowedNamespaces: {selector: {matchLabels: {\"a b\": c}}}"),
            "is not the key of a label",
        ),
        (realm("allowedNamespaces: {names: [Kms]}"), "names"),
        (realm("otpExpirationMinutes: 0"), "otpExpirationMinutes"),
        (realm("otpExpirationMinutes: 11"), "otpExpirationMinutes"),
        (realm("issuer: \"a:b\""), "issuer"),
        (realm("limits: {generateIntervalSeconds: 3601}"), "generateIntervalSeconds"),
        (realm("limits: {generatesPerHour: 101}"), "generatesPerHour"),
        (realm("limits: {deliveriesPerHour: -1}"), "deliveriesPerHour"),
        (realm("audit: {retentionDays: 0}"), "retentionDays"),
        (realm("audit: {origin: maybe}"), "origin"),
        (realm("delivery: {}"), "secretRef"),
        (realm("message: {text: no code}"), "must contain {{code}}"),
        (realm("message: {languages: {de: {text: no code}}}"), "must contain {{code}}"),
        (realm("message: {languages: {de: {sms: \"{{code}} {{wer}}\"}}}"), "unknown placeholder"),
        (realm("message: {languages: {de_DE: {}}}"), "is not a language tag"),
        (realm("message: {languages: {de: {}, DE: {}}}"), "each language once"),
        (
            realm(
                "message: {languages: {aa: {}, bb: {}, cc: {}, dd: {}, ee: {}, ff: {}, gg: {}, hh: {}, ii: {}}}",
            ),
            "languages",
        ),
        (realm("message: {subject: \"a\\nb\"}"), "must be one line"),
        (
            realm("message: {html: \"{{code}} {{password}}\"}"),
            "has {{ without }}, or an unknown placeholder",
        ),
        (realm(&format!("message: {{sms: \"{{{{code}}}}{}\"}}", "x".repeat(1000))), "sms"),
        (realm("allowedNamespace: {names: [kms]}"), "allowedNamespace"),
    ] {
        let error = cluster.try_apply(&manifest, &["--dry-run=server"]).expect_err(&manifest);
        assert!(error.contains(sentence), "{manifest}: {error}");
    }
    let good = "issuer: A\n  otpExpirationMinutes: 10\n  limits: {generatesPerHour: 0}\n  audit: {retentionDays: 365, origin: false}\n  allowedNamespaces: {names: [kms], selector: {matchLabels: {a/b: c}}}";
    let answer = cluster.try_apply(&realm(good), &["--dry-run=server"]);
    assert!(answer.is_ok(), "{answer:?}");
}

#[tokio::test]
async fn the_operator_reports_a_realm_of_another_name_that_an_older_crd_accepts() {
    let cluster = Cluster::on_own_server(&[]).await;
    let _ = cluster.server.kubectl(&[
        "patch",
        "crd",
        "twofactorrealms.twofactor.fountainai.io",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/x-kubernetes-validations"}]"#,
    ]);
    let _operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    let manifest = realm_named("other", &format!("allowedNamespaces: {{names: [{kms}]}}"));
    eventually(BOUND, "the patched CRD to hold", async || {
        cluster.try_apply(&manifest, &[]).map(drop)
    })
    .await;
    cluster.apply(&app_user("carol"));
    cluster.ask_from(&kms);
    cluster.wait_ready("carol").await;
    let condition = eventually(BOUND, "the condition of the realm", async || {
        cluster.condition_of("tfr", "other", "Ready")
    })
    .await;
    assert_eq!((condition.0.as_str(), condition.1.as_str()), ("False", "NameNotDefault"));
    assert!(cluster.credentials_in(&kms, "caller").is_none());
}

#[tokio::test]
async fn the_operator_removes_its_own_leftovers_and_no_objects_of_others() {
    let cluster = Cluster::start().await;
    let installation = {
        let uid = cluster.server.kubectl(&[
            "get",
            "namespace",
            "kube-system",
            "-o",
            "jsonpath={.metadata.uid}",
        ]);
        uid.trim().to_owned()
    };
    let mut connection = cluster.redis.connect().await;
    let orphan =
        format!("2fa1:{installation}:00000000-0000-0000-0000-000000000000:{}", "ab".repeat(16));
    let others =
        [format!("2fa1:another-installation:realm:{}", "ab".repeat(16)), "another".to_owned()];
    for name in others.iter().chain([&orphan]) {
        redis::cmd("ACL").arg("SETUSER").arg(name).exec_async(&mut connection).await.unwrap();
    }
    let (kms, foreign) = (cluster.another_namespace("kms"), cluster.another_namespace("foreign"));
    let name = format!("twofactor-{}", cluster.namespace);
    let leftover = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, labels: {{{labels}}}}}\nstringData: {{caller: x}}\n"
        )
    };
    let ours = format!(
        "app.kubernetes.io/managed-by: twofactor-operator, twofactor.fountainai.io/credentials: {}",
        cluster.namespace
    );
    for (namespace, labels) in [(&kms, ours.as_str()), (&foreign, "owner: another")] {
        let folder = twofactor_tests::scratch::folder("leftover");
        let path = folder.path().join("secret.yaml");
        std::fs::write(&path, leftover(labels)).unwrap();
        let _ = cluster.server.kubectl(&[
            "apply",
            "--namespace",
            namespace,
            "-f",
            path.to_str().unwrap(),
        ]);
    }
    cluster.apply(&[app_user("carol"), allowing(&foreign)].concat());
    cluster.ask_from(&foreign);
    let operator = cluster.operator().start().await;
    eventually(BOUND, "the leftover to go", async || {
        cluster.credentials_in(&kms, "caller").is_none()
    })
    .await;
    eventually(BOUND, "the orphaned login to be removed", async || {
        !logins(&cluster.redis).await.contains(&orphan)
    })
    .await;
    let left = logins(&cluster.redis).await;
    assert!(others.iter().all(|name| left.contains(name)), "{left:?}");

    let message = wait_condition(&cluster, "CredentialsReady", "False", "SecretNotOurs").await;
    assert!(message.contains(&foreign), "{message}");
    assert_eq!(cluster.credentials_in(&foreign, "caller").unwrap(), "x");
    assert!(cluster.credentials_in(&foreign, "realm-key").is_none());
    assert!(operator.process().output().contains("not ours"));
    let _ = cluster.server.kubectl(&["--namespace", &foreign, "delete", "secret", &name]);
    wait_condition(&cluster, "CredentialsReady", "True", "Written").await;
    assert_eq!(cluster.credentials_in(&foreign, "caller").unwrap(), foreign);
}

/// A Redis that does not allow the operator to create users.
async fn redis_without_acl() -> RedisServer {
    let arguments = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-acl"];
    // A login as docs/operations/redis.md describes it.
    let services = include_str!("../../../../docs/operations/redis.md");
    let services = services.split("```acl\nuser ").nth(1).unwrap().split("\n```").next().unwrap();
    let services = services.split_whitespace().collect::<Vec<_>>();
    RedisServer::builder().args(arguments).args(["--user"]).args(services).start().await
}

#[tokio::test]
async fn services_get_no_login_where_redis_forbids_acl_and_the_realm_says_what_to_do() {
    let cluster = Cluster::with_redis(redis_without_acl().await).await;
    let operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    wait_condition(&cluster, "Isolated", "False", "AclNotPermitted").await;
    let message = wait_condition(&cluster, "CredentialsReady", "False", "NoLogin").await;
    assert!(message.contains("--allow-shared-login"), "{message}");
    wait_condition(&cluster, "Ready", "False", "NoLogin").await;
    cluster.wait_ready("carol").await;
    for namespace in [&kms, &cluster.namespace] {
        assert!(cluster.credentials_in(namespace, "redis-url").is_none());
    }
    assert!(operator.process().output().contains("services get no login"));
    drop(operator);

    // An administrator creates one login for all services, which may do what services need.
    let port = cluster.redis.port();
    let url = format!("redis://twofactor-sidecars:change-me@127.0.0.1:{port}/0");
    let operator = cluster.operator().env("TWOFACTOR_SIDECAR_REDIS_URL", &url).start().await;
    wait_condition(&cluster, "CredentialsReady", "True", "Written").await;
    wait_condition(&cluster, "Isolated", "False", "AclNotPermitted").await;
    let sidecar = cluster.sidecar_in(&kms).await;
    assert_eq!(cluster.credentials_in(&kms, "redis-url").unwrap(), url);
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;
    let mut service =
        redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    for words in [["FLUSHALL"].as_slice(), &["EVAL", "return 1", "0"], &["KEYS", "*"]] {
        let refused = redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut service).await;
        assert!(refused.unwrap_err().to_string().to_uppercase().contains("NOPERM"), "{words:?}");
    }
    drop(operator);
}

#[tokio::test]
async fn services_share_the_operators_login_if_an_administrator_allows_it_and_the_realm_says_so() {
    let cluster = Cluster::with_redis(redis_without_acl().await).await;
    let operator = cluster.operator().args(["--allow-shared-login"]).start().await;
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    cluster.wait_ready("carol").await;
    wait_condition(&cluster, "Isolated", "False", "AclNotPermitted").await;
    wait_condition(&cluster, "Ready", "True", "Ready").await;
    cluster.ask_from(&kms);
    eventually(BOUND, "the operator's URL", async || {
        cluster.credentials_in(&kms, "redis-url").is_some_and(|url| url == cluster.redis.url())
    })
    .await;
    let sidecar = cluster.sidecar_in(&kms).await;
    assert_eq!(sidecar.verify_seed("carol", &cluster.seed("carol")).await.status, 200);
    assert!(operator.process().output().contains("may not use ACL"));
}

#[tokio::test]
async fn the_operator_loads_again_the_scripts_that_an_administrator_has_flushed() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let sidecar = allowed_sidecar(&cluster).await;
    let mut administrator = cluster.redis.connect().await;
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut administrator).await.unwrap();
    let seed = cluster.seed("carol");
    let reply = sidecar.verify_seed("carol", &seed).await;
    assert!([200, 503].contains(&reply.status), "{}", reply.body);
    eventually(BOUND, "the scripts to be there again", async || {
        // The moment of the first code may be over.
        let reply = sidecar.verify_seed("carol", &seed).await;
        if [200, 400].contains(&reply.status) { Ok(()) } else { Err(reply.body) }
    })
    .await;
    // Those of the previous release too, whose sidecars may run beside these.
    let mut exist = redis::cmd("SCRIPT");
    exist.arg("EXISTS");
    for script in twofactor_store::redis::scripts::of_sidecars() {
        exist.arg(script.hash());
    }
    let known: Vec<bool> = exist.query_async(&mut administrator).await.unwrap();
    assert_eq!(known, [true; 8]);
    // The sidecar has not loaded one: the operator has, and its login is the default one.
    let log = redis::cmd("ACL").arg("LOG").query_async::<redis::Value>(&mut administrator).await;
    assert!(!format!("{log:?}").contains("script"), "{log:?}");
}

#[tokio::test]
async fn the_operator_reports_pods_without_a_sidecar_and_pods_that_wait() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), realm("issuer: A")].concat());
    let pod = |name: &str, label: &str, injected: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{twofactor.fountainai.io/inject: \"{label}\"}}\n  \
             annotations: {{twofactor.fountainai.io/realm: {}{injected}}}\nspec: {{containers: [{{name: app, image: app}}]}}\n---\n",
            cluster.namespace
        )
    };
    let injected = ", twofactor.fountainai.io/injected: \"0.0.1\"";
    let manifest =
        [pod("bare", "true", ""), pod("waiting", "true", injected), pod("unasked", "false", "")]
            .concat();
    let folder = twofactor_tests::scratch::folder("pods");
    let path = folder.path().join("pods.yaml");
    std::fs::write(&path, manifest).unwrap();
    let _ = cluster.server.kubectl(&["apply", "--namespace", &kms, "-f", path.to_str().unwrap()]);
    let note = async |pod: &str, reason: &str| {
        eventually(BOUND, format_args!("the event {reason} of {pod}"), async || {
            let text =
                cluster.server.kubectl(&["--namespace", &kms, "get", "events", "-o", "json"]);
            let events: Value = serde_json::from_str(&text).unwrap();
            let found = events["items"].as_array()?.iter().find(|event| {
                event["involvedObject"]["name"] == pod && event["reason"] == reason
            })?;
            Some((found["type"].clone(), found["message"].as_str().unwrap_or_default().to_owned()))
        })
        .await
    };
    let (kind, message) = note("bare", "NotInjected").await;
    assert_eq!(kind, "Warning");
    assert!(message.contains("delete the pod"), "{message}");
    let (kind, message) = note("waiting", "NamespaceNotAllowed").await;
    assert_eq!(kind, "Warning");
    assert!(
        message.contains("TwoFactorRealm default") && message.contains(&cluster.namespace),
        "{message}"
    );
    let metric = async |line: &str| {
        eventually(BOUND, line, async || {
            let metrics = operator.admin().get("/metrics").await.body;
            metrics.lines().any(|found| found == line)
        })
        .await;
    };
    metric("twofactor_pods_not_injected 1").await;
    metric("twofactor_pods_waiting 1").await;
    cluster.apply(&allowing(&kms));
    metric("twofactor_pods_waiting 0").await;
    // Only pods of allowed namespaces have keys of the realm.
    eventually(BOUND, "the outdated sidecar", async || {
        cluster.get("tfr", "default").is_some_and(|realm| realm["status"]["outdatedSidecars"] == 1)
    })
    .await;
    let _ = cluster.server.kubectl(&[
        "--namespace",
        &kms,
        "delete",
        "pod",
        "bare",
        "--grace-period=0",
        "--force",
    ]);
    metric("twofactor_pods_not_injected 0").await;
    assert!(
        !cluster
            .server
            .kubectl(&["--namespace", &kms, "get", "events", "-o", "json"])
            .contains("unasked")
    );
}

#[tokio::test]
async fn the_operator_generates_the_password_of_its_redis_once() {
    let mut cluster = Cluster::start().await;
    let start = async |cluster: &Cluster| {
        cluster
            .operator()
            .args(["--redis-password-secret", "twofactor-redis"])
            .env("REDIS_URL", &format!("redis://127.0.0.1:{}/0", cluster.redis.port()))
            .start()
            .await
    };
    let password = |cluster: &Cluster| {
        let arguments = [
            "--namespace",
            &cluster.home,
            "get",
            "secret",
            "twofactor-redis",
            "-o",
            "jsonpath={.data.password}",
        ];
        let encoded = cluster.server.try_kubectl(&arguments).ok()?;
        Some(text(data_encoding::BASE64.decode(encoded.trim().as_bytes()).unwrap()))
    };
    let operator = start(&cluster).await;
    let first = eventually(BOUND, "a password", async || password(&cluster)).await;
    drop(operator);
    assert!(first.len() >= 32);
    cluster.redis = RedisServer::builder().password(&first).start().await;
    let operator = start(&cluster).await;
    assert_eq!(password(&cluster).as_ref(), Some(&first));
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.verify_seed("carol", &cluster.seed("carol")).await.status, 200);
    assert!(!cluster.credentials_in(&cluster.namespace, "redis-url").unwrap().contains(&first));
    assert!(!operator.process().output().contains(&first));
}

#[tokio::test]
async fn the_operator_restores_the_redis_logins_within_a_minute() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let sidecar = allowed_sidecar(&cluster).await;
    let before = logins(&cluster.redis).await;
    let mut connection = cluster.redis.connect().await;
    redis::cmd("ACL").arg("DELUSER").arg(&before).exec_async(&mut connection).await.unwrap();
    let (stem, _) = before[0].rsplit_once(':').unwrap();
    let orphan = format!("{stem}:{}", "ab".repeat(16));
    redis::cmd("ACL").arg("SETUSER").arg(&orphan).exec_async(&mut connection).await.unwrap();
    let bound = Duration::from_secs(100);
    eventually(bound, "the logins to be as before", async || {
        let mut now = logins(&cluster.redis).await;
        now.sort();
        let mut expected = before.clone();
        expected.sort();
        if now == expected { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    eventually(BOUND, "the sidecar to have access again", async || {
        sidecar.api.verify("unknown", "000000").await.status == 404
    })
    .await;
}

#[tokio::test]
async fn the_operator_does_not_start_with_a_setting_that_it_cannot_use_and_names_the_right_form() {
    for (variable, value, sentence) in [
        ("SMTP_SERVER", "a.secret.example.org:587", "SMTP_SERVER must be a host name like"),
        ("SMTP_SERVER", "smtps://a.secret.example.org", "SMTP_SERVER must be a host name like"),
        ("SMTP_SERVER", "a.secret\nb", "SMTP_SERVER must be one host name like"),
        ("SMTP_CA", "-----BEGIN CERTIFICATE-----\na.secret\n", "SMTP_CA is not complete"),
    ] {
        let process = Launch::new(tools::project_binary("twofactor-operator"))
            .isolated()
            .args(["controller", "--redis-url", "redis://127.0.0.1:1"])
            .args(["--operator-namespace", "twofactor-system"])
            .env("SMTP_FROM_EMAIL", "otp@example.org")
            .env("SMTP_SERVER", "mail.example.org")
            .env(variable, value)
            .start();
        assert!(!process.wait_exit(BOUND).await.success());
        let stderr = process.stderr();
        assert!(stderr.contains(sentence) && !stderr.contains("a.secret"), "{stderr}");
    }
}

#[tokio::test]
async fn credentials_are_written_where_a_pod_asks_and_in_no_excluded_namespace() {
    let cluster = Cluster::start().await;
    let kms = cluster.another_namespace("kms");
    let (idle, excluded) =
        (cluster.another_namespace("idle"), cluster.another_namespace("excluded"));
    let arguments = ["--excluded-namespace", &excluded];
    let _operator = cluster.operator().args(arguments).start().await;
    let names = [&kms, &idle, &excluded, &cluster.home].map(String::as_str).join(", ");
    cluster.apply(&[app_user("carol"), allowing(&names)].concat());
    cluster.wait_ready("carol").await;
    wait_condition(&cluster, "CredentialsReady", "True", "Written").await;
    assert!(cluster.credentials_in(&kms, "caller").is_none());
    for namespace in [&excluded, &cluster.home, &kms] {
        cluster.ask_from(namespace);
    }
    let began = Instant::now();
    eventually(BOUND, "the credentials", async || cluster.credentials_in(&kms, "caller")).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for namespace in [&idle, &excluded, &cluster.home, &cluster.namespace] {
        assert!(cluster.credentials_in(namespace, "caller").is_none(), "{namespace}");
    }
    assert_eq!(logins(&cluster.redis).await.len(), 1);
    cluster.stop_asking_from(&cluster.home);
}

#[tokio::test]
async fn credentials_stay_when_the_last_user_goes_and_over_a_restart_of_the_operator() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.verify_seed("carol", &cluster.seed("carol")).await.status, 200);
    let _ = cluster.kubectl(&["delete", "tfu", "carol"]);
    cluster.wait_for_no_user_keys().await;
    let unknown = async || sidecar.api.verify("carol", "000000").await.status == 404;
    eventually(BOUND, "the user to be unknown", unknown).await;
    drop(operator);
    let _operator = cluster.operator().start().await;
    // The operator has compared everything once it serves a new user.
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    eventually(BOUND, "the user to be unknown again", unknown).await;
    assert!(cluster.credentials_in(&cluster.namespace, "caller").is_some());
}

#[tokio::test]
async fn a_login_without_a_pod_outlives_a_restart_of_the_operator_without_an_interruption() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let kms = cluster.another_namespace("kms");
    cluster.apply(&[app_user("carol"), allowing(&kms)].concat());
    cluster.ask_from(&kms);
    cluster.wait_ready("carol").await;
    let url =
        eventually(BOUND, "the credentials", async || cluster.credentials_in(&kms, "redis-url"))
            .await;
    let client = redis::Client::open(url).unwrap();
    let mut service = eventually(BOUND, "the login", async || {
        client.get_multiplexed_async_connection().await.ok()
    })
    .await;
    cluster.stop_asking_from(&kms);
    drop(operator);
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("dora"));
    cluster.ask_from(&cluster.namespace);
    // The logins have been compared once another one is there.
    eventually(BOUND, "the login of the realm's own namespace", async || {
        logins(&cluster.redis).await.len() == 2
    })
    .await;
    // Removing a login closes its connections.
    let time: Result<(u64, u64), _> = redis::cmd("TIME").query_async(&mut service).await;
    assert!(time.is_ok(), "{time:?}");
    assert!(cluster.credentials_in(&kms, "caller").is_some());
}
