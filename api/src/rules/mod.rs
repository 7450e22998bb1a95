//! The rules that the schema and the validation share: constants, patterns, messages and CEL rules.
//!
//! An API server rejects what violates the schema, early and where the administrator sees it;
//! [`validate`](crate::validate) checks the same, because the rest of the system relies on it.
//! Patterns are matched by an API server only (RE2). The validation uses the types of the core
//! instead, and tests compare the two.

pub(crate) mod realm;
pub(crate) mod tokens;
pub(crate) mod user;

use kube::core::{Message, Rule};
use twofactor_core::language::LanguageError;

/// Maximum length of a Kubernetes object's name, and of a key of a Secret, in characters.
pub(crate) const NAME_CHARACTERS: usize = 253;
/// Maximum length of an issuer, in characters. Authenticator apps show it in one line.
pub(crate) const ISSUER_CHARACTERS: usize = 100;

pub(crate) const ISSUER_PATTERN: &str = r"^[^\p{Cc}:]*$";
pub(crate) const NAME_PATTERN: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

pub(crate) const ISSUER_MESSAGE: &str = "must not contain a colon or control characters";
pub(crate) const NAME_MESSAGE: &str = "is not the name of a Kubernetes object: lower case letters, digits, hyphens and dots are allowed";

/// Language tags (BCP 47).
pub(crate) const LANGUAGE_PATTERN: &str = "^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$";

pub(crate) fn language_message() -> String {
    LanguageError.to_string()
}

/// Builds a rule that says the same as the schema's `pattern`, which an API server quotes instead
/// of explaining it.
pub(crate) fn pattern_rule(pattern: &str, message: impl Into<String>) -> Rule {
    Rule::new(format!("self.matches(r'{pattern}')")).message(Message::Message(message.into()))
}
