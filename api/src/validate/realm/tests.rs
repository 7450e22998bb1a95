use kube::CustomResourceExt;
use regex::Regex;
use serde_json::{Value, json};

use super::*;
use crate::rules::realm::{
    CODE_PATTERN, LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, NAMESPACE_PATTERN, ONE_LINE_PATTERN,
    PLACEHOLDERS_PATTERN,
};
use crate::rules::tokens::AUDIENCE_PATTERN;

fn realm(spec: Value) -> TwoFactorRealm {
    TwoFactorRealm::new("default", serde_json::from_value(spec).unwrap())
}

fn errors(spec: Value) -> Vec<String> {
    validate(&realm(spec)).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn labels_of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_valid_realm_becomes_a_policy() {
    let policy = validate(&realm(json!({
        "issuer": "FountainAI",
        "otpExpirationMinutes": 3,
        "allowedNamespaces": { "names": ["kms"], "selector": { "matchLabels": { "team": "payments" } } },
        "delivery": { "secretRef": { "name": "providers" } },
        "limits": { "generatesPerHour": 0 },
        "audit": { "retentionDays": 7, "entries": 50, "origin": false }
    })))
    .unwrap();
    assert_eq!(policy.issuer.as_deref(), Some("FountainAI"));
    assert_eq!(policy.otp_lifetime, OtpLifetime::try_from(3).ok());
    assert_eq!(policy.delivery_secret.as_deref(), Some("providers"));
    let defaults = twofactor_core::limits::Limits::default();
    let limits = policy.limits.over(defaults);
    assert_eq!(limits, twofactor_core::limits::Limits { generates_per_hour: 0, ..defaults });
    let audit = policy.audit.over(twofactor_core::audit::AuditPolicy::default());
    assert_eq!((audit.retention_days, audit.entries, audit.origin), (7, 50, false));
    assert!(policy.allows("kms", &BTreeMap::new()));
    assert!(policy.allows("x", &labels_of(&[("team", "payments")])));
    assert!(!policy.allows("x", &labels_of(&[("team", "other")])));
    assert_eq!(validate(&realm(json!({}))).unwrap(), RealmPolicy::default());
}

#[test]
fn a_realm_sets_tokens_and_uniform_answers() {
    let policy = validate(&realm(json!({
        "uniformAnswers": true,
        "tokens": { "audiences": ["kms"], "algorithm": "EdDSA", "lifetimeSeconds": 60, "secretRef": { "name": "key" } }
    })))
    .unwrap();
    assert_eq!(policy.uniform_answers, Some(true));
    let tokens = policy.tokens.unwrap();
    assert_eq!((tokens.algorithm.name(), u16::from(tokens.lifetime)), ("EdDSA", 60));
    assert_eq!(tokens.secret.as_deref(), Some("key"));
    let policy = validate(&realm(json!({ "tokens": { "audiences": ["kms"] } }))).unwrap();
    let tokens = policy.tokens.unwrap();
    assert_eq!((tokens.algorithm.name(), u16::from(tokens.lifetime)), ("HS256", 300));
}

#[test]
fn every_requirement_of_a_selector_must_hold() {
    let policy = validate(&realm(json!({ "allowedNamespaces": { "selector": {
        "matchLabels": { "a": "1" },
        "matchExpressions": [
            { "key": "b", "operator": "In", "values": ["1", "2"] },
            { "key": "c", "operator": "NotIn", "values": ["1"] },
            { "key": "d", "operator": "Exists" },
            { "key": "e", "operator": "DoesNotExist" }
        ]
    }}})))
    .unwrap();
    let good = [("a", "1"), ("b", "2"), ("d", "")];
    assert!(policy.allows("x", &labels_of(&good)));
    for bad in [("a", "2"), ("b", "3"), ("c", "1"), ("e", "")] {
        let mut labels = labels_of(&good);
        labels.insert(bad.0.to_owned(), bad.1.to_owned());
        assert!(!policy.allows("x", &labels), "{bad:?}");
    }
    assert!(!policy.allows("x", &labels_of(&good[..2])));
}

#[test]
fn an_empty_selector_is_rejected() {
    for selector in [json!({}), json!({ "matchLabels": {}, "matchExpressions": [] })] {
        let errors = errors(json!({ "allowedNamespaces": { "selector": selector } }));
        assert_eq!(errors.len(), 1);
        assert!(errors[0].starts_with("spec.allowedNamespaces.selector: must have"), "{errors:?}");
    }
}

#[test]
fn each_wrong_field_is_named() {
    let expressions = |expression: Value| json!({ "allowedNamespaces": { "selector": { "matchExpressions": [expression] } } });
    for (spec, field) in [
        (json!({ "issuer": "a:b" }), "spec.issuer"),
        (json!({ "issuer": "" }), "spec.issuer"),
        (json!({ "issuer": "x".repeat(101) }), "spec.issuer"),
        (json!({ "otpExpirationMinutes": 0 }), "spec.otpExpirationMinutes"),
        (json!({ "otpExpirationMinutes": 11 }), "spec.otpExpirationMinutes"),
        (json!({ "otpExpirationMinutes": -1 }), "spec.otpExpirationMinutes"),
        (
            json!({ "limits": { "generateIntervalSeconds": 3601 } }),
            "spec.limits.generateIntervalSeconds",
        ),
        (json!({ "limits": { "generatesPerHour": -1 } }), "spec.limits.generatesPerHour"),
        (json!({ "limits": { "deliveriesPerHour": 1_000_001 } }), "spec.limits.deliveriesPerHour"),
        (json!({ "audit": { "retentionDays": 0 } }), "spec.audit.retentionDays"),
        (json!({ "audit": { "entries": 9 } }), "spec.audit.entries"),
        (
            json!({ "allowedNamespaces": { "names": ["kms", "K"] } }),
            "spec.allowedNamespaces.names[1]",
        ),
        (json!({ "allowedNamespaces": { "names": ["a.b"] } }), "spec.allowedNamespaces.names[0]"),
        (
            json!({ "allowedNamespaces": { "names": vec!["a"; 257] } }),
            "spec.allowedNamespaces.names",
        ),
        (
            json!({ "allowedNamespaces": { "selector": { "matchLabels": { "a b": "1" } } } }),
            "spec.allowedNamespaces.selector.matchLabels",
        ),
        (
            json!({ "allowedNamespaces": { "selector": { "matchLabels": { "a": "-" } } } }),
            "spec.allowedNamespaces.selector.matchLabels",
        ),
        (
            expressions(json!({ "key": "/a", "operator": "Exists" })),
            "spec.allowedNamespaces.selector.matchExpressions[0].key",
        ),
        (
            expressions(json!({ "key": "a", "operator": "In" })),
            "spec.allowedNamespaces.selector.matchExpressions[0].values",
        ),
        (
            expressions(json!({ "key": "a", "operator": "Exists", "values": ["b"] })),
            "spec.allowedNamespaces.selector.matchExpressions[0].values",
        ),
        (json!({ "delivery": { "secretRef": { "name": "A" } } }), "spec.delivery.secretRef.name"),
        (json!({ "tokens": { "audiences": [] } }), "spec.tokens.audiences"),
        (json!({ "tokens": { "audiences": ["kms", "a b"] } }), "spec.tokens.audiences[1]"),
        (
            json!({ "tokens": { "audiences": ["a"], "lifetimeSeconds": 301 } }),
            "spec.tokens.lifetimeSeconds",
        ),
        (
            json!({ "tokens": { "audiences": ["a"], "secretRef": { "name": "A" } } }),
            "spec.tokens.secretRef.name",
        ),
        (json!({ "message": { "subject": "a\nb" } }), "spec.message.subject"),
        (json!({ "message": { "text": "no code" } }), "spec.message.text"),
        (json!({ "message": { "html": "{{code}} {{password}}" } }), "spec.message.html"),
        (json!({ "message": { "sms": "{{code}} {{" } }), "spec.message.sms"),
        (
            json!({ "message": { "languages": { "de": { "text": "kein Code" } } } }),
            "spec.message.languages.de.text",
        ),
        (json!({ "message": { "languages": { "de_DE": {} } } }), "spec.message.languages"),
        (json!({ "message": { "languages": { "de": {}, "DE": {} } } }), "spec.message.languages"),
        (
            json!({ "message": { "sms": format!("{{{{code}}}}{}", "x".repeat(1000)) } }),
            "spec.message.sms",
        ),
    ] {
        let found = errors(spec.clone());
        assert!(
            found.len() == 1 && found[0].starts_with(&format!("{field}: ")),
            "{spec}: {found:?}"
        );
    }
    let mut other = realm(json!({}));
    other.metadata.name = Some("other".to_owned());
    assert_eq!(validate(&other).unwrap_err()[0].field, "metadata.name");
}

#[test]
fn texts_are_read_by_language() {
    let languages = json!({ "de": { "text": "Code: {{code}}" }, "pt-BR": { "subject": "Código" } });
    let policy =
        validate(&realm(json!({ "message": { "sms": "{{code}}", "languages": languages } })))
            .unwrap();
    let tags: Vec<_> = policy.translations.keys().map(ToString::to_string).collect();
    assert_eq!(tags, ["de", "pt-br"]);
    let german = policy.translations.values().next().unwrap();
    assert_eq!(
        (german.text.as_ref().unwrap().to_string(), german.sms.is_none()),
        ("Code: {{code}}".to_owned(), true)
    );
    assert_eq!(policy.message.unwrap().sms.unwrap().to_string(), "{{code}}");
    // Languages alone leave the operator's texts for everyone else.
    let policy = validate(&realm(json!({ "message": { "languages": { "de": {} } } }))).unwrap();
    assert_eq!((policy.message, policy.translations.len()), (None, 1));
    let many: serde_json::Map<_, _> =
        (b'a'..=b'i').map(|c| (format!("x{}", char::from(c)), json!({}))).collect();
    let errors = validate(&realm(json!({ "message": { "languages": many } }))).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "spec.message.languages: has 9 languages, at most 8 are allowed"
    );
}

