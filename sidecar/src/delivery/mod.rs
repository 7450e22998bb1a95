//! Delivery of codes. Enters: a user, the realm's providers and a message. Leaves: the message, on its way.
//!
//! The destination comes from the user's record and from nowhere else. A channel is one file and one line in each
//! of the two `match`es here.

mod console;
mod email;

use thiserror::Error;
use twofactor_core::code::Code;
use twofactor_core::realm::RealmRecord;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::{DeliveryMethod, UserDefinition};

use self::email::EmailSender;

/// What is said to the user.
#[derive(Debug)]
pub struct Message<'a> {
    /// The code.
    pub code: &'a Code,
    /// Until when it is accepted.
    pub expires_at: UnixMillis,
    /// Who says it.
    pub issuer: &'a str,
}

/// Why a code was not delivered. What a caller learns is [`DeliveryError::reason`]; the rest is logged.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// The provider's settings make no sense, such as a sender that is not an address.
    #[error("the provider is not configured as it should be: {0}")]
    Misconfigured(&'static str),
    /// The provider said no.
    #[error("the provider refused the message: {0}")]
    Refused(String),
    /// The provider could not be reached, or broke off.
    #[error("the provider could not be reached: {0}")]
    Unreachable(String),
    /// No answer within the time for a delivery.
    #[error("the provider did not answer in time")]
    TimedOut,
}

impl DeliveryError {
    /// What may be said about it to a caller: no address, no credential, nothing that the provider wrote.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Misconfigured(_) => "the provider is not configured correctly.",
            Self::Refused(_) => "the provider refused it.",
            Self::Unreachable(_) => "the provider could not be reached.",
            Self::TimedOut => "the provider did not answer in time.",
        }
    }
}

impl Message<'_> {
    /// The subject, where the channel has one.
    fn subject(&self) -> String {
        format!("Your {} OTP", self.issuer)
    }

    /// The text. It holds the code.
    fn text(&self) -> String {
        format!(
            "Your {} OTP: {}\nIt expires at {}.\n",
            self.issuer,
            self.code.expose_secret(),
            rfc3339(self.expires_at)
        )
    }
}

/// A moment as RFC 3339 has it, in UTC, with whole seconds.
#[must_use]
pub fn rfc3339(moment: UnixMillis) -> String {
    let seconds = i64::try_from(moment.seconds()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}

/// Sends codes in all ways that there are.
#[derive(Debug, Default)]
pub struct Delivery {
    email: EmailSender,
    /// Whether codes that no provider can take are shown on the console: for development only.
    console: bool,
}

impl Delivery {
    /// Delivery through the realm's providers; with `console`, what none of them can take is shown on the console.
    #[must_use]
    pub fn new(console: bool) -> Self {
        Self { email: EmailSender::default(), console }
    }

    /// Whether there is a way to send a code to this user.
    #[must_use]
    pub fn can_reach(&self, user: &UserDefinition, realm: &RealmRecord) -> bool {
        match user.delivery_method {
            DeliveryMethod::Email => user.email.is_some() && (realm.providers.smtp.is_some() || self.console),
            DeliveryMethod::Sms | DeliveryMethod::Webhook => self.console,
            // The user's authenticator computes the code; sending it as well would be a second, weaker way.
            DeliveryMethod::App => false,
        }
    }

    /// Sends a message to a user whom [`Delivery::can_reach`] says it can reach.
    ///
    /// # Errors
    /// When the provider does not take it.
    pub async fn deliver(
        &self,
        user: &UserDefinition,
        realm: &RealmRecord,
        message: &Message<'_>,
    ) -> Result<(), DeliveryError> {
        let result = match (user.delivery_method, &user.email, &realm.providers.smtp) {
            (DeliveryMethod::Email, Some(address), Some(settings)) => {
                self.email.send(settings, address, message).await
            }
            _ if self.console => {
                console::show(user, message);
                Ok(())
            }
            _ => Err(DeliveryError::Misconfigured("no provider for this delivery method")),
        };
        if let Err(error) = &result {
            tracing::warn!(channel = user.delivery_method.name(), %error, "a code was not delivered");
        }
        result
    }
}
