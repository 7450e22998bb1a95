//! Why a code was not delivered: a word for metrics, a sentence for the caller and a line for the
//! log. None of them contains a code, a destination, a credential or what a provider wrote.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use thiserror::Error;

/// Why a code was not delivered. A caller gets [`DeliveryError::reason`]; the rest is logged.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// The provider's settings are invalid, or it does not accept the credentials.
    #[error("the provider is not configured as it should be: {0}")]
    Misconfigured(Cow<'static, str>),
    /// The provider refused the message.
    #[error("the provider refused the message: {0}")]
    Refused(String),
    /// The provider is overloaded or has a temporary failure.
    #[error("the provider cannot take the message at the moment: {0}")]
    Deferred(String),
    /// There was no connection, so nothing can have been sent.
    #[error("the provider could not be reached: {0}")]
    Unreachable(String),
    /// There is no connection that codes may be sent over.
    #[error("there is no trusted connection to the provider: {0}")]
    Untrusted(String),
    /// The connection broke, or the reply is invalid. The message may have been sent.
    #[error("the provider broke off: {0}")]
    Broken(String),
    /// The provider did not answer within the timeout. The message may have been sent.
    #[error("the provider did not answer in time")]
    TimedOut,
    /// The maximum number of deliveries at the same time is reached.
    #[error("too many deliveries are under way")]
    Overloaded,
}

impl DeliveryError {
    /// Returns the sentence for the caller.
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

    /// Returns the word in metrics.
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

    /// Whether it is certain that nothing was sent and another attempt may succeed.
    pub(super) const fn is_worth_another_try(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// Whether TLS has failed, so that another attempt would fail as well.
pub(super) fn is_about_trust(error: &(dyn Error + 'static)) -> bool {
    let mut current = Some(error);
    while let Some(error) = current {
        if error.is::<rustls::Error>() {
            return true;
        }
        // The error that an I/O error wraps is not among its sources.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        current = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
    }
    false
}

/// Returns the innermost cause of an error, such as "Connection refused", without the addresses
/// that outer errors add.
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
    fn a_tls_error_is_recognized_inside_other_errors() {
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert!(!is_about_trust(&io::Error::other(wrapped.to_string())));
        assert!(is_about_trust(&wrapped));
        assert!(is_about_trust(&io::Error::other(wrapped)));
        assert!(is_about_trust(&rustls::Error::DecryptError));
    }
}
