//! Describes how a realm's tokens are signed, for which audiences and for how long. Sidecars make
//! the tokens themselves.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret::SecretText;
use crate::time::UnixMillis;

/// Minimum length of a key for HS256, in bytes: the length of the hash (RFC 7518 §3.2).
pub const SECRET_KEY_BYTES: usize = 32;
/// Length of an Ed25519 private key, in bytes (RFC 8032 §5.1.5).
pub const ED25519_BYTES: usize = 32;
/// The bytes before the key in PKCS #8 (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// How tokens are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenAlgorithm {
    /// HMAC with SHA-256 and a shared key, so that everyone who can check a token can also make
    /// one.
    #[default]
    #[serde(rename = "HS256")]
    Hs256,
    /// Ed25519, so that the public key is enough to check a token but not to make one.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl TokenAlgorithm {
    /// Both, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Hs256, Self::EdDsa];

    /// Returns the name in `ALGORITHM`, in manifests and in the header of a token.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// The audience of a token: 1 to 200 visible ASCII characters without quotes, backslashes and
/// commas.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Audience(String);

/// The reason why a text is not an audience.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 1 to 200 visible ASCII characters without quotes, backslashes and commas")]
pub struct AudienceError;

impl Audience {
    /// Maximum length of an audience.
    pub const MAXIMUM_CHARACTERS: usize = 200;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Audience {
    type Error = AudienceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\,".contains(&byte);
        let well_formed =
            (1..=Self::MAXIMUM_CHARACTERS).contains(&text.len()) && text.bytes().all(allowed);
        if well_formed { Ok(Self(text)) } else { Err(AudienceError) }
    }
}

impl std::str::FromStr for Audience {
    type Err = AudienceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<Audience> for String {
    fn from(audience: Audience) -> Self {
        audience.0
    }
}

/// The lifetime of a token: 1 to 300 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct TokenLifetime(u16);

/// A lifetime outside 1 to 300 seconds.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 1 to 300 seconds, not {0}")]
pub struct TokenLifetimeError(u16);

impl TokenLifetime {
    /// Maximum lifetime. It is short, because a token says that the user was present a moment ago.
    pub const MAXIMUM: Duration = Duration::from_mins(5);

    /// Returns the lifetime as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl Default for TokenLifetime {
    fn default() -> Self {
        Self(300)
    }
}

impl TryFrom<u16> for TokenLifetime {
    type Error = TokenLifetimeError;

    fn try_from(seconds: u16) -> Result<Self, Self::Error> {
        if (1..=300).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(TokenLifetimeError(seconds))
        }
    }
}

impl From<TokenLifetime> for u16 {
    fn from(lifetime: TokenLifetime) -> Self {
        lifetime.0
    }
}

/// An Ed25519 private key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SecretText", into = "SecretText")]
pub struct Ed25519Key(Zeroizing<[u8; ED25519_BYTES]>);

/// Reason why a text is not a key that can sign tokens. The message never contains the text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenKeyError {
    /// It is a shared key that is too short.
    #[error(
        "has {0} bytes, at least {SECRET_KEY_BYTES} are needed: make one with `openssl rand -base64 48`"
    )]
    TooShort(usize),
    /// It is not an Ed25519 private key.
    #[error(
        "must be an Ed25519 private key in PEM, as `openssl genpkey -algorithm ed25519` makes it, or its 32 bytes in base64"
    )]
    NotEd25519,
}

impl Ed25519Key {
    /// Wraps the bytes of a key.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; ED25519_BYTES]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// Parses PKCS #8 in PEM, or the bare key in base64.
    ///
    /// # Errors
    /// If it is neither.
    pub fn from_text(text: &str) -> Result<Self, TokenKeyError> {
        let body = match text.trim().strip_prefix("-----BEGIN PRIVATE KEY-----") {
            Some(rest) => rest.trim_end().strip_suffix("-----END PRIVATE KEY-----"),
            None => Some(text),
        };
        let body = body.ok_or(TokenKeyError::NotEd25519)?;
        // The memory is reserved at once, because growing would leave copies that are not wiped.
        let mut packed = Zeroizing::new(Vec::with_capacity(body.len()));
        packed.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
        let decoded =
            Zeroizing::new(BASE64.decode(&packed).map_err(|_| TokenKeyError::NotEd25519)?);
        let key = decoded.strip_prefix(PKCS8_PREFIX.as_slice()).unwrap_or(&decoded);
        let bytes: &[u8; ED25519_BYTES] = key.try_into().map_err(|_| TokenKeyError::NotEd25519)?;
        Ok(Self::from_bytes(bytes))
    }

    /// Returns the bytes. Each use of this method is a place to review.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8; ED25519_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Ed25519Key(redacted)")
    }
}

