//! Validates who a user is and how codes reach them.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::host;
use crate::language::Language;
use crate::totp::TotpParameters;

/// A username: 1 to 253 characters, none of them a control character. It is compared exactly,
/// without trimming or case folding, so that no other spelling has its own failure count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Username(String);

/// The reason why a text is not a username.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum UsernameError {
    /// It is empty.
    #[error("must not be empty")]
    Empty,
    /// It has more than 253 characters.
    #[error("has {0} characters, at most 253 are allowed")]
    TooLong(usize),
    /// It has a character such as a line break or NUL.
    #[error("must not contain control characters")]
    ControlCharacter,
}

impl Username {
    /// Maximum length of a username, in characters.
    pub const MAXIMUM_CHARACTERS: usize = 253;

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Username {
    type Error = UsernameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let characters = text.chars().count();
        if characters == 0 {
            return Err(UsernameError::Empty);
        }
        if characters > Self::MAXIMUM_CHARACTERS {
            return Err(UsernameError::TooLong(characters));
        }
        if text.chars().any(char::is_control) {
            return Err(UsernameError::ControlCharacter);
        }
        Ok(Self(text))
    }
}

impl std::str::FromStr for Username {
    type Err = UsernameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<Username> for String {
    fn from(name: Username) -> Self {
        name.0
    }
}

impl fmt::Display for Username {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How a user gets codes. A user has only one delivery method, so that an attacker cannot choose
/// the weakest of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryMethod {
    /// By email, to the user's address.
    #[default]
    Email,
    /// By text message, to the user's phone number.
    Sms,
    /// By a signed HTTP request to the realm's webhook.
    Webhook,
    /// Codes are not delivered, because the user's authenticator app computes them.
    App,
}

impl DeliveryMethod {
    /// Every method, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Email, Self::Sms, Self::Webhook, Self::App];

    /// Returns the name in manifests, metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Sms => "sms",
            Self::Webhook => "webhook",
            Self::App => "app",
        }
    }
}

/// An email address that is safe to put in a message header and a recipient list: one `@`, no white
/// space, no control characters, no comma, at most 254 characters (RFC 5321 §4.5.3.1.3 less the
/// brackets). Only its mail server knows whether the mailbox exists.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EmailAddress(String);

/// A phone number in the international format of ITU-T E.164: `+`, then 7 to 15 digits, the first
/// not 0.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PhoneNumber(String);

/// The reason why a text is not an email address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("is not an email address: write it like name@example.org")]
pub struct EmailAddressError;

/// The reason why no mail server takes an address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "is an address that no mail server takes: each part of the domain has at most 63 characters, and begins and ends with a letter or a digit"
)]
pub struct UndeliverableAddress;

/// The reason why a text is not a phone number.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("is not a phone number in international format: write it like +4930123456, digits only")]
pub struct PhoneNumberError;

impl TryFrom<String> for EmailAddress {
    type Error = EmailAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let forbidden =
            |c: char| c.is_control() || c.is_whitespace() || ",;:<>()[]\"\\".contains(c);
        let well_formed = text.len() <= 254
            && !text.contains(forbidden)
            && text.split_once('@').is_some_and(|(mailbox, domain)| {
                let atoms = |text: &str| text.split('.').all(|atom| !atom.is_empty());
                mailbox.len() <= 64 && atoms(mailbox) && atoms(domain) && !domain.contains('@')
            });
        if well_formed { Ok(Self(text)) } else { Err(EmailAddressError) }
    }
}

impl TryFrom<String> for PhoneNumber {
    type Error = PhoneNumberError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let well_formed = text.strip_prefix('+').is_some_and(|digits| {
            (7..=15).contains(&digits.len())
                && !digits.starts_with('0')
                && digits.bytes().all(|byte| byte.is_ascii_digit())
        });
        if well_formed { Ok(Self(text)) } else { Err(PhoneNumberError) }
    }
}

impl EmailAddress {
    /// Returns the address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks that a mail server can take the address: its domain, in the form of the domain name
    /// system (A-labels), has labels of 1 to 63 letters, digits, hyphens and underscores, which
    /// begin and end with a letter or a digit, and at most 253 characters.
    ///
    /// This is not a part of the type, because records and manifests of users who get codes in
    /// another way may have such an address.
    ///
    /// # Errors
    /// If no mail server takes it.
    pub fn check_deliverable(&self) -> Result<(), UndeliverableAddress> {
        let (_, domain) = self.0.split_once('@').ok_or(UndeliverableAddress)?;
        host::to_ascii(domain).map(drop).ok_or(UndeliverableAddress)
    }
}

