//! Delivers codes to users.
//!
//! The destination comes from the user's record and from nowhere else. A channel is one file beside
//! this one, its `mod` line, and one line in [`channels`]. The timeout, the maximum number of
//! deliveries and the second attempt are here, because they are the same for all channels.

mod console;
mod email;
mod error;
#[cfg(test)]
mod example;
mod http;
mod sms;
mod smtp;
mod webhook;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::Semaphore;
use twofactor_core::code::Code;
use twofactor_core::message::MessageTemplates;
use twofactor_core::names::Caller;
use twofactor_core::realm::RealmRecord;
use twofactor_core::template::Values;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::{DeliveryMethod, UserDefinition};

pub use self::error::DeliveryError;

/// Timeout for a connection to a provider.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout for a whole delivery, including a second attempt.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of deliveries of one channel at the same time. Further ones are refused at once,
/// because a user who had to wait for so many would get the code too late.
const MOST_IN_FLIGHT: usize = 64;

/// Returns every channel, one line each.
fn channels() -> Vec<Box<dyn Channel>> {
    vec![
        Box::new(email::Email::default()),
        Box::new(sms::Sms::default()),
        Box::new(webhook::Webhook::default()),
    ]
}

/// A way to get codes to users.
trait Channel: fmt::Debug + Send + Sync {
    /// Returns the delivery method of the users whose codes this channel sends.
    fn method(&self) -> DeliveryMethod;

    /// Whether a code can be sent to this user. A code that cannot be sent is not issued.
    fn can_reach(&self, user: &UserDefinition, realm: &RealmRecord) -> bool;

    /// Sends one message. The future may be dropped at any moment, so a connection that it used
    /// must not be used again unless it has finished.
    fn send<'a>(&'a self, order: &'a Order<'a>) -> Sending<'a>;
}

/// A delivery under way.
type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), DeliveryError>> + Send + 'a>>;

/// The content of a message.
#[derive(Debug)]
pub struct Message<'a> {
    /// The code.
    pub code: &'a Code,
    /// Until when the code is valid.
    pub expires_at: UnixMillis,
    /// The user's issuer, or the realm's.
    pub issuer: &'a str,
    /// The service that requested the code.
    pub service: &'a Caller,
    /// What the user confirms with the code, if the service named it.
    pub context: Option<&'a str>,
    /// The time of the message.
    pub now: UnixMillis,
}

/// What a channel needs for one delivery.
struct Order<'a> {
    user: &'a UserDefinition,
    realm: &'a RealmRecord,
    message: &'a Message<'a>,
    values: Values<'a>,
}

impl Order<'_> {
    /// Returns the texts in the user's language.
    fn texts(&self) -> &MessageTemplates {
        self.realm.message_of(self.user)
    }
}

/// Formats a moment by RFC 3339, in UTC with whole seconds.
pub fn rfc3339(moment: UnixMillis) -> String {
    let seconds = i64::try_from(moment.seconds()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}

/// Sends codes through all channels.
#[derive(Debug)]
pub struct Delivery {
    channels: Vec<LimitedChannel>,
    /// Whether codes without a provider are shown on the console, for development only.
    console: bool,
}

/// A channel with its own permits, so that a provider that hangs does not block other channels.
#[derive(Debug)]
struct LimitedChannel {
    channel: Box<dyn Channel>,
    permits: Semaphore,
}

impl Delivery {
    /// Delivers through the realm's providers. With `console`, codes without a provider are shown
    /// on the console.
    #[must_use]
    pub fn new(console: bool) -> Self {
        Self::over(channels(), console)
    }

    fn over(channels: Vec<Box<dyn Channel>>, console: bool) -> Self {
        let limited = |channel| LimitedChannel { channel, permits: Semaphore::new(MOST_IN_FLIGHT) };
        Self { channels: channels.into_iter().map(limited).collect(), console }
    }

    /// Whether a code can be sent to this user.
    #[must_use]
    pub fn can_reach(&self, user: &UserDefinition, realm: &RealmRecord) -> bool {
        match user.delivery_method {
            // The user's authenticator computes the code; sending it as well would be a second,
            // weaker factor.
            DeliveryMethod::App => false,
            _ => self.channel(user, realm).is_some() || self.console,
        }
    }

    fn channel(&self, user: &UserDefinition, realm: &RealmRecord) -> Option<&LimitedChannel> {
        let method = user.delivery_method;
        let limited = self.channels.iter().find(|limited| limited.channel.method() == method)?;
        limited.channel.can_reach(user, realm).then_some(limited)
    }

    /// Sends a message to a user who can be reached ([`Delivery::can_reach`]).
    ///
    /// # Errors
    /// If the provider does not accept the message, after ten seconds at the latest.
    pub async fn deliver(
        &self,
        user: &UserDefinition,
        realm: &RealmRecord,
        message: &Message<'_>,
    ) -> Result<(), DeliveryError> {
        let expires_at = rfc3339(message.expires_at);
        let values = Values {
            code: message.code,
            expires_at: &expires_at,
            issuer: message.issuer,
            username: user.username.as_str(),
            service: message.service.as_str(),
            context: message.context,
        };
        let order = Order { user, realm, message, values };
        let result = match self.channel(user, realm) {
            Some(channel) => channel.send(&order).await,
            None if self.console && user.delivery_method != DeliveryMethod::App => {
                console::show(&order);
                Ok(())
            }
            None => {
                Err(DeliveryError::Misconfigured("no provider for this delivery method".into()))
            }
        };
        if let Err(error) = &result {
            let (channel, outcome) = (user.delivery_method.name(), error.outcome());
            tracing::warn!(channel, outcome, %error, "code not delivered");
        }
        result
    }
}

impl LimitedChannel {
    async fn send(&self, order: &Order<'_>) -> Result<(), DeliveryError> {
        let Ok(_permit) = self.permits.try_acquire() else { return Err(DeliveryError::Overloaded) };
        let work = async {
            match self.channel.send(order).await {
                Err(error) if error.is_worth_another_try() => {
                    tracing::debug!(channel = self.channel.method().name(), %error, "delivery failed, trying again");
                    self.channel.send(order).await
                }
                result => result,
            }
        };
        tokio::time::timeout(DELIVERY_TIMEOUT, work).await.unwrap_or(Err(DeliveryError::TimedOut))
    }
}

#[cfg(test)]
mod tests;