impl TryFrom<SecretText> for Ed25519Key {
    type Error = TokenKeyError;

    fn try_from(text: SecretText) -> Result<Self, Self::Error> {
        Self::from_text(text.expose_secret())
    }
}

impl From<Ed25519Key> for SecretText {
    fn from(key: Ed25519Key) -> Self {
        Self::new(BASE64.encode(key.0.as_slice()))
    }
}

/// The key that signs tokens. It is written as plain text only inside of a sealed record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "algorithm", content = "key")]
pub enum SigningKey {
    /// A shared key, which programs that check tokens have too.
    #[serde(rename = "HS256")]
    Hs256(SecretText),
    /// A private key, which no other program has.
    #[serde(rename = "EdDSA")]
    EdDsa(Ed25519Key),
}

impl SigningKey {
    /// Wraps a shared key.
    ///
    /// # Errors
    /// If it has fewer than [`SECRET_KEY_BYTES`].
    pub fn shared(text: SecretText) -> Result<Self, TokenKeyError> {
        match text.expose_secret().len() {
            length if length < SECRET_KEY_BYTES => Err(TokenKeyError::TooShort(length)),
            _ => Ok(Self::Hs256(text)),
        }
    }

    /// Returns the algorithm of the key.
    #[must_use]
    pub const fn algorithm(&self) -> TokenAlgorithm {
        match self {
            Self::Hs256(_) => TokenAlgorithm::Hs256,
            Self::EdDsa(_) => TokenAlgorithm::EdDsa,
        }
    }
}

/// A realm's tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSettings {
    /// The key that signs them.
    #[serde(flatten)]
    pub key: SigningKey,
    /// Their audiences. A request names one of them.
    pub audiences: BTreeSet<Audience>,
    /// Their lifetime.
    pub lifetime: TokenLifetime,
}

/// A public key that a realm signed tokens with, until the last of them has expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredKey {
    /// The Ed25519 public key in base64url without padding.
    pub x: String,
    /// The moment after which no token of this key is valid.
    pub until: UnixMillis,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410 §10.3.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const BARE: &str = "1O5y2/kTWErVttjx92n4rTr+fCjL8dT74Jeoj0R1WEI=";

    #[test]
    fn an_ed25519_key_is_read_from_pem_and_from_base64() {
        let key = Ed25519Key::from_text(PEM).unwrap();
        assert_eq!(key, Ed25519Key::from_text(BARE).unwrap());
        assert_eq!(key.expose_secret()[..4], [0xd4, 0xee, 0x72, 0xdb]);
        assert_eq!(format!("{key:?}"), "Ed25519Key(redacted)");
    }

    #[test]
    fn invalid_keys_are_rejected_and_not_repeated() {
        let rsa = PEM.replace("MC4CAQAwBQYDK2Vw", "MC4CAQAwBQYDK2Vu");
        for text in ["", "secret-value", &BARE[..40], &rsa, &PEM[..40], &PEM.replace("END", "and")]
        {
            let error = Ed25519Key::from_text(text).unwrap_err();
            assert!(!error.to_string().contains("secret-value"));
        }
        let error = SigningKey::shared(SecretText::new("short-secret".to_owned())).unwrap_err();
        assert_eq!(error, TokenKeyError::TooShort(12));
    }

    #[test]
    fn settings_come_back_from_a_record_as_they_were() {
        let shared = SigningKey::shared(SecretText::new("x".repeat(32))).unwrap();
        for key in [shared, SigningKey::EdDsa(Ed25519Key::from_text(BARE).unwrap())] {
            let settings = TokenSettings {
                key,
                audiences: ["kms".parse().unwrap()].into(),
                lifetime: TokenLifetime::default(),
            };
            let text = serde_json::to_string(&settings).unwrap();
            assert_eq!(serde_json::from_str::<TokenSettings>(&text).unwrap(), settings);
            assert!(!format!("{settings:?}").contains("xxx"), "{settings:?}");
        }
    }

    #[test]
    fn audiences_and_lifetimes_have_bounds() {
        for text in ["kms", "https://kms.example.org/", &"x".repeat(200)] {
            assert!(text.parse::<Audience>().is_ok(), "{text}");
        }
        for text in ["", "a b", "a,b", "a\"b", "ä", "a\n", &"x".repeat(201)] {
            assert!(text.parse::<Audience>().is_err(), "{text}");
        }
        assert!(TokenLifetime::try_from(0).is_err() && TokenLifetime::try_from(301).is_err());
        assert_eq!(TokenLifetime::try_from(300).unwrap().duration(), TokenLifetime::MAXIMUM);
    }
}
