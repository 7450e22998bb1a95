//! Validates the context of a code: a short text such as `transfer 100 to X`, which the user reads
//! in the message and the service repeats when it verifies the code.
//!
//! The text is untrusted. It is rejected if it could look to people like something else than it is.

use std::fmt;

use thiserror::Error;

/// 1 to 140 printable characters. It is compared exactly.
///
/// It may name people and amounts, so it is shown to the user, but neither logged nor stored in
/// plain text.
#[derive(Clone, PartialEq, Eq)]
pub struct Context(String);

/// Reason why a text is not a context. The message never contains the text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ContextError {
    /// Nothing in it is visible.
    #[error("must have at least one visible character")]
    Empty,
    /// It has more than 140 characters.
    #[error("has {0} characters, at most 140 are allowed")]
    TooLong(usize),
    /// It has characters that are invisible, or that change how others look.
    #[error(
        "must not contain control characters, line breaks, invisible characters or marks of text direction"
    )]
    NotPrintable,
}

impl Context {
    /// Maximum length of a context, in characters.
    pub const MAXIMUM_CHARACTERS: usize = 140;

    /// Returns the text as the service sent it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Context {
    type Error = ContextError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let characters = text.chars().count();
        if characters > Self::MAXIMUM_CHARACTERS {
            return Err(ContextError::TooLong(characters));
        }
        if text.chars().any(misleads) {
            return Err(ContextError::NotPrintable);
        }
        if text.chars().all(char::is_whitespace) {
            return Err(ContextError::Empty);
        }
        Ok(Self(text))
    }
}

impl std::str::FromStr for Context {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

/// Whether a character is invisible or changes how others look. With one of these, two texts that
/// look the same could differ, or `100` could be read as `001`. The joiners U+200C and U+200D are
/// allowed, because scripts and emoji need them.
fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Soft hyphen, and fillers that are blank.
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}'
            // Marks, embeddings, overrides and isolates of direction.
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Of no width; line and paragraph separators; invisible operators.
            | '\u{180e}' | '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
            | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
            // Tags, and what has no agreed picture.
            | '\u{e0000}'..='\u{e0fff}' | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}'
        )
}

/// Does not print the text, because it is private to the user.
impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Context(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_contexts_are_accepted_exactly() {
        let longest = "x".repeat(140);
        for text in [
            "transfer 100 to X",
            "Überweise 100 €",
            " a ",
            "送金 100",
            "👩\u{200d}💻",
            "<b>&{{code}}",
            &longest,
        ] {
            assert_eq!(text.parse::<Context>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn unreadable_contexts_are_rejected() {
        for text in ["", "   ", "\u{a0}"] {
            assert_eq!(text.parse::<Context>().unwrap_err(), ContextError::Empty, "{text:?}");
        }
        assert_eq!("é".repeat(141).parse::<Context>().unwrap_err(), ContextError::TooLong(141));
        for text in [
            "a\nb",
            "a\tb",
            "a\0",
            "a\u{85}",
            "a\u{2028}b",
            "100\u{202e}001",
            "\u{2067}a",
            "a\u{200b}",
            "a\u{feff}",
            "a\u{ad}",
            "a\u{e0041}",
        ] {
            assert_eq!(
                text.parse::<Context>().unwrap_err(),
                ContextError::NotPrintable,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_context_is_not_printed() {
        assert_eq!(format!("{:?}", "to X".parse::<Context>().unwrap()), "Context(redacted)");
    }
}
