//! Signs webhooks by the Standard Webhooks specification, so that a receiver can check where a
//! message comes from.

use std::fmt;

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret::SecretText;

const PREFIX: &str = "whsec_";
/// Allowed lengths of a secret in the specification, in bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Maximum number of secrets. Two are enough to replace one with another.
const MAXIMUM_SECRETS: usize = 4;

/// The secrets that sign messages. There are several while receivers change from one to the next.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SecretText", into = "SecretText")]
pub struct WebhookSecrets(Vec<Zeroizing<Vec<u8>>>);

/// Reason why a text contains no valid secrets. The message never contains the text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "must be whsec_ and 24 to 64 bytes in base64, or up to {MAXIMUM_SECRETS} of these with spaces between: make one with \
     `echo whsec_$(openssl rand -base64 32)`"
)]
pub struct WebhookSecretsError;

impl WebhookSecrets {
    /// Parses secrets in the form of the specification, separated by spaces.
    ///
    /// # Errors
    /// If one of them is invalid, or there is none.
    pub fn parse(text: &str) -> Result<Self, WebhookSecretsError> {
        let secrets: Option<Vec<_>> = text.split_ascii_whitespace().map(decode).collect();
        let secrets = secrets.ok_or(WebhookSecretsError)?;
        if (1..=MAXIMUM_SECRETS).contains(&secrets.len()) {
            Ok(Self(secrets))
        } else {
            Err(WebhookSecretsError)
        }
    }

    /// Returns the header `webhook-signature` of a message: one signature for each secret.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|secret| {
            let mut mac = keyed(secret);
            mac.update(id.as_bytes());
            mac.update(format!(".{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }

    /// Returns the header `webhook-id` of what `parts` identify. It is the same if the parts are
    /// the same, and does not reveal them.
    #[must_use]
    pub fn message_id(&self, parts: &[&[u8]]) -> String {
        let mut mac = keyed(self.0.first().map_or(&[], |secret| secret.as_slice()));
        mac.update(b"message id");
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        format!("msg_{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()[..18]))
    }
}

fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(secret)
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
}

fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let encoded = text.strip_prefix(PREFIX)?.trim_end_matches('=');
    let bytes = Zeroizing::new(BASE64_NOPAD.decode(encoded.as_bytes()).ok()?);
    SECRET_BYTES.contains(&bytes.len()).then_some(bytes)
}

impl TryFrom<SecretText> for WebhookSecrets {
    type Error = WebhookSecretsError;

    fn try_from(text: SecretText) -> Result<Self, Self::Error> {
        Self::parse(text.expose_secret())
    }
}

impl From<WebhookSecrets> for SecretText {
    fn from(secrets: WebhookSecrets) -> Self {
        let texts: Vec<String> =
            secrets.0.iter().map(|secret| format!("{PREFIX}{}", BASE64.encode(secret))).collect();
        Self::new(texts.join(" "))
    }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WebhookSecrets({}, redacted)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The secret and the message of the specification's example.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";

    #[test]
    fn the_example_of_the_specification_is_signed_as_it_says() {
        let secrets = WebhookSecrets::parse(SECRET).unwrap();
        assert_eq!(
            secrets.sign(ID, 1_614_265_330, br#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn with_several_secrets_there_are_several_signatures() {
        let other = format!("whsec_{}", BASE64.encode(&[7; 32]));
        let both = WebhookSecrets::parse(&format!("{other} {SECRET}")).unwrap();
        let alone = WebhookSecrets::parse(&other).unwrap();
        let (first, second) =
            (alone.sign(ID, 1, b"x"), WebhookSecrets::parse(SECRET).unwrap().sign(ID, 1, b"x"));
        assert_eq!(both.sign(ID, 1, b"x"), format!("{first} {second}"));
    }

    #[test]
    fn invalid_secrets_are_rejected_and_not_repeated() {
        let short = format!("whsec_{}", BASE64.encode(&[7; 23]));
        let long = format!("whsec_{}", BASE64.encode(&[7; 65]));
        let many = [SECRET; 5].join(" ");
        for text in
            ["", " ", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_!", &short, &long, &many]
        {
            let error = WebhookSecrets::parse(text).unwrap_err().to_string();
            assert!(!error.contains("MfKQ"), "{error}");
        }
    }

    #[test]
    fn secrets_come_back_from_a_record_and_are_not_printed() {
        let secrets = WebhookSecrets::parse(&format!("{SECRET} {SECRET}")).unwrap();
        let json = serde_json::to_string(&secrets).unwrap();
        assert_eq!(serde_json::from_str::<WebhookSecrets>(&json).unwrap(), secrets);
        assert_eq!(format!("{secrets:?}"), "WebhookSecrets(2, redacted)");
    }

    #[test]
    fn a_message_id_is_stable_and_tells_messages_apart() {
        let secrets = WebhookSecrets::parse(SECRET).unwrap();
        let id = |parts: &[&[u8]]| secrets.message_id(parts);
        assert_eq!(id(&[b"alice", b"1"]), id(&[b"alice", b"1"]));
        assert_ne!(id(&[b"alice", b"1"]), id(&[b"alice1", b""]));
        assert!(
            id(&[]).starts_with("msg_") && !id(&[]).contains('.'),
            "a dot separates it from the time"
        );
    }
}
