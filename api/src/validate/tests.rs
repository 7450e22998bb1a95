use kube::CustomResourceExt;
use regex::Regex;
use serde_json::{Value, json};
use twofactor_core::totp::Algorithm;
use twofactor_core::user::{EmailAddressError, PhoneNumberError};

use super::*;
use crate::rules::language_message;
use crate::rules::user::{
    ALGORITHMS, DELIVERABLE_PATTERN, NUMERIC_PATTERN, email_deliverable_rule, email_needed_rule,
    name_rule, own_secret_rule, phone_number_needed_rule, username_rule,
};

/// A user called alice with this spec, as the API server would hand it out.
fn user(spec: Value) -> TwoFactorUser {
    TwoFactorUser::new("alice", serde_json::from_value(spec).unwrap())
}

/// What is said about a user with this spec; nothing when it is valid.
fn errors(spec: Value) -> Vec<String> {
    validate(&user(spec)).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// The schema of a field of the spec, such as `/totp/digits`.
fn schema(path: &str) -> Value {
    let crd = serde_json::to_value(TwoFactorUser::crd()).unwrap();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let fields = path.split('/').skip(1);
    let path = fields.fold(spec.to_owned(), |path, field| path + "/properties/" + field);
    crd.pointer(&path).unwrap().clone()
}

/// Whether the schema and `validate` both take this text for a field; they must agree.
fn text_is_taken(field: &str, text: &str) -> bool {
    let schema = schema(&format!("/{}", field.replace('.', "/")));
    let pattern = Regex::new(schema["pattern"].as_str().unwrap()).unwrap();
    let length = u64::try_from(text.chars().count()).unwrap();
    let by_schema = pattern.is_match(text)
        && length >= schema["minLength"].as_u64().unwrap()
        && length <= schema["maxLength"].as_u64().unwrap();

    let mut spec = json!({ "deliveryMethod": "app" });
    match field.split_once('.') {
        Some((_, key)) => {
            spec["secretRef"] = json!({ "name": "imported" });
            spec["secretRef"][key] = text.into();
        }
        None => spec[field] = text.into(),
    }
    let errors = validate(&user(spec)).err().unwrap_or_default();
    assert!(errors.iter().all(|error| error.field == format!("spec.{field}")), "{errors:?}");
    assert_eq!(by_schema, errors.is_empty(), "schema and validate disagree on {field} {text:?}");
    by_schema
}

#[test]
fn a_valid_user_becomes_a_definition() {
    let spec = json!({
        "username": "Alice Example",
        "enabled": false,
        "email": "alice@example.org",
        "phoneNumber": "+4930123456",
        "deliveryMethod": "sms",
        "secretRef": { "name": "imported", "key": "seed" },
        "totp": { "algorithm": "SHA512", "digits": 8, "periodSeconds": 60, "skew": 0 },
        "issuer": "FountainAI"
    });
    let definition = validate(&user(spec)).unwrap();
    assert_eq!(definition.username.as_str(), "Alice Example");
    assert!(!definition.enabled);
    assert_eq!(definition.email.unwrap().as_str(), "alice@example.org");
    assert_eq!(definition.phone_number.unwrap().as_str(), "+4930123456");
    assert_eq!(definition.delivery_method, DeliveryMethod::Sms);
    assert_eq!(definition.totp, TotpParameters::new(Algorithm::Sha512, 8, 60, 0).unwrap());
    assert_eq!(definition.issuer.as_deref(), Some("FountainAI"));
}

#[test]
fn omitted_fields_have_the_documented_defaults() {
    let definition = validate(&user(json!({ "email": "alice@example.org" }))).unwrap();
    assert_eq!(definition.username.as_str(), "alice");
    assert!(definition.enabled);
    assert_eq!(definition.delivery_method, DeliveryMethod::Email);
    assert_eq!(definition.totp, TotpParameters::default());
    assert_eq!((definition.phone_number, definition.issuer), (None, None));
    assert_eq!(user(json!({})).spec, crate::user::TwoFactorUserSpec::default());
}

#[test]
fn the_schema_fills_in_the_same_defaults() {
    assert_eq!(schema("/enabled")["default"], true);
    assert_eq!(schema("/deliveryMethod")["default"], "email");
    assert_eq!(schema("/totp")["default"], serde_json::to_value(TotpSpec::default()).unwrap());
    let totp = schema("/totp");
    let fields = totp["properties"].as_object().unwrap();
    let each: serde_json::Map<_, _> =
        fields.iter().map(|(name, field)| (name.clone(), field["default"].clone())).collect();
    assert_eq!(totp["default"], Value::Object(each));
    assert_eq!(schema("/secretRef/key")["default"], labels::SECRET_KEY_SEED);
    for optional in ["username", "email", "phoneNumber", "secretRef", "issuer", "locale"] {
        let field = schema(&format!("/{optional}"));
        assert!(field.get("default").is_none() && field.get("nullable").is_none(), "{optional}");
    }
    assert!(schema("").get("required").is_none());
    assert_eq!(schema("/secretRef")["required"], json!(["name"]));
}

#[test]
fn usernames_are_taken_exactly_or_refused() {
    let longest = "名".repeat(Username::MAXIMUM_CHARACTERS);
    for name in
        ["alice", "Alice", " alice", "a{b}c", "a:b", "alice@example.org", "Zoë", longest.as_str()]
    {
        assert!(text_is_taken("username", name));
        let definition =
            validate(&user(json!({ "username": name, "deliveryMethod": "app" }))).unwrap();
        assert_eq!(definition.username.as_str(), name);
    }
    for name in
        ["", &"x".repeat(254), &"x".repeat(300), "a\nb", "alice\n", "a\0", "\u{7f}", "a\u{85}b"]
    {
        assert!(!text_is_taken("username", name));
    }
    assert_eq!(
        errors(json!({ "username": "a\tb", "deliveryMethod": "app" })),
        ["spec.username: must not contain control characters"]
    );
    assert_eq!(
        errors(json!({ "username": "x".repeat(300), "deliveryMethod": "app" })),
        ["spec.username: has 300 characters, at most 253 are allowed"]
    );
}

#[test]
fn schema_and_validation_agree_on_email_addresses() {
    let longest = format!("a@{}", "b".repeat(252));
    for email in [
        "a@b",
        "zoe+otp@example.org",
        "zoë@exämple.org",
        &format!("{}@b", "a".repeat(64)),
        &longest,
    ] {
        assert!(text_is_taken("email", email));
    }
    for email in [
        "",
        "@",
        "alice",
        "@example.org",
        "alice@",
        "a@b@c",
        "a b@example.org",
        "a\u{a0}b@example.org",
        "a@b\u{2028}",
        "a@example.org\r\nBcc: b@example.org",
        "a@b.c\n",
        "a@b,c@d",
        "<a@b>",
        "a;b@c",
        "a:b@c",
        "a\"b@c",
        "a\\b@c",
        "a@[b]",
        "a(b)@c",
        &format!("{}@b", "a".repeat(65)),
        &format!("{longest}b"),
    ] {
        assert!(!text_is_taken("email", email));
    }
}

/// Whether a user who gets mail may have this address; rule and validation must agree.
fn mail_is_taken(email: &str) -> bool {
    let errors = errors(json!({ "email": email }));
    assert!(errors.iter().all(|error| error.starts_with("spec.email: ")), "{errors:?}");
    let matches = |pattern: &str| Regex::new(pattern).unwrap().is_match(email);
    let by_rule = matches(DELIVERABLE_PATTERN) && !matches(NUMERIC_PATTERN);
    assert_eq!(by_rule, errors.is_empty(), "rule and validation disagree on {email:?}");
    by_rule
}

#[test]
fn rule_and_validation_agree_on_addresses_that_mail_reaches() {
    let label = "a".repeat(63);
    for email in [
        "user@example.org",
        "first.last+otp@Example.ORG",
        "user@localhost",
        "user@1and1.example",
        "user@example.1a",
        "user@under_score.example",
        "zoë@bücher.example",
        "user@xn--bcher-kva.example",
        &format!("user@{label}.{label}.example"),
    ] {
        assert!(mail_is_taken(email), "{email}");
    }
    for email in [
        "user@-bad.example",
        "user@bad-.example",
        "user@good.-",
        "user@_dmarc.example",
        "user@192.0.2.1",
        "user@example.1",
        "user@a!b.example",
        "user@example..org",
        "user@.example.org",
        "user@example.org.",
        ".user@example.org",
        "user.@example.org",
        "a..b@example.org",
        &format!("user@{label}a.example"),
    ] {
        assert!(!mail_is_taken(email), "{email}");
    }
    // The length of an international label in the domain name system is known to the validation
    // only.
    let long = format!("user@{}.example", "ü".repeat(60));
    assert!(Regex::new(DELIVERABLE_PATTERN).unwrap().is_match(&long));
    assert_eq!(errors(json!({ "email": long })).len(), 1);
}

#[test]
fn a_user_who_gets_no_mail_keeps_any_address() {
    for method in ["app", "webhook", "sms"] {
        let spec = json!({
            "deliveryMethod": method, "email": "user@-bad.example", "phoneNumber": "+4930123456"
        });
        assert_eq!(errors(spec), [""; 0], "{method}");
    }
}

#[test]
fn schema_and_validation_agree_on_phone_numbers() {
    for number in ["+1234567", "+4930123456", "+123456789012345"] {
        assert!(text_is_taken("phoneNumber", number));
    }
    for number in [
        "",
        "4930123456",
        "+",
        "+123456",
        "+1234567890123456",
        "+0930123456",
        "+49 30 123456",
        "+49-30-123456",
        "+4930123456\n",
        "+４９３０１２３４５６",
    ] {
        assert!(!text_is_taken("phoneNumber", number));
    }
}

#[test]
fn schema_and_validation_agree_on_issuers() {
    for issuer in ["F", "FountainAI (test)", &"ä".repeat(ISSUER_CHARACTERS)] {
        assert!(text_is_taken("issuer", issuer));
    }
    for issuer in ["", "a:b", "a\nb", "a\u{9f}", &"a".repeat(ISSUER_CHARACTERS + 1)] {
        assert!(!text_is_taken("issuer", issuer));
    }
}

#[test]
fn schema_and_validation_agree_on_locales() {
    for locale in ["de", "DE", "de-CH", "zh-Hant-TW", "es-419", "abcdefgh-1-12345678"] {
        assert!(text_is_taken("locale", locale));
    }
    for locale in [
        "",
        "d",
        "de_DE",
        "de-",
        "-de",
        "de--CH",
        "de-CH ",
        "12-CH",
        "dä",
        "de_DE.UTF-8",
        "de-123456789",
        &"de-".repeat(12),
        &format!("de{}", "-abcdefgh".repeat(4)),
    ] {
        assert!(!text_is_taken("locale", locale));
    }
}

#[test]
fn schema_and_validation_agree_on_names_and_keys_of_secrets() {
    for name in ["a", "1", "a-b.c-2", &"a".repeat(253)] {
        assert!(text_is_taken("secretRef.name", name));
    }
    for name in
        ["", "-a", "a-", "A", "a_b", "a..b", ".a", "a.", "a.-b", "ä", "a\n", &"a".repeat(254)]
    {
        assert!(!text_is_taken("secretRef.name", name));
    }
    for key in ["secret", "a.b_c-D1", &"k".repeat(253)] {
        assert!(text_is_taken("secretRef.key", key));
    }
    for key in ["", "a b", "a/b", "ä", "a\n", &"k".repeat(254)] {
        assert!(!text_is_taken("secretRef.key", key));
    }
}

#[test]
fn schema_validation_and_core_agree_on_numbers() {
    for (field, range) in [("digits", DIGITS), ("periodSeconds", PERIOD_SECONDS), ("skew", SKEW)] {
        let schema = schema(&format!("/totp/{field}"));
        assert_eq!(schema["minimum"].as_f64(), Some(f64::from(*range.start())), "{field}");
        assert_eq!(schema["maximum"].as_f64(), Some(f64::from(*range.end())), "{field}");
        for value in
            [range.start() - 1, *range.start(), *range.end(), range.end() + 1, i32::MIN, i32::MAX]
        {
            let errors = errors(json!({ "deliveryMethod": "app", "totp": { field: value } }));
            if range.contains(&value) {
                assert_eq!(errors, [""; 0], "{field} {value}");
            } else {
                let (start, end) = (range.start(), range.end());
                assert_eq!(
                    errors,
                    [format!("spec.totp.{field}: must be {start} to {end}, not {value}")]
                );
            }
            let number = |name| {
                if name == field {
                    value
                } else {
                    i32::try_from(json!(TotpSpec::default())[name].as_i64().unwrap()).unwrap()
                }
            };
            let by_core = u8::try_from(number("digits")).is_ok_and(|digits| {
                u32::try_from(number("periodSeconds")).is_ok_and(|period| {
                    u8::try_from(number("skew")).is_ok_and(|skew| {
                        TotpParameters::new(Algorithm::Sha1, digits, period, skew).is_ok()
                    })
                })
            });
            assert_eq!(by_core, range.contains(&value), "{field} {value}");
        }
    }
}

#[test]
fn the_schema_lists_every_delivery_method_and_algorithm() {
    let methods: Vec<Value> = DeliveryMethod::ALL.iter().map(|method| json!(method)).collect();
    assert_eq!(schema("/deliveryMethod")["enum"], Value::Array(methods));
    let algorithms: Vec<Value> = ALGORITHMS.iter().map(|algorithm| json!(algorithm)).collect();
    assert_eq!(schema("/totp/algorithm")["enum"], Value::Array(algorithms));
    // A new algorithm fails to compile here until it is in the list.
    for algorithm in ALGORITHMS {
        match algorithm {
            Algorithm::Sha1 | Algorithm::Sha256 | Algorithm::Sha512 => {}
        }
    }
}

#[test]
fn each_delivery_method_requires_its_address() {
    assert_eq!(errors(json!({})), ["spec.email: is required if deliveryMethod is email"]);
    assert_eq!(
        errors(json!({ "deliveryMethod": "sms", "email": "a@b" })),
        ["spec.phoneNumber: is required if deliveryMethod is sms"]
    );
    for method in ["app", "webhook"] {
        assert_eq!(errors(json!({ "deliveryMethod": method })), [""; 0]);
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let mut user = user(json!({
        "username": "", "deliveryMethod": "sms", "email": "a", "issuer": ":",
        "secretRef": { "name": "A", "key": "" }, "totp": { "digits": 5, "periodSeconds": 0, "skew": -1 }
    }));
    user.metadata.name = Some("Alice".to_owned());
    let errors = validate(&user).unwrap_err();
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "metadata.name",
            "spec.username",
            "spec.email",
            "spec.phoneNumber",
            "spec.secretRef.name",
            "spec.secretRef.key",
            "spec.totp.digits",
            "spec.totp.periodSeconds",
            "spec.totp.skew",
            "spec.issuer",
        ]
    );
}

