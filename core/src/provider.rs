//! Holds the settings of a realm's providers, which are a part of the realm's sealed record.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::secret::SecretText;
use crate::user::{DeliveryMethod, PhoneNumber};
use crate::webhook::WebhookSecrets;

/// Everything that takes codes to users. What is absent is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Providers {
    /// Absent: this realm sends no mail.
    #[serde(default)]
    pub smtp: Option<SmtpSettings>,
    /// Absent: this realm sends no text messages.
    #[serde(default)]
    pub twilio: Option<TwilioSettings>,
    /// Absent: this realm calls no webhook.
    #[serde(default)]
    pub webhook: Option<WebhookSettings>,
}

/// How the connection to the mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpSecurity {
    /// Plain at first, then upgraded; refused when the server does not offer it. Port 587.
    #[default]
    Starttls,
    /// TLS from the first byte. Port 465.
    Implicit,
    /// Not at all: codes travel in clear. Only where nobody can listen.
    Plain,
}

/// A mail server and how to log in to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmtpSettings {
    /// Host name, which its certificate must carry.
    pub server: String,
    /// TCP port.
    pub port: u16,
    /// How the connection is protected.
    pub security: SmtpSecurity,
    /// The account; no AUTH without one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<SecretText>,
    /// The sender: an address, or `Name <address>`.
    pub from: String,
    /// Certificates, in PEM, of the authority that the server's one is checked against in place of
    /// the system's.
    #[serde(default)]
    pub ca_certificates: Option<String>,
}

/// Where requests go over HTTP.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address: https, or http where that was allowed in so many words. It may hold a secret.
    pub url: SecretText,
    /// Certificates, in PEM, of the authority that the server's one is checked against in place of
    /// the system's.
    #[serde(default)]
    pub ca_certificates: Option<String>,
}

/// An account with Twilio, or with somebody who answers as Twilio does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwilioSettings {
    /// Whose API.
    pub api: Endpoint,
    /// The account.
    pub account_sid: String,
    /// Its password.
    pub auth_token: SecretText,
    /// Whom text messages come from.
    pub sender: TwilioSender,
}

/// Whom text messages come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TwilioSender {
    /// A number of the account.
    PhoneNumber(PhoneNumber),
    /// A messaging service of the account, which chooses one.
    MessagingService(String),
}

/// A receiver of signed requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSettings {
    /// The receiver.
    pub receiver: Endpoint,
    /// What requests are signed with.
    pub secrets: WebhookSecrets,
}

impl Providers {
    /// The delivery methods that there is a provider for.
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
    /// Whether what is sent there travels in clear.
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