impl PhoneNumber {
    /// Returns the number.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<EmailAddress> for String {
    fn from(address: EmailAddress) -> Self {
        address.0
    }
}

impl From<PhoneNumber> for String {
    fn from(number: PhoneNumber) -> Self {
        number.0
    }
}

impl fmt::Debug for EmailAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("EmailAddress(redacted)")
    }
}

impl fmt::Debug for PhoneNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PhoneNumber(redacted)")
    }
}

/// Everything that an administrator has written about a user, validated, except the seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDefinition {
    /// The username, unique within the realm.
    pub username: Username,
    /// Whether services can verify the user. For a disabled user, they get the same answer as for
    /// an unknown one.
    pub enabled: bool,
    /// How this user gets codes.
    pub delivery_method: DeliveryMethod,
    /// The address for mail. Present if the method is email.
    pub email: Option<EmailAddress>,
    /// The number for text messages. Present if the method is SMS.
    pub phone_number: Option<PhoneNumber>,
    /// How codes are computed from the seed.
    pub totp: TotpParameters,
    /// The issuer that authenticator apps show. Defaults to the realm's issuer.
    pub issuer: Option<String>,
    /// The language of messages. Defaults to that of the realm's own texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<Language>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames_are_taken_exactly() {
        for name in ["alice", "Alice", " alice", "a{b}c", "Zoë", "名前", &"x".repeat(253)] {
            assert_eq!(name.parse::<Username>().unwrap().as_str(), name);
        }
        assert_eq!("".parse::<Username>().unwrap_err(), UsernameError::Empty);
        assert_eq!("x".repeat(300).parse::<Username>().unwrap_err(), UsernameError::TooLong(300));
        for name in ["a\nb", "a\0", "\u{7f}", "a\u{85}b"] {
            assert_eq!(name.parse::<Username>().unwrap_err(), UsernameError::ControlCharacter);
        }
    }

    #[test]
    fn addresses_that_could_inject_headers_or_recipients_are_refused() {
        assert!(EmailAddress::try_from("zoe+otp@example.org".to_owned()).is_ok());
        for text in [
            "",
            "alice",
            "@example.org",
            "alice@",
            "a@b@c",
            "a b@example.org",
            "a@example.org\r\nBcc: x@example.org",
            "a@example.org,b@example.org",
            "<a@example.org>",
            "a@example.org;b",
            "a:b@example.org",
            "a..b@example.org",
            ".a@example.org",
            "a@example.",
        ] {
            assert!(EmailAddress::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_whose_domain_cannot_exist_are_undeliverable() {
        let deliverable = |text: &str| {
            EmailAddress::try_from(text.to_owned()).unwrap().check_deliverable().is_ok()
        };
        let label = "a".repeat(63);
        for text in [
            "user@example.org",
            "user@EXAMPLE.org",
            "user@localhost",
            "user@1and1.example",
            "user@mail-1.example",
            "user@under_score.example",
            "user@bücher.example",
            "user@xn--bcher-kva.example",
            "user@例え.テスト",
            "zoë@example.org",
            &format!("user@{label}.example"),
        ] {
            assert!(deliverable(text), "{text}");
        }
        for text in [
            "user@-bad.example",
            "user@bad-.example",
            "user@a.-.example",
            "user@_dmarc.example",
            "user@a!b.example",
            "user@a'b.example",
            "user@a/b.example",
            &format!("user@{label}a.example"),
            &format!("user@{}.example", "ü".repeat(60)),
            &format!("user@{}example", "ü.".repeat(60)),
        ] {
            assert!(!deliverable(text), "{text}");
        }
    }

    #[test]
    fn phone_numbers_are_e164() {
        assert!(PhoneNumber::try_from("+4930123456".to_owned()).is_ok());
        for text in [
            "",
            "4930123456",
            "+0930123456",
            "+49 30 123456",
            "+49-30",
            "+123456",
            "+1234567890123456",
            "+４９３０１２３４５６",
        ] {
            assert!(PhoneNumber::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_are_not_printed() {
        let email = EmailAddress::try_from("alice@example.org".to_owned()).unwrap();
        assert!(!format!("{email:?}").contains("alice"));
    }
}
