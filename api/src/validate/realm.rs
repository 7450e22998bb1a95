//! What makes a realm valid. Enters: a [`TwoFactorRealm`]. Leaves: a [`RealmPolicy`], or everything
//! that is wrong with it.
//!
//! As for users, the API server gets the same constants and sentences.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use kube::core::{Expression, Message, Rule, Selector, SelectorExt};
use twofactor_core::message::{MessageTemplates, Part, PartError};
use twofactor_core::realm::OtpLifetime;

mod limits;

pub use self::limits::{
    AuditOverrides, DELIVERIES_PER_HOUR, GENERATE_INTERVAL_SECONDS, GENERATES_PER_HOUR,
    LimitsPolicy, RETENTION_DAYS,
};
use super::tokens::{self, TokenPolicy};
use super::{FieldError, Findings, NAME_MESSAGE, check_issuer, is_object_name, pattern_rule};
use crate::labels;
use crate::realm::{
    AllowedNamespaces, MessageSpec, NamespaceSelector, Operator, Requirement, TwoFactorRealm,
};

/// For how many minutes a delivered code may be accepted.
pub const EXPIRATION_MINUTES: RangeInclusive<i32> = 1..=10;
/// The most namespaces that can be named.
pub const NAMES: usize = 256;
/// The most requirements of a selector, of each kind.
pub const REQUIREMENTS: usize = 16;
/// The most values of a requirement.
pub const VALUES: usize = 64;
/// The longest name of a namespace.
pub const NAMESPACE_CHARACTERS: usize = 63;
/// The longest key of a label: a prefix of 253 characters, a slash and a name of 63.
pub const LABEL_KEY_CHARACTERS: usize = 317;
/// The longest subject of a message.
pub const SUBJECT_CHARACTERS: usize = Part::Subject.longest();
/// The longest text of a message.
pub const TEXT_CHARACTERS: usize = Part::Text.longest();
/// The longest HTML of a message.
pub const HTML_CHARACTERS: usize = Part::Html.longest();
/// The longest text message.
pub const SMS_CHARACTERS: usize = Part::Sms.longest();
/// The longest value of a label.
pub const LABEL_VALUE_CHARACTERS: usize = 63;

pub(crate) const NAMESPACE_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
pub(crate) const LABEL_KEY_PATTERN: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$";
pub(crate) const LABEL_VALUE_PATTERN: &str = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
/// Text, in which two opening braces begin a placeholder that there is.
pub(crate) const PLACEHOLDERS_PATTERN: &str =
    r"^([^{]|\{[^{]|\{\{ *(code|expires_at|issuer|username|service|context) *\}\})*\{?$";
pub(crate) const CODE_PATTERN: &str = r"\{\{ *code *\}\}";
pub(crate) const ONE_LINE_PATTERN: &str = r"^[^\p{Cc}\p{Zl}\p{Zp}]*$";

const PLACEHOLDERS_MESSAGE: &str = "has {{ without }}, or a placeholder that there is not: there are {{code}}, {{expires_at}}, \
                                    {{issuer}}, {{username}}, {{service}}, {{context}}";
const NAME_NOT_DEFAULT: &str = "must be default: there is one realm in a namespace";
const NAMESPACE_MESSAGE: &str =
    "is not the name of a namespace: at most 63 lower case letters, digits and hyphens are allowed";
const EMPTY_SELECTOR: &str =
    "must have matchLabels or matchExpressions: an empty selector would let every namespace in";
const LABEL_KEY_MESSAGE: &str = "is not the key of a label: write it like team or example.org/team";
const LABEL_VALUE_MESSAGE: &str = "is not the value of a label: at most 63 letters, digits, hyphens, underscores and dots are allowed, \
                                   the first and the last a letter or a digit";
const VALUES_MESSAGE: &str = "must be there for In and NotIn, and for nothing else";

