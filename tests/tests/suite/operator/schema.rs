//! Tests what the API server accepts and refuses by the CRDs.

use crate::support::cluster::{Cluster, user};

#[tokio::test]
async fn the_api_server_accepts_the_examples() {
    let cluster = Cluster::start().await;
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/");
    let _ = cluster.server.try_kubectl(&["create", "namespace", "people"]);
    let answer = cluster.server.kubectl(&["apply", "--dry-run=server", "-f", examples]);
    assert!(
        answer.lines().count() >= 5
            && answer.lines().all(|line| line.contains("created (server dry run)")),
        "{answer}"
    );
}

#[tokio::test]
async fn kubectl_explain_describes_every_field() {
    let cluster = Cluster::start().await;
    for path in [
        "tfu.spec",
        "tfu.spec.totp",
        "tfu.spec.secretRef",
        "tfu.status",
        "tfr.spec",
        "tfr.spec.allowedNamespaces",
        "tfr.spec.allowedNamespaces.selector",
        "tfr.spec.allowedNamespaces.selector.matchExpressions",
        "tfr.spec.delivery.secretRef",
        "tfr.spec.message",
        "tfr.spec.message.languages",
        "tfr.status",
    ] {
        let text = cluster.server.kubectl(&["explain", path]);
        let fields = text.split("FIELDS:").nth(1).unwrap_or_else(|| panic!("{text}"));
        // A field is "  name<TAB><type>", its description the lines below, indented by four.
        let lines: Vec<&str> = fields.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| {
            line.starts_with("  ") && line.contains('<') && !line.starts_with("    ")
        }) {
            let described = lines.get(index + 1).is_some_and(|next| {
                next.starts_with("    ")
                    && next.trim().len() > 10
                    && !next.contains("<no description>")
            }) || lines.get(index + 2).is_some_and(|next| {
                next.starts_with("    ")
                    && next.trim().len() > 10
                    && !next.contains("<no description>")
            });
            assert!(described, "{path}: {line}\n{text}");
        }
    }
}

#[tokio::test]
async fn every_rule_accepts_a_valid_user_and_refuses_an_invalid_one_with_a_sentence() {
    let cluster = Cluster::start().await;
    let secret = "secretRef:\n    name";
    for (good, bad, sentence) in [
        ("email: a@example.org", "enabled: true", "email"),
        (
            "deliveryMethod: sms\n  phoneNumber: \"+4930123456\"",
            "deliveryMethod: sms",
            "phoneNumber",
        ),
        ("deliveryMethod: app", "deliveryMethod: pigeon", "deliveryMethod"),
        ("email: a@example.org", "email: invalid", "spec.email"),
        ("email: user@b\u{fc}cher.example", "email: user@-bad.example", "no mail server takes"),
        (
            "deliveryMethod: app\n  email: user@-bad.example",
            &format!("email: user@{}.example", "a".repeat(64)),
            "no mail server takes",
        ),
        ("email: user@under_score.example", "email: a..b@example.org", "no mail server takes"),
        (
            "deliveryMethod: sms\n  phoneNumber: \"+4930123456\"",
            "deliveryMethod: sms\n  phoneNumber: \"0301234567\"",
            "spec.phoneNumber",
        ),
        (
            "deliveryMethod: app\n  username: \"A {b} c\"",
            "deliveryMethod: app\n  username: \"\"",
            "spec.username",
        ),
        (
            "deliveryMethod: app\n  username: x",
            "deliveryMethod: app\n  username: \"a\\nb\"",
            "spec.username",
        ),
        (
            "deliveryMethod: app\n  locale: de-CH",
            "deliveryMethod: app\n  locale: de_CH",
            "is not a language tag",
        ),
        (
            "deliveryMethod: app\n  issuer: Fountain AI",
            "deliveryMethod: app\n  issuer: \"a:b\"",
            "spec.issuer",
        ),
        (
            "deliveryMethod: app\n  totp: {digits: 8}",
            "deliveryMethod: app\n  totp: {digits: 9}",
            "spec.totp.digits",
        ),
        (
            "deliveryMethod: app\n  totp: {digits: 6}",
            "deliveryMethod: app\n  totp: {digits: 5}",
            "spec.totp.digits",
        ),
        (
            "deliveryMethod: app\n  totp: {periodSeconds: 15}",
            "deliveryMethod: app\n  totp: {periodSeconds: 14}",
            "spec.totp.periodSeconds",
        ),
        (
            "deliveryMethod: app\n  totp: {periodSeconds: 120}",
            "deliveryMethod: app\n  totp: {periodSeconds: 121}",
            "spec.totp.periodSeconds",
        ),
        (
            "deliveryMethod: app\n  totp: {skew: 0}",
            "deliveryMethod: app\n  totp: {skew: 2}",
            "spec.totp.skew",
        ),
        (
            "deliveryMethod: app\n  totp: {algorithm: SHA512}",
            "deliveryMethod: app\n  totp: {algorithm: MD5}",
            "spec.totp.algorithm",
        ),
        (
            &format!("deliveryMethod: app\n  {secret}: other"),
            &format!("deliveryMethod: app\n  {secret}: probe-totp"),
            "secretRef",
        ),
    ] {
        let answer = cluster.try_apply(&user("probe", good), &["--dry-run=server"]);
        assert!(answer.is_ok(), "{good}: {answer:?}");
        let error = cluster.try_apply(&user("probe", bad), &["--dry-run=server"]).expect_err(bad);
        assert!(error.contains(sentence), "{bad}: {error}");
    }
    let long = user("probe", &format!("deliveryMethod: app\n  username: {}", "x".repeat(254)));
    assert!(cluster.try_apply(&long, &["--dry-run=server"]).is_err());
}

#[tokio::test]
async fn a_user_from_before_with_an_undeliverable_address_can_still_be_changed() {
    let cluster = Cluster::start().await;
    let bad = "email: user@-bad.example";
    cluster.apply(&user("kept", &format!("deliveryMethod: app\n  {bad}")));
    cluster.apply(&user("kept", &format!("deliveryMethod: app\n  enabled: false\n  {bad}")));
    let error = cluster.try_apply(&user("kept", bad), &[]).expect_err(bad);
    assert!(error.contains("spec.email") && error.contains("no mail server takes"), "{error}");
    cluster.apply(&user("kept", "email: user@good.example"));
}

#[tokio::test]
async fn a_username_cannot_be_changed_added_or_removed() {
    let cluster = Cluster::start().await;
    cluster.apply(&user("named", "username: one\n  deliveryMethod: app"));
    cluster.apply(&user("nameless", "deliveryMethod: app"));
    for (name, spec) in [
        ("named", "username: two\n  deliveryMethod: app"),
        ("named", "deliveryMethod: app"),
        ("nameless", "username: nameless\n  deliveryMethod: app"),
    ] {
        let error = cluster.try_apply(&user(name, spec), &[]).expect_err(spec);
        assert!(error.contains("username"), "{error}");
    }
    cluster.apply(&user("named", "username: one\n  deliveryMethod: app\n  enabled: false"));
}
