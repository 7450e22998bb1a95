//! Why a code was not delivered. Enters: what went wrong, in a channel's words. Leaves: a word for
//! metrics, a sentence for the caller, and a line for the log; none of them holds a code, a
//! destination, a credential or what a provider wrote.

use std::error::Error;
use std::io;

use thiserror::Error;

/// Why a code was not delivered. What a caller learns is [`DeliveryError::reason`]; the rest is
/// logged.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// The provider's settings make no sense, or it does not accept the credentials.
    #[error("the provider is not configured as it should be: {0}")]
    Misconfigured(&'static str),
    /// The provider said no.
    #[error("the provider refused the message: {0}")]
    Refused(String),
    /// The provider has too much to do, or a problem of its own.
    #[error("the provider cannot take the message at the moment: {0}")]
    Deferred(String),
    /// There was no connection, so nothing can have been sent.
    #[error("the provider could not be reached: {0}")]
    Unreachable(String),
    /// No connection that codes may be sent over.
    #[error("there is no trusted connection to the provider: {0}")]
    Untrusted(String),
    /// The provider went away in the middle, or said something else than an answer: the message may
    /// have been sent.
    #[error("the provider broke off: {0}")]
    Broken(String),
    /// No answer within the time for a delivery.
    #[error("the provider did not answer in time")]
    TimedOut,
    /// As many deliveries are under way as there may be.
    #[error("too many deliveries are under way")]
    Overloaded,
}

impl DeliveryError {
    /// What may be said about it to a caller: no address, no credential, nothing that the provider
    /// wrote.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Misconfigured(_) => "the provider is not configured correctly.",
            Self::Refused(_) => "the provider refused it.",
            Self::Deferred(_) => "the provider cannot take it at the moment.",
            Self::Unreachable(_) => "the provider could not be reached.",
            Self::Untrusted(_) => "there is no trusted connection to the provider.",
            Self::Broken(_) => "the provider broke off.",
            Self::TimedOut => "the provider did not answer in time.",
            Self::Overloaded => "too many deliveries are under way.",
        }
    }

    /// The word in metrics.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Misconfigured(_) => "misconfigured",
            Self::Refused(_) => "refused",
            Self::Deferred(_) => "deferred",
            Self::Unreachable(_) => "unreachable",
            Self::Untrusted(_) => "untrusted",
            Self::Broken(_) => "broken-off",
            Self::TimedOut => "timed-out",
            Self::Overloaded => "overloaded",
        }
    }

    /// Whether it is certain that nothing was sent, and another try may be better.
    #[must_use]
    pub(super) const fn is_worth_another_try(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// Whether TLS is what went wrong: trying again is of no use.
pub(super) fn is_about_trust(error: &(dyn Error + 'static)) -> bool {
    let mut current = Some(error);
    while let Some(error) = current {
        if error.is::<rustls::Error>() {
            return true;
        }
        // What an error of a stream wraps is not among its sources.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        current = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
    }
    false
}

/// What lies at the bottom of an error, such as "Connection refused": without the addresses that
/// the layers above add.
pub(super) fn cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_recognized_inside_of_what_wraps_it() {
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert!(!is_about_trust(&io::Error::other(wrapped.to_string())));
        assert!(is_about_trust(&wrapped));
        assert!(is_about_trust(&io::Error::other(wrapped)));
        assert!(is_about_trust(&rustls::Error::DecryptError));
    }
}
