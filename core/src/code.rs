//! Validates submitted one-time codes: six to eight ASCII digits.

use std::fmt;

use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Six to eight ASCII digits. Nothing is trimmed and digits of other alphabets are invalid, so that
/// a code has only one spelling.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Code {
    digits: [u8; 8],
    length: usize,
}

/// Reason why a text is not a code. The message never contains the text, which may be a user's code
/// with a typing error.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be a string of 6 to 8 ASCII digits, without spaces or other characters")]
pub struct CodeError;

impl Code {
    /// Parses a submitted code.
    ///
    /// # Errors
    /// If it is anything but 6 to 8 ASCII digits.
    pub fn parse(text: &str) -> Result<Self, CodeError> {
        let bytes = text.as_bytes();
        if !(6..=8).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_digit) {
            return Err(CodeError);
        }
        let mut digits = [0; 8];
        digits[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { digits, length: bytes.len() })
    }

    /// Returns the digits. Each use of this method is a place to review.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        // A `Code` holds ASCII digits only, so this conversion cannot fail.
        std::str::from_utf8(&self.digits[..self.length]).unwrap_or_default()
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Code(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_to_eight_ascii_digits_are_a_code() {
        for text in ["123456", "0000000", "98765432"] {
            assert_eq!(Code::parse(text).unwrap().expose_secret(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_and_never_normalized() {
        for text in [
            "",
            "12345",
            "123456789",
            " 123456",
            "123456 ",
            "123 456",
            "\t123456",
            "123456\n",
            "\u{a0}123456",
            "+12345",
            "12345a",
            "-12345",
            "１２３４５６",
            "١٢٣٤٥٦",
            "12３456",
            "1e5123",
        ] {
            assert_eq!(Code::parse(text).unwrap_err(), CodeError, "{text:?}");
        }
    }

    #[test]
    fn a_code_is_never_printed() {
        assert_eq!(format!("{:?}", Code::parse("123456").unwrap()), "Code(redacted)");
    }
}
