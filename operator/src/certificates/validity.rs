//! Reads when a certificate begins and ends. No I/O.

use std::time::Duration;

use twofactor_core::time::UnixMillis;
use x509_parser::prelude::X509Certificate;

/// The time in which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub from: UnixMillis,
    /// The moment at which it expires.
    pub until: UnixMillis,
}

impl Validity {
    /// The validity of a certificate.
    #[must_use]
    pub fn of(certificate: &X509Certificate<'_>) -> Self {
        let moment = |seconds: i64| UnixMillis::from_seconds(u64::try_from(seconds).unwrap_or(0));
        let validity = certificate.validity();
        Self {
            from: moment(validity.not_before.timestamp()),
            until: moment(validity.not_after.timestamp()),
        }
    }

    /// Whether `now` is in it.
    #[must_use]
    pub fn contains(self, now: UnixMillis) -> bool {
        self.from <= now && now < self.until
    }

    /// The time from the beginning to the end.
    #[must_use]
    pub const fn lifetime(self) -> Duration {
        self.from.until(self.until)
    }
}
