//! Validates realms: turns a [`TwoFactorRealm`] into a [`RealmPolicy`], or returns everything that
//! is invalid about it.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{Expression, Selector, SelectorExt};
use twofactor_core::language::Language;
use twofactor_core::message::{MessageTemplates, Part};
use twofactor_core::realm::OtpLifetime;

mod limits;

pub use self::limits::{AuditOverrides, LimitsPolicy};
use super::tokens::{self, TokenPolicy};
use super::{FieldError, Findings, check_issuer, is_object_name};
use crate::labels;
use crate::realm::{
    AllowedNamespaces, MessageTexts, NamespaceSelector, Operator, Requirement, TwoFactorRealm,
};
use crate::rules::realm::{
    EMPTY_SELECTOR, EXPIRATION_MINUTES, LABEL_KEY_MESSAGE, LABEL_VALUE_CHARACTERS,
    LABEL_VALUE_MESSAGE, LANGUAGES, NAME_NOT_DEFAULT, NAMES, NAMESPACE_CHARACTERS,
    NAMESPACE_MESSAGE, REQUIREMENTS, STALENESS_SECONDS, VALUES, VALUES_MESSAGE,
};
use crate::rules::{NAME_MESSAGE, language_message};

/// The validated spec of a realm.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RealmPolicy {
    /// The issuer. Defaults to the operator's.
    pub issuer: Option<String>,
    /// Duration for which a delivered code is accepted. Defaults to the operator's.
    pub otp_lifetime: Option<OtpLifetime>,
    /// Maximum time in seconds without an operator, if there is one.
    pub max_staleness: Option<u32>,
    /// The names of allowed namespaces.
    pub names: BTreeSet<String>,
    /// Selects more allowed namespaces. It is never empty.
    pub selector: Option<Selector>,
    /// The Secret with the providers, in the realm's own namespace.
    pub delivery_secret: Option<String>,
    /// Limits on how often codes are issued and sent.
    pub limits: LimitsPolicy,
    /// What is recorded of each request.
    pub audit: AuditOverrides,
    /// The texts of messages. Default to the operator's.
    pub message: Option<MessageTemplates>,
    /// The texts by language, without those that fall back to the message.
    pub translations: BTreeMap<Language, MessageTemplates>,
    /// Tokens. Default to the operator's settings.
    pub tokens: Option<TokenPolicy>,
    /// Whether answers hide who is a user. Defaults to the operator's setting.
    pub uniform_answers: Option<bool>,
}

