//! Delivery of codes. Enters: a user, the realm's providers and a message. Leaves: the message, on
//! its way, or why it is not.
//!
//! The destination comes from the user's record and from nowhere else. A channel is one file beside
//! this one and one line in [`channels`]; time, number and a second try are seen to here, for all
//! of them alike.

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
use twofactor_core::names::Caller;
use twofactor_core::realm::RealmRecord;
use twofactor_core::template::Values;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::{DeliveryMethod, UserDefinition};

pub use self::error::DeliveryError;

/// For a connection to a provider to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a whole delivery, a second try included.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Deliveries of one channel that are under way at the same time. Further ones are refused at once:
/// whoever waited behind so many would have their code too late.
const MOST_IN_FLIGHT: usize = 64;

/// Every channel, a line each.
fn channels() -> Vec<Box<dyn Channel>> {
    vec![
        Box::new(email::Email::default()),
        Box::new(sms::Sms::default()),
        Box::new(webhook::Webhook::default()),
    ]
}

/// A way to get codes to users.
trait Channel: fmt::Debug + Send + Sync {
    /// Whose codes go this way.
    fn method(&self) -> DeliveryMethod;

    /// Whether there is everything that is needed to send a code to this user. What cannot be sent
    /// is not issued.
    fn can_reach(&self, user: &UserDefinition, realm: &RealmRecord) -> bool;

    /// Sends one message. It may be dropped at any moment: nothing that it leaves behind may be
    /// used again.
    fn send<'a>(&'a self, order: &'a Order<'a>) -> Sending<'a>;
}

/// A delivery under way.
type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), DeliveryError>> + Send + 'a>>;

/// What is said to the user.
#[derive(Debug)]
pub struct Message<'a> {
    /// The code.
    pub code: &'a Code,
    /// Until when it is accepted.
    pub expires_at: UnixMillis,
    /// Who says it.
    pub issuer: &'a str,
    /// The service that asked for it.
    pub service: &'a Caller,
    /// What the user confirms with it, if the service said so.
    pub context: Option<&'a str>,
    /// The present moment.
    pub now: UnixMillis,
}

/// Everything that a channel needs for one delivery.
struct Order<'a> {
    user: &'a UserDefinition,
    realm: &'a RealmRecord,
    message: &'a Message<'a>,
    values: Values<'a>,
}

/// A moment as RFC 3339 has it, in UTC, with whole seconds.
#[must_use]
pub fn rfc3339(moment: UnixMillis) -> String {
    let seconds = i64::try_from(moment.seconds()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}

/// Sends codes in all ways that there are.
#[derive(Debug)]
pub struct Delivery {
    lines: Vec<Line>,
    /// Whether codes that no provider can take are shown on the console: for development only.
    console: bool,
}

/// A channel, and room for what is under way on it: one whose provider hangs does not hold up the
/// others.
#[derive(Debug)]
struct Line {
    channel: Box<dyn Channel>,
    room: Semaphore,
}

impl Delivery {
    /// Delivery through the realm's providers; with `console`, what none of them can take is shown
    /// on the console.
    #[must_use]
    pub fn new(console: bool) -> Self {
        Self::over(channels(), console)
    }

    fn over(channels: Vec<Box<dyn Channel>>, console: bool) -> Self {
        let line = |channel| Line { channel, room: Semaphore::new(MOST_IN_FLIGHT) };
        Self { lines: channels.into_iter().map(line).collect(), console }
    }

    /// Whether there is a way to send a code to this user.
    #[must_use]
    pub fn can_reach(&self, user: &UserDefinition, realm: &RealmRecord) -> bool {
        match user.delivery_method {
            // The user's authenticator computes the code; sending it as well would be a second,
            // weaker way.
            DeliveryMethod::App => false,
            _ => self.line(user, realm).is_some() || self.console,
        }
    }

    fn line(&self, user: &UserDefinition, realm: &RealmRecord) -> Option<&Line> {
        let line = self.lines.iter().find(|line| line.channel.method() == user.delivery_method)?;
        line.channel.can_reach(user, realm).then_some(line)
    }

    /// Sends a message to a user whom [`Delivery::can_reach`] says it can reach.
    ///
    /// # Errors
    /// When the provider does not take it, after ten seconds at the latest.
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
        let result = match self.line(user, realm) {
            Some(line) => line.send(&order).await,
            None if self.console && user.delivery_method != DeliveryMethod::App => {
                console::show(&order);
                Ok(())
            }
            None => Err(DeliveryError::Misconfigured("no provider for this delivery method")),
        };
        if let Err(error) = &result {
            let (channel, outcome) = (user.delivery_method.name(), error.outcome());
            tracing::warn!(channel, outcome, %error, "a code was not delivered");
        }
        result
    }
}

impl Line {
    async fn send(&self, order: &Order<'_>) -> Result<(), DeliveryError> {
        let Ok(_room) = self.room.try_acquire() else { return Err(DeliveryError::Overloaded) };
        let work = async {
            match self.channel.send(order).await {
                Err(error) if error.is_worth_another_try() => {
                    tracing::debug!(channel = self.channel.method().name(), %error, "trying once more");
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
