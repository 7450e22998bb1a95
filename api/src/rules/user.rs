//! The rules of a user.

use std::ops::RangeInclusive;

use kube::core::{Message, Reason, Rule};
use twofactor_core::totp::Algorithm;
use twofactor_core::user::{EmailAddressError, PhoneNumberError, UndeliverableAddress};

use super::NAME_CHARACTERS;
use crate::labels;

/// Maximum length of a user's `metadata.name`. The name of the user's Secret is longer by a suffix.
pub(crate) const USER_NAME_CHARACTERS: usize = NAME_CHARACTERS - labels::SECRET_SUFFIX.len();
/// Maximum length of an email address, in characters (RFC 5321 §4.5.3.1.3 less the brackets).
pub(crate) const EMAIL_CHARACTERS: usize = 254;
/// Maximum length of a phone number: a plus sign and the 15 digits that E.164 allows.
pub(crate) const PHONE_NUMBER_CHARACTERS: usize = 16;
/// Allowed numbers of digits of a code.
pub(crate) const DIGITS: RangeInclusive<i32> = 6..=8;
/// Allowed durations of a step, in seconds.
pub(crate) const PERIOD_SECONDS: RangeInclusive<i32> = 15..=120;
/// Allowed numbers of codes that are accepted before and after the current one.
pub(crate) const SKEW: RangeInclusive<i32> = 0..=1;
/// The hash functions, in the order of the documentation.
pub(crate) const ALGORITHMS: [Algorithm; 3] =
    [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512];

pub(crate) const USERNAME_PATTERN: &str = r"^\P{Cc}*$";
pub(crate) const EMAIL_PATTERN: &str =
    r#"^[^\p{Cc}\p{Z},;:<>()\[\]"\\@]{1,64}@[^\p{Cc}\p{Z},;:<>()\[\]"\\@]+$"#;
/// Addresses that a mail server can take. The validation also knows the length of labels in the
/// form of the domain name system, which no pattern can compute.
pub(crate) const DELIVERABLE_PATTERN: &str = r"^[^.@]+(\.[^.@]+)*@[0-9A-Za-z\x{80}-\x{10FFFF}]([-_0-9A-Za-z\x{80}-\x{10FFFF}]{0,61}[0-9A-Za-z\x{80}-\x{10FFFF}])?(\.[0-9A-Za-z\x{80}-\x{10FFFF}]([-_0-9A-Za-z\x{80}-\x{10FFFF}]{0,61}[0-9A-Za-z\x{80}-\x{10FFFF}])?)*$";
/// Addresses whose domain ends like an IPv4 address.
pub(crate) const NUMERIC_PATTERN: &str = r"[@.][0-9]+$";
pub(crate) const PHONE_NUMBER_PATTERN: &str = r"^\+[1-9][0-9]{6,14}$";
pub(crate) const SECRET_KEY_PATTERN: &str = r"^[-._a-zA-Z0-9]+$";

pub(crate) const USERNAME_MESSAGE: &str = "must not contain control characters";
pub(crate) const SECRET_KEY_MESSAGE: &str =
    "is not a key of a Secret: letters, digits, hyphens, underscores and dots are allowed";
pub(crate) const EMAIL_NEEDED: &str = "is required if deliveryMethod is email";
pub(crate) const PHONE_NUMBER_NEEDED: &str = "is required if deliveryMethod is sms";
pub(crate) const USERNAME_IMMUTABLE: &str = "cannot be changed, added or removed: delete the user and create it again to use another username";
pub(crate) const OWN_SECRET: &str =
    "is the Secret that the operator writes for this user: import from another one";
pub(crate) const NAME_TOO_LONG: &str = "is too long: the name of a user has at most 248 characters";

pub(crate) fn email_message() -> String {
    EmailAddressError.to_string()
}

pub(crate) fn phone_number_message() -> String {
    PhoneNumberError.to_string()
}

pub(crate) fn username_rule() -> Rule {
    Rule::new(
        "has(self.username) == has(oldSelf.username) && (!has(self.username) || self.username == oldSelf.username)",
    )
    .message(USERNAME_IMMUTABLE)
    .field_path(".username")
    .reason(Reason::FieldValueForbidden)
}

pub(crate) fn email_needed_rule() -> Rule {
    Rule::new("self.deliveryMethod != 'email' || has(self.email)")
        .message(EMAIL_NEEDED)
        .field_path(".email")
        .reason(Reason::FieldValueRequired)
}

/// Only for users who get mail, because other users' objects may have any address from before.
pub(crate) fn email_deliverable_rule() -> Rule {
    Rule::new(format!(
        "self.deliveryMethod != 'email' || !has(self.email) || (self.email.matches(r'{DELIVERABLE_PATTERN}') && \
         !self.email.matches(r'{NUMERIC_PATTERN}'))"
    ))
    .message(Message::Message(UndeliverableAddress.to_string()))
    .field_path(".email")
}

pub(crate) fn phone_number_needed_rule() -> Rule {
    Rule::new("self.deliveryMethod != 'sms' || has(self.phoneNumber)")
        .message(PHONE_NUMBER_NEEDED)
        .field_path(".phoneNumber")
        .reason(Reason::FieldValueRequired)
}

pub(crate) fn name_rule() -> Rule {
    // `fieldPath` is missing because an API server accepts only fields of the schema there, and
    // `metadata` has none.
    Rule::new(format!("self.metadata.name.size() <= {USER_NAME_CHARACTERS}"))
        .message(Message::Message(format!("metadata.name {NAME_TOO_LONG}")))
}

pub(crate) fn own_secret_rule() -> Rule {
    Rule::new(format!(
        "!has(self.spec.secretRef) || self.spec.secretRef.name != self.metadata.name + '{}'",
        labels::SECRET_SUFFIX
    ))
    .message(OWN_SECRET)
    .field_path(".spec.secretRef.name")
}