#[test]
fn a_message_without_texts_uses_those_of_the_operator() {
    assert_eq!(validate(&realm(json!({ "message": {} }))).unwrap().message, None);
    let message =
        validate(&realm(json!({ "message": { "text": "{{code}}" } }))).unwrap().message.unwrap();
    assert_eq!((message.subject, message.text.unwrap().to_string()), (None, "{{code}}".to_owned()));
}

#[test]
fn the_api_server_and_the_checks_agree_about_templates() {
    let [placeholders, code, one_line] = [PLACEHOLDERS_PATTERN, CODE_PATTERN, ONE_LINE_PATTERN]
        .map(|pattern| Regex::new(pattern).unwrap());
    for text in [
        "{{code}}",
        "{{ code }} {{context}}",
        "{{code}}{{",
        "{{code}}{",
        "{ {{code}}",
        "{{{code}}",
        "x}}{{code}}",
        "{{Code}}",
        "a{b{{code}}",
        "{{code}",
        "{{code}}\n",
        "{{}}{{code}}",
        "{{code}}{{code}}",
        "{{expires_at}}",
        "}}",
        "{{code}}{ {",
        "{{code}}\u{2028}",
        "{{\ncode}}",
    ] {
        let known = placeholders.is_match(text);
        assert_eq!(Part::Text.parse(text).is_ok(), known && code.is_match(text), "text {text:?}");
        assert_eq!(
            Part::Subject.parse(text).is_ok(),
            known && one_line.is_match(text),
            "subject {text:?}"
        );
    }
}

