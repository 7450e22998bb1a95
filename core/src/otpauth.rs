//! Builds the `otpauth://` URI that authenticator apps import (Google's key URI format). It
//! contains the seed, so it is a secret itself.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::secret::SecretText;
use crate::seed::Seed;
use crate::totp::TotpParameters;
use crate::user::Username;

/// All characters except the unreserved ones of RFC 3986 are escaped, because apps disagree on the
/// rest.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Builds the URI of a user's seed. The issuer is in the label and in the query, because old apps
/// read one and new apps the other.
#[must_use]
pub fn uri(
    username: &Username,
    issuer: &str,
    seed: &Seed,
    parameters: &TotpParameters,
) -> SecretText {
    let issuer = utf8_percent_encode(issuer, ESCAPED);
    let account = utf8_percent_encode(username.as_str(), ESCAPED);
    let secret = seed.to_base32();
    // The memory is reserved at once, because growing would leave copies of the seed behind.
    let mut uri = String::with_capacity(8192);
    write!(
        uri,
        "otpauth://totp/{issuer}:{account}?secret={}&issuer={issuer}&algorithm={}&digits={}&period={}",
        secret.expose_secret(),
        parameters.algorithm().name(),
        parameters.digits(),
        parameters.period(),
    )
    .unwrap_or_else(|_| unreachable!("writing to a String does not fail"));
    SecretText::new(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuer_is_in_label_and_query_and_everything_is_escaped() {
        let seed = Seed::from_bytes(b"12345678901234567890".to_vec()).unwrap();
        let username = "zoë {a}&b".parse().unwrap();
        let uri = uri(&username, "Fountain AI", &seed, &TotpParameters::default());
        assert_eq!(
            uri.expose_secret(),
            "otpauth://totp/Fountain%20AI:zo%C3%AB%20%7Ba%7D%26b?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\
             &issuer=Fountain%20AI&algorithm=SHA1&digits=6&period=30"
        );
    }
}
