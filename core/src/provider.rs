//! Holds the settings of a realm's providers, which are a part of the realm's sealed record.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::secret::SecretText;
use crate::user::{DeliveryMethod, EmailAddress, PhoneNumber};
use crate::webhook::WebhookSecrets;

/// The providers that deliver codes. An absent provider is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Providers {
    /// Absent if this realm sends no mail.
    #[serde(default)]
    pub smtp: Option<SmtpSettings>,
    /// Absent if this realm sends no text messages.
    #[serde(default)]
    pub twilio: Option<TwilioSettings>,
    /// Absent if this realm calls no webhook.
    #[serde(default)]
    pub webhook: Option<WebhookSettings>,
}

/// How the connection to the mail server is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpSecurity {
    /// STARTTLS: plain at first, then upgraded. Fails if the server does not offer it. Port 587.
    #[default]
    Starttls,
    /// TLS from the first byte. Port 465.
    Implicit,
    /// Not at all, so codes are readable on the network. Only for a network that no one else can
    /// read.
    Plain,
}

/// A mail server, and how to log in to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmtpSettings {
    /// The host name, which the certificate must contain.
    pub server: String,
    /// TCP port.
    pub port: u16,
    /// How the connection is encrypted.
    pub security: SmtpSecurity,
    /// The account. Without one, the client does not log in.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<SecretText>,
    /// The sender of mails.
    pub from: Sender,
    /// The name in EHLO: a host name, or an IP address in brackets. Without one, the client uses
    /// the domain of the sender.
    #[serde(default)]
    pub ehlo_name: Option<String>,
    /// Certificate authorities (PEM) of the server, in place of the system's.
    #[serde(default)]
    pub ca_certificates: Option<String>,
}

/// The sender of mails: an address, with or without the name that mail programs show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sender {
    /// The name as a user reads it, without quotes. It contains no control characters.
    pub name: Option<String>,
    /// The address.
    pub address: EmailAddress,
}

/// A text that is neither an address nor a name with an address in angle brackets.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be an address like otp@example.org, or like Name <otp@example.org>")]
pub struct SenderError;

/// A URL that HTTP requests are sent to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The URL: https, or http if the administrator has explicitly allowed it. It may contain a
    /// secret.
    pub url: SecretText,
    /// Certificate authorities (PEM) of the server, in place of the system's.
    #[serde(default)]
    pub ca_certificates: Option<String>,
    /// HTTP proxy that connects to the server, `http://` with a host. The URL may contain a name
    /// and a password. Without a proxy, the connection is direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<SecretText>,
}

/// An account with Twilio, or with a provider that has the same API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwilioSettings {
    /// The API.
    pub api: Endpoint,
    /// The account that sends.
    pub account_sid: String,
    /// The API key that logs in. Without one, the account does.
    #[serde(default)]
    pub api_key: Option<String>,
    /// The password: the secret of the API key, or the account's token.
    pub auth_token: SecretText,
    /// The sender of text messages.
    pub sender: TwilioSender,
}

/// The sender of text messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TwilioSender {
    /// A number of the account.
    PhoneNumber(PhoneNumber),
    /// A short code of 3 to 8 digits, or a name of at most 11 characters.
    Named(String),
    /// A messaging service of the account, which chooses a number.
    MessagingService(String),
}

/// A receiver of signed requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSettings {
    /// The receiver.
    pub receiver: Endpoint,
    /// The secrets that sign requests.
    pub secrets: WebhookSecrets,
}

impl Providers {
    /// Returns the delivery methods that have a provider.
    #[must_use]
    pub fn methods(&self) -> Vec<DeliveryMethod> {
        let providers = [
            (DeliveryMethod::Email, self.smtp.is_some()),
            (DeliveryMethod::Sms, self.twilio.is_some()),
            (DeliveryMethod::Webhook, self.webhook.is_some()),
        ];
        providers.into_iter().filter(|(_, there)| *there).map(|(method, _)| method).collect()
    }
}

impl Sender {
    /// Returns the part of the address after the `@`.
    #[must_use]
    pub fn domain(&self) -> &str {
        self.address.as_str().rsplit('@').next().unwrap_or_default()
    }
}

impl FromStr for Sender {
    type Err = SenderError;

    /// Reads `address`, `Name <address>` and `"Name" <address>`. A name needs no quotes, whatever
    /// it contains, because the mail has them where they are needed.
    fn from_str(text: &str) -> Result<Self, SenderError> {
        let text = text.trim();
        let (name, address) = match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
            Some((name, address)) => (unquoted(name.trim()), address.trim()),
            None => (String::new(), text),
        };
        let address = EmailAddress::try_from(address.to_owned()).map_err(|_| SenderError)?;
        if name.chars().any(char::is_control) {
            return Err(SenderError);
        }
        Ok(Self { name: Some(name).filter(|name| !name.is_empty()), address })
    }
}

/// Removes the quotes around a name, and the backslashes in it (RFC 5322 §3.2.4).
fn unquoted(name: &str) -> String {
    let inside = name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let Some(inside) = inside else { return name.to_owned() };
    let mut characters = inside.chars();
    let mut unquoted = String::new();
    while let Some(character) = characters.next() {
        let escaped = if character == '\\' { characters.next() } else { None };
        unquoted.push(escaped.unwrap_or(character));
    }
    unquoted.trim().to_owned()
}

impl fmt::Display for Sender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.as_str();
        match &self.name {
            None => formatter.write_str(address),
            Some(name) => {
                let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
                write!(formatter, "\"{escaped}\" <{address}>")
            }
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl TryFrom<String> for Sender {
    type Error = SenderError;

    fn try_from(text: String) -> Result<Self, SenderError> {
        text.parse()
    }
}

impl From<Sender> for String {
    fn from(sender: Sender) -> Self {
        sender.to_string()
    }
}

impl Endpoint {
    /// Returns whether requests are sent without encryption.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        !self.url.expose_secret().starts_with("https:")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Endpoint(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_read_in_every_form_that_is_used_for_one() {
        for (text, name) in [
            ("otp@example.org", None),
            ("<otp@example.org>", None),
            (" FountainAI <otp@example.org> ", Some("FountainAI")),
            ("Smith, John <otp@example.org>", Some("Smith, John")),
            ("FountainAI Inc. <otp@example.org>", Some("FountainAI Inc.")),
            ("\"Smith, John\" <otp@example.org>", Some("Smith, John")),
            ("\"The \\\"Team\\\"\" <otp@example.org>", Some("The \"Team\"")),
            ("Grüße @ <Team> <otp@example.org>", Some("Grüße @ <Team>")),
        ] {
            let sender: Sender = text.parse().unwrap();
            assert_eq!(sender.name.as_deref(), name, "{text}");
            assert_eq!(sender.address.as_str(), "otp@example.org", "{text}");
            assert_eq!(sender.to_string().parse(), Ok(sender), "{text}");
        }
        for text in ["", "otp", "FountainAI otp@example.org", "A <otp>", "A\nB <otp@example.org>"] {
            assert_eq!(text.parse::<Sender>(), Err(SenderError), "{text}");
        }
    }
}