#[test]
fn a_user_needs_a_name_that_their_secret_can_be_named_after() {
    let mut user = user(json!({ "deliveryMethod": "app" }));
    for (name, message) in [
        (None, "is missing"),
        (Some(String::new()), "is missing"),
        (Some("Alice".to_owned()), NAME_MESSAGE),
        (Some("a".repeat(249)), NAME_TOO_LONG),
    ] {
        user.metadata.name = name;
        let expected =
            FieldError { field: "metadata.name".to_owned(), message: message.to_owned() };
        assert_eq!(validate(&user).unwrap_err(), [expected]);
    }
    user.metadata.name = Some("a".repeat(USER_NAME_CHARACTERS));
    assert!(validate(&user).is_ok());
    assert_eq!(USER_NAME_CHARACTERS, 248);
    assert!(NAME_TOO_LONG.contains("248"));
}

#[test]
fn a_seed_is_not_imported_from_the_secret_that_is_written() {
    let spec = json!({ "deliveryMethod": "app", "secretRef": { "name": "alice-totp" } });
    assert_eq!(errors(spec), [format!("spec.secretRef.name: {OWN_SECRET}")]);
    assert_eq!(
        errors(json!({ "deliveryMethod": "app", "secretRef": { "name": "bob-totp" } })),
        [""; 0]
    );
}