pub(crate) fn name_rule() -> Rule {
    Rule::new(format!("self.metadata.name == '{}'", labels::REALM_NAME))
        .message(Message::Message(format!("metadata.name {NAME_NOT_DEFAULT}")))
}

pub(crate) fn selector_rule() -> Rule {
    Rule::new(
        "(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && \
         self.matchExpressions.size() > 0)",
    )
    .message(EMPTY_SELECTOR)
}

pub(crate) fn label_keys_rule() -> Rule {
    Rule::new(format!(
        "self.all(key, key.size() <= {LABEL_KEY_CHARACTERS} && key.matches(r'{LABEL_KEY_PATTERN}'))"
    ))
    .message(Message::Message(format!("a key {LABEL_KEY_MESSAGE}")))
}

pub(crate) fn values_rule() -> Rule {
    Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)")
        .message(VALUES_MESSAGE)
        .field_path(".values")
}

pub(crate) fn placeholders_rule() -> Rule {
    pattern_rule(PLACEHOLDERS_PATTERN, PLACEHOLDERS_MESSAGE)
}

pub(crate) fn code_rule() -> Rule {
    pattern_rule(CODE_PATTERN, PartError::NoCode.to_string())
}

pub(crate) fn one_line_rule() -> Rule {
    pattern_rule(ONE_LINE_PATTERN, PartError::NotOneLine.to_string())
}

/// What a realm says, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RealmPolicy {
    /// Who asks for the code; the operator's own when absent.
    pub issuer: Option<String>,
    /// For how long a delivered code is accepted; the operator's own when absent.
    pub otp_lifetime: Option<OtpLifetime>,
    /// The namespaces that are named.
    pub names: BTreeSet<String>,
    /// What chooses more of them; never empty.
    pub selector: Option<Selector>,
    /// The Secret with the providers, in the realm's own namespace.
    pub delivery_secret: Option<String>,
    /// How often codes are made and sent.
    pub limits: LimitsPolicy,
    /// What is kept of each request.
    pub audit: AuditOverrides,
    /// What messages say; the operator's own when absent.
    pub message: Option<MessageTemplates>,
    /// Tokens; as the operator has them when absent.
    pub tokens: Option<TokenPolicy>,
    /// Whether answers keep to themselves who is a user; as the operator has it when absent.
    pub uniform_answers: Option<bool>,
}

impl RealmPolicy {
    /// Whether a namespace other than the realm's own is let in.
    #[must_use]
    pub fn lets_in(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.names.contains(namespace)
            || self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}

/// Whether this is the one realm of its namespace, going by its name.
#[must_use]
pub fn is_default(realm: &TwoFactorRealm) -> bool {
    realm.metadata.name.as_deref() == Some(labels::REALM_NAME)
}

/// Checks a realm and turns it into what the rest of the system works with.
///
/// # Errors
/// Every field that is wrong, in the order of the manifest.
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
    let message = spec.message.as_ref().map(|message| check_message(message, &mut findings));
    // One without any part says nothing.
    let message = message.filter(|message| *message != MessageTemplates::default());
    let tokens = spec.tokens.as_ref().and_then(|tokens| tokens::check(tokens, &mut findings));
    if findings.0.is_empty() {
        Ok(RealmPolicy {
            issuer: spec.issuer.clone(),
            otp_lifetime,
            names,
            selector,
            delivery_secret,
            limits,
            audit,
            message,
            tokens,
            uniform_answers: spec.uniform_answers,
        })
    } else {
        Err(findings.0)
    }
}

fn check_message(message: &MessageSpec, findings: &mut Findings) -> MessageTemplates {
    let mut templates = MessageTemplates::default();
    for (part, text) in [
        (Part::Subject, &message.subject),
        (Part::Text, &message.text),
        (Part::Html, &message.html),
        (Part::Sms, &message.sms),
    ] {
        if let Some(text) = text {
            let field = format!("spec.message.{}", part.field());
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

/// A name, after an optional DNS subdomain and a slash.
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