impl RealmPolicy {
    /// Returns whether a namespace other than the realm's own is allowed.
    #[must_use]
    pub fn allows(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.names.contains(namespace)
            || self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}

/// Returns whether this is the one realm of its namespace, by its name.
#[must_use]
pub fn is_default(realm: &TwoFactorRealm) -> bool {
    realm.metadata.name.as_deref() == Some(labels::REALM_NAME)
}

/// Validates a realm.
///
/// # Errors
/// Returns every invalid field, in the order of the manifest.
pub fn validate(realm: &TwoFactorRealm) -> Result<RealmPolicy, Vec<FieldError>> {
    let mut findings = Findings::default();
    let spec = &realm.spec;
    if !is_default(realm) {
        findings.add("metadata.name", NAME_NOT_DEFAULT);
    }
    if let Some(issuer) = &spec.issuer {
        findings.keep("spec.issuer", check_issuer(issuer, "operator"));
    }
    let otp_lifetime = spec.otp_expiration_minutes.and_then(|minutes| {
        let lifetime =
            u8::try_from(minutes).ok().and_then(|minutes| OtpLifetime::try_from(minutes).ok());
        if lifetime.is_none() {
            let (first, last) = (EXPIRATION_MINUTES.start(), EXPIRATION_MINUTES.end());
            findings.add(
                "spec.otpExpirationMinutes",
                format_args!("must be {first} to {last}, not {minutes}"),
            );
        }
        lifetime
    });
    let max_staleness = spec.max_staleness_seconds.and_then(|seconds| {
        if !STALENESS_SECONDS.contains(&seconds) {
            let (first, last) = (STALENESS_SECONDS.start(), STALENESS_SECONDS.end());
            findings.add(
                "spec.maxStalenessSeconds",
                format_args!("must be {first} to {last}, not {seconds}"),
            );
        }
        u32::try_from(seconds).ok()
    });
    let (names, selector) = match &spec.allowed_namespaces {
        Some(allowed) => check_allowed(allowed, &mut findings),
        None => (BTreeSet::new(), None),
    };
    let delivery_secret = spec.delivery.as_ref().map(|delivery| delivery.secret_ref.name.clone());
    if delivery_secret.as_ref().is_some_and(|name| !is_object_name(name)) {
        findings.add("spec.delivery.secretRef.name", NAME_MESSAGE);
    }
    let limits = limits::check_limits(spec.limits.as_ref(), &mut findings);
    let audit = limits::check_audit(spec.audit.as_ref(), &mut findings);
    let message = spec.message.as_ref();
    let translations = message
        .map(|message| check_languages(&message.languages, &mut findings))
        .unwrap_or_default();
    let message = message.map(|message| check_texts(&message.texts, "spec.message", &mut findings));
    // A message without any text counts as absent.
    let message = message.filter(|message| *message != MessageTemplates::default());
    let tokens = spec.tokens.as_ref().and_then(|tokens| tokens::check(tokens, &mut findings));
    if findings.0.is_empty() {
        Ok(RealmPolicy {
            issuer: spec.issuer.clone(),
            otp_lifetime,
            max_staleness,
            names,
            selector,
            delivery_secret,
            limits,
            audit,
            message,
            translations,
            tokens,
            uniform_answers: spec.uniform_answers,
        })
    } else {
        Err(findings.0)
    }
}

fn check_languages(
    languages: &BTreeMap<String, MessageTexts>,
    findings: &mut Findings,
) -> BTreeMap<Language, MessageTemplates> {
    let field = "spec.message.languages";
    if languages.len() > LANGUAGES {
        findings.add(
            field,
            format_args!("has {} languages, at most {LANGUAGES} are allowed", languages.len()),
        );
    }
    let mut translations = BTreeMap::new();
    for (tag, texts) in languages {
        let Ok(language) = Language::try_from(tag.clone()) else {
            findings.add(field, format_args!("a key {}", language_message()));
            continue;
        };
        let templates = check_texts(texts, &format!("{field}.{language}"), findings);
        if translations.insert(language, templates).is_some() {
            findings.add(field, "has a language twice");
        }
    }
    translations
}

fn check_texts(message: &MessageTexts, parent: &str, findings: &mut Findings) -> MessageTemplates {
    let mut templates = MessageTemplates::default();
    for (part, text) in [
        (Part::Subject, &message.subject),
        (Part::Text, &message.text),
        (Part::Html, &message.html),
        (Part::Sms, &message.sms),
    ] {
        if let Some(text) = text {
            let field = format!("{parent}.{}", part.field());
            templates.set(part, findings.keep(&field, part.parse(text)));
        }
    }
    templates
}

fn check_allowed(
    allowed: &AllowedNamespaces,
    findings: &mut Findings,
) -> (BTreeSet<String>, Option<Selector>) {
    let field = "spec.allowedNamespaces.names";
    if allowed.names.len() > NAMES {
        findings.add(
            field,
            format_args!(
                "has {} names, at most {NAMES} are allowed: use a selector",
                allowed.names.len()
            ),
        );
    }
    for (index, name) in allowed.names.iter().enumerate() {
        if name.len() > NAMESPACE_CHARACTERS || name.contains('.') || !is_object_name(name) {
            findings.add(&format!("{field}[{index}]"), NAMESPACE_MESSAGE);
        }
    }
    let selector =
        allowed.selector.as_ref().and_then(|selector| check_selector(selector, findings));
    (allowed.names.iter().cloned().collect(), selector)
}

fn check_selector(selector: &NamespaceSelector, findings: &mut Findings) -> Option<Selector> {
    let field = "spec.allowedNamespaces.selector";
    if selector.match_labels.is_empty() && selector.match_expressions.is_empty() {
        findings.add(field, EMPTY_SELECTOR);
        return None;
    }
    for (name, count) in [
        ("matchLabels", selector.match_labels.len()),
        ("matchExpressions", selector.match_expressions.len()),
    ] {
        if count > REQUIREMENTS {
            findings.add(
                &format!("{field}.{name}"),
                format_args!("has {count} requirements, at most {REQUIREMENTS} are allowed"),
            );
        }
    }
    for (key, value) in &selector.match_labels {
        let field = format!("{field}.matchLabels");
        if !is_label_key(key) {
            findings.add(&field, format_args!("a key {LABEL_KEY_MESSAGE}"));
        }
        if !is_label_value(value) {
            findings.add(&field, format_args!("a value {LABEL_VALUE_MESSAGE}"));
        }
    }
    for (index, requirement) in selector.match_expressions.iter().enumerate() {
        check_requirement(requirement, &format!("{field}.matchExpressions[{index}]"), findings);
    }
    let labels = selector
        .match_labels
        .iter()
        .map(|(key, value)| Expression::Equal(key.clone(), value.clone()));
    Some(labels.chain(selector.match_expressions.iter().map(expression)).collect())
}

fn check_requirement(requirement: &Requirement, field: &str, findings: &mut Findings) {
    if !is_label_key(&requirement.key) {
        findings.add(&format!("{field}.key"), LABEL_KEY_MESSAGE);
    }
    let needed = matches!(requirement.operator, Operator::In | Operator::NotIn);
    if needed == requirement.values.is_empty() {
        findings.add(&format!("{field}.values"), VALUES_MESSAGE);
    }
    if requirement.values.len() > VALUES {
        findings.add(
            &format!("{field}.values"),
            format_args!("has {} values, at most {VALUES} are allowed", requirement.values.len()),
        );
    }
    if requirement.values.iter().any(|value| !is_label_value(value)) {
        findings.add(&format!("{field}.values"), format_args!("one of them {LABEL_VALUE_MESSAGE}"));
    }
}

fn expression(requirement: &Requirement) -> Expression {
    let (key, values) = (requirement.key.clone(), requirement.values.iter().cloned().collect());
    match requirement.operator {
        Operator::In => Expression::In(key, values),
        Operator::NotIn => Expression::NotIn(key, values),
        Operator::Exists => Expression::Exists(key),
        Operator::DoesNotExist => Expression::DoesNotExist(key),
    }
}

/// Returns whether `key` is a name, after an optional DNS subdomain and a slash.
fn is_label_key(key: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && is_label_value(name);
    match key.split_once('/') {
        Some((prefix, name)) => is_object_name(prefix) && is_name(name),
        None => is_name(key),
    }
}

fn is_label_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let alphanumeric = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    value.len() <= LABEL_VALUE_CHARACTERS
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

#[cfg(test)]
mod tests;