#[test]
fn messages_do_not_quote_addresses() {
    for error in errors(
        json!({ "email": "secret person", "phoneNumber": "secret person", "issuer": "secret: person" }),
    ) {
        assert!(!error.contains("person"), "{error}");
    }
}

#[test]
fn the_schema_has_each_rule_with_the_sentence_that_validate_uses() {
    let spec = schema("");
    let rules = |schema: &Value| schema["x-kubernetes-validations"].as_array().unwrap().clone();
    assert_eq!(
        rules(&spec),
        [
            json!(username_rule()),
            json!(email_needed_rule()),
            json!(email_deliverable_rule()),
            json!(phone_number_needed_rule())
        ]
    );
    for (field, message) in [
        ("/username", twofactor_core::user::UsernameError::ControlCharacter.to_string()),
        ("/email", EmailAddressError.to_string()),
        ("/phoneNumber", PhoneNumberError.to_string()),
        ("/issuer", ISSUER_MESSAGE.to_owned()),
        ("/locale", language_message()),
        ("/secretRef/name", NAME_MESSAGE.to_owned()),
        ("/secretRef/key", SECRET_KEY_MESSAGE.to_owned()),
    ] {
        let schema = schema(field);
        let rule = format!("self.matches(r'{}')", schema["pattern"].as_str().unwrap());
        assert_eq!(rules(&schema), [json!({ "rule": rule, "message": message })], "{field}");
    }
    let crd = serde_json::to_value(TwoFactorUser::crd()).unwrap();
    let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(rules(root), [json!(name_rule()), json!(own_secret_rule())]);
}

#[test]
fn every_text_has_a_longest_length_so_that_rules_stay_within_their_budget() {
    fn walk(path: &str, schema: &Value) {
        if schema["type"] == "string" {
            assert!(schema["maxLength"].is_u64() || schema["enum"].is_array(), "{path}");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            assert!(
                field["description"].as_str().is_some_and(|text| text.ends_with('.')),
                "{path}.{name}"
            );
            walk(&format!("{path}.{name}"), field);
        }
    }
    walk("spec", &schema(""));
}
