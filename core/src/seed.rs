//! Holds the seed: the secret that a user's authenticator app and this system share. RFC 4226 calls
//! it the shared secret.
//!
//! A seed is generated or imported as base32 text. It has at least 160 bits, cannot be printed and
//! is wiped from memory when it is dropped.

use std::fmt;
use std::sync::LazyLock;

use data_encoding::{BASE32_NOPAD, Encoding};
use hmac::{Hmac, KeyInit, Mac};
use rand_core::CryptoRng;
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::secret::SecretText;

/// Minimum length of a seed, in bytes: the 160 bits that RFC 4226 §4 (R6) recommends.
pub const MINIMUM_BYTES: usize = 20;
/// Maximum length of a seed, in bytes: the block size of SHA-512. HMAC would only hash a longer one
/// first.
pub const MAXIMUM_BYTES: usize = 128;

/// Base32 as authenticator apps read it: the last bits of a text that are no whole byte are
/// dropped, whatever they are.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = BASE32_NOPAD.specification();
    specification.check_trailing_bits = false;
    specification.encoding().unwrap_or(BASE32_NOPAD)
});

/// A seed of [`MINIMUM_BYTES`] to [`MAXIMUM_BYTES`] bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(Zeroizing<Vec<u8>>);

/// Reason why a text is not a seed. The message never contains the text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SeedError {
    /// It is not RFC 4648 base32.
    #[error("is not base32: letters A to Z and digits 2 to 7 are allowed")]
    NotBase32,
    /// It has fewer than [`MINIMUM_BYTES`].
    #[error("has {bits} bits, at least 160 are needed (32 base32 characters)")]
    TooShort {
        /// Its length in bits.
        bits: usize,
    },
    /// It has more than [`MAXIMUM_BYTES`].
    #[error("has {bits} bits, at most 1024 are allowed")]
    TooLong {
        /// Its length in bits.
        bits: usize,
    },
}

impl Seed {
    /// Generates a seed of 160 bits.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new(vec![0; MINIMUM_BYTES]);
        random.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Derives the seed of codes that are requested in a context. Each context has its own code
    /// within a time step, so a code that was sent for one purpose is wrong for every other.
    #[must_use]
    pub fn in_context(&self, context: &Context) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(b"fountainai-2fa context\0");
        mac.update(context.as_str().as_bytes());
        Self(Zeroizing::new(mac.finalize().into_bytes().to_vec()))
    }

    /// Wraps raw bytes.
    ///
    /// # Errors
    /// If there are too few or too many.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, SeedError> {
        let bytes = Zeroizing::new(bytes);
        let bits = bytes.len() * 8;
        match bytes.len() {
            length if length < MINIMUM_BYTES => Err(SeedError::TooShort { bits }),
            length if length > MAXIMUM_BYTES => Err(SeedError::TooLong { bits }),
            _ => Ok(Self(bytes)),
        }
    }

    /// Parses RFC 4648 base32, which authenticators and other systems export: in either case, with
    /// or without `=` padding, and with white space or hyphens between groups. Last bits that are
    /// no whole byte are dropped, as authenticator apps do.
    ///
    /// # Errors
    /// If it is not base32, or too short or too long.
    pub fn from_base32(text: &str) -> Result<Self, SeedError> {
        // The memory is reserved at once, because growing would leave copies that are not wiped.
        let mut symbols = Zeroizing::new(Vec::with_capacity(text.len()));
        let is_separator = |c: char| c.is_whitespace() || c == '-';
        for symbol in text.chars().filter(|c| !is_separator(*c)) {
            // No letter outside of ASCII is a symbol.
            symbols.push(u8::try_from(symbol.to_ascii_uppercase()).unwrap_or_default());
        }
        let end = symbols.iter().rposition(|symbol| *symbol != b'=').map_or(0, |last| last + 1);
        let bytes = BASE32.decode(&symbols[..end]).map_err(|_| SeedError::NotBase32)?;
        Self::from_bytes(bytes)
    }

    /// Returns the seed as unpadded base32, which `otpauth` URIs and authenticators use.
    #[must_use]
    pub fn to_base32(&self) -> SecretText {
        SecretText::new(BASE32_NOPAD.encode(&self.0))
    }

    /// Returns the raw bytes. Each use of this method is a place to review.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Seed(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE32: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

    #[test]
    fn base32_is_read_in_the_forms_that_others_export() {
        let seed = Seed::from_base32(BASE32).unwrap();
        assert_eq!(seed.expose_secret(), b"12345678901234567890");
        for form in [
            "gezdgnbvgy3tqojqgezdgnbvgy3tqojq",
            "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ",
            "GEZD-GNBV-GY3T-QOJQ-GEZD-GNBV-GY3T-QOJQ\n",
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ====",
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ == ==",
            "\tGEZDGNBVGY3TQOJQ\r\nGEZDGNBVGY3TQOJQ\r\n",
            "GEZD\u{a0}GNBV\u{202f}GY3T QOJQ gezd-gnbv gy3t-qojq",
        ] {
            assert!(Seed::from_base32(form).unwrap() == seed);
        }
        assert_eq!(seed.to_base32().expose_secret(), BASE32);
    }

    #[test]
    fn text_that_is_not_base32_is_rejected() {
        for text in [
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ1",
            "0EZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ",
            "ÄZDG",
            "GEZ=DGNB",
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\u{130}",
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\u{146}A",
            // No number of bytes has one, three or six letters more than a multiple of eight.
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQG",
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZ",
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGN",
        ] {
            assert_eq!(Seed::from_base32(text).unwrap_err(), SeedError::NotBase32, "{text}");
        }
    }

    #[test]
    fn last_bits_that_are_no_whole_byte_are_dropped_as_apps_do() {
        for (text, same) in [
            // What `oathtool --totp -b` and pyotp read as the same seed.
            (&"X".repeat(52), &format!("{}Q", "X".repeat(51))),
            (&format!("{BASE32}GF"), &format!("{BASE32}GE")),
            (&format!("{BASE32}GEZB"), &format!("{BASE32}GEZA")),
            (&format!("{BASE32}GEZDH"), &format!("{BASE32}GEZDG")),
            (&format!("{BASE32}GEZDGNF"), &format!("{BASE32}GEZDGNA")),
        ] {
            assert!(Seed::from_base32(text).unwrap() == Seed::from_base32(same).unwrap(), "{text}");
        }
    }

    #[test]
    fn a_seed_of_less_than_160_bits_is_refused() {
        assert_eq!(Seed::from_base32("").unwrap_err(), SeedError::TooShort { bits: 0 });
        assert_eq!(
            Seed::from_base32("GEZDGNBVGY3TQOJQ").unwrap_err(),
            SeedError::TooShort { bits: 80 }
        );
        assert_eq!(Seed::from_bytes(vec![7; 19]).unwrap_err(), SeedError::TooShort { bits: 152 });
        assert_eq!(Seed::from_bytes(vec![7; 129]).unwrap_err(), SeedError::TooLong { bits: 1032 });
    }

    #[test]
    fn a_seed_is_never_printed() {
        let seed = Seed::from_base32(BASE32).unwrap();
        assert_eq!(
            format!("{seed:?} {:?}", seed.to_base32()),
            "Seed(redacted) SecretText(redacted)"
        );
    }
}
