//! The rules of a realm.

use std::ops::RangeInclusive;

use kube::core::{Message, Rule};
use twofactor_core::audit::{MAXIMUM_ENTRIES, MAXIMUM_RETENTION_DAYS, MINIMUM_ENTRIES};
use twofactor_core::language::Language;
use twofactor_core::limits::{
    MAXIMUM_DELIVERIES_PER_HOUR, MAXIMUM_FAILURES_PER_DAY, MAXIMUM_GENERATES_PER_HOUR,
    MAXIMUM_INTERVAL_SECONDS,
};
use twofactor_core::message::{Part, PartError};

use super::{LANGUAGE_PATTERN, language_message, pattern_rule};
use crate::labels;

/// Allowed lifetimes of a delivered code, in minutes.
pub(crate) const EXPIRATION_MINUTES: RangeInclusive<i32> = 1..=10;
/// Maximum time without an operator, in seconds. It writes its heartbeat every five seconds, and
/// sidecars read it every ten.
pub(crate) const STALENESS_SECONDS: RangeInclusive<i32> = 30..=86_400;
/// Maximum number of namespaces that can be named.
pub(crate) const NAMES: usize = 256;
/// Maximum number of requirements of a selector, of each kind.
pub(crate) const REQUIREMENTS: usize = 16;
/// Maximum number of values of a requirement.
pub(crate) const VALUES: usize = 64;
/// Maximum length of a namespace's name.
pub(crate) const NAMESPACE_CHARACTERS: usize = 63;
/// Maximum length of a label's key: a prefix of 253 characters, a slash and a name of 63.
pub(crate) const LABEL_KEY_CHARACTERS: usize = 317;
/// Maximum length of a label's value.
pub(crate) const LABEL_VALUE_CHARACTERS: usize = 63;
/// Maximum length of a message's subject.
pub(crate) const SUBJECT_CHARACTERS: usize = Part::Subject.longest();
/// Maximum length of a message's text.
pub(crate) const TEXT_CHARACTERS: usize = Part::Text.longest();
/// Maximum length of a message's HTML.
pub(crate) const HTML_CHARACTERS: usize = Part::Html.longest();
/// Maximum length of a text message.
pub(crate) const SMS_CHARACTERS: usize = Part::Sms.longest();
/// Maximum number of languages of a realm's messages.
pub(crate) const LANGUAGES: usize = 8;
/// Allowed intervals between two codes for a user, in seconds.
pub(crate) const GENERATE_INTERVAL_SECONDS: RangeInclusive<i32> =
    0..=MAXIMUM_INTERVAL_SECONDS as i32;
/// Allowed numbers of codes for a user within an hour.
pub(crate) const GENERATES_PER_HOUR: RangeInclusive<i32> = 0..=MAXIMUM_GENERATES_PER_HOUR as i32;
/// Allowed numbers of codes that are sent for a realm within an hour.
pub(crate) const DELIVERIES_PER_HOUR: RangeInclusive<i32> =
    0..=MAXIMUM_DELIVERIES_PER_HOUR.cast_signed();
/// Allowed numbers of failures for a user within a day.
pub(crate) const FAILURES_PER_DAY: RangeInclusive<i32> = 0..=MAXIMUM_FAILURES_PER_DAY as i32;
/// Allowed numbers of days for which the users' histories are kept.
pub(crate) const RETENTION_DAYS: RangeInclusive<i32> = 1..=MAXIMUM_RETENTION_DAYS as i32;
/// Allowed numbers of entries of the users' histories.
pub(crate) const ENTRIES: RangeInclusive<i32> = MINIMUM_ENTRIES as i32..=MAXIMUM_ENTRIES as i32;

pub(crate) const NAMESPACE_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
pub(crate) const LABEL_KEY_PATTERN: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$";
pub(crate) const LABEL_VALUE_PATTERN: &str = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
/// Text in which two opening braces begin a known placeholder.
pub(crate) const PLACEHOLDERS_PATTERN: &str =
    r"^([^{]|\{[^{]|\{\{ *(code|expires_at|issuer|username|service|context) *\}\})*\{?$";
pub(crate) const CODE_PATTERN: &str = r"\{\{ *code *\}\}";
pub(crate) const ONE_LINE_PATTERN: &str = r"^[^\p{Cc}\p{Zl}\p{Zp}]*$";

pub(crate) const NAME_NOT_DEFAULT: &str = "must be default: there is one realm in a namespace";
pub(crate) const NAMESPACE_MESSAGE: &str =
    "is not the name of a namespace: at most 63 lower case letters, digits and hyphens are allowed";
pub(crate) const EMPTY_SELECTOR: &str =
    "must have matchLabels or matchExpressions: an empty selector would allow every namespace";
pub(crate) const LABEL_KEY_MESSAGE: &str =
    "is not the key of a label: write it like team or example.org/team";
pub(crate) const LABEL_VALUE_MESSAGE: &str = "is not the value of a label: at most 63 letters, digits, hyphens, underscores and dots are allowed, \
                                   the first and the last a letter or a digit";
pub(crate) const VALUES_MESSAGE: &str = "must be set for In and NotIn, and only for them";
const PLACEHOLDERS_MESSAGE: &str = "has {{ without }}, or an unknown placeholder: known are {{code}}, {{expires_at}}, \
                                    {{issuer}}, {{username}}, {{service}}, {{context}}";

pub(crate) fn name_rule() -> Rule {
    Rule::new(format!("self.metadata.name == '{}'", labels::REALM_NAME))
        .message(Message::Message(format!("metadata.name {NAME_NOT_DEFAULT}")))
}

pub(crate) fn languages_rule() -> Rule {
    let longest = Language::MAXIMUM_CHARACTERS;
    Rule::new(format!(
        "self.all(tag, tag.size() <= {longest} && tag.matches(r'{LANGUAGE_PATTERN}') && self.exists_one(other, \
         other.lowerAscii() == tag.lowerAscii()))"
    ))
    .message(Message::Message(format!("a key {}, each language once", language_message())))
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
