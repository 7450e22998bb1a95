//! Holds the settings of a realm's providers, which are a part of the realm's sealed record.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::secret::SecretText;
use crate::user::{DeliveryMethod, PhoneNumber};
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
    /// The sender: an address, or `Name <address>`.
    pub from: String,
    /// Certificate authorities (PEM) of the server, in place of the system's.
    #[serde(default)]
    pub ca_certificates: Option<String>,
}

/// A URL that HTTP requests are sent to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The URL: https, or http if the administrator has explicitly allowed it. It may contain a
    /// secret.
    pub url: SecretText,
    /// Certificate authorities (PEM) of the server, in place of the system's.
    #[serde(default)]
    pub ca_certificates: Option<String>,
}

/// An account with Twilio, or with a provider that has the same API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwilioSettings {
    /// The API.
    pub api: Endpoint,
    /// The account.
    pub account_sid: String,
    /// Its password.
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