#[test]
fn the_patterns_of_the_schema_and_the_checks_agree() {
    let longest = "x".repeat(63);
    for text in [
        "", "a", "A", "a-b", "-a", "a-", "a.b", "a_b", "_a", "a b", "é", "a/b", "x.y/a", "/a",
        "a/", "X/a", "a/b/c", &longest,
    ] {
        let matches = |pattern: &str| Regex::new(pattern).unwrap().is_match(text);
        assert_eq!(matches(LABEL_VALUE_PATTERN), is_label_value(text), "value {text:?}");
        assert_eq!(matches(LABEL_KEY_PATTERN), is_label_key(text), "key {text:?}");
        let name = !text.contains('.') && is_object_name(text);
        assert_eq!(matches(NAMESPACE_PATTERN), name, "namespace {text:?}");
    }
    let audience = Regex::new(AUDIENCE_PATTERN).unwrap();
    for byte in 0..=127_u8 {
        let text = format!("a{}", char::from(byte));
        assert_eq!(
            audience.is_match(&text),
            text.parse::<twofactor_core::token::Audience>().is_ok(),
            "audience {text:?}"
        );
    }
    let crd = serde_json::to_string(&TwoFactorRealm::crd()).unwrap();
    for bound in [r#""maxItems":256"#, r#""maximum":10.0"#, r#""maxProperties":16"#] {
        assert!(crd.contains(bound), "{bound}");
    }
}
