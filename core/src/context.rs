//! Validates the context of a code: a short text such as `transfer 100 to X`, which the user reads
//! in the message and the service repeats when it verifies the code.
//!
//! The text is untrusted. It may only have characters that are visible and are what they look like.

use std::fmt;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory as Category};
use icu_properties::{CodePointMapData, CodePointSetData};
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
    /// It has other characters than letters, digits, punctuation, symbols and spaces.
    #[error(
        "must have letters, digits, punctuation, symbols and spaces only: no line breaks, no invisible characters and no marks of text direction"
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
        if !is_printable(&text) {
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

/// Whether a text consists of allowed characters. With others, two texts that look the same could
/// differ, or `100` could be read as `001`.
fn is_printable(text: &str) -> bool {
    let mut before = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let allowed = match character {
            // The joiners form words of some scripts and pictures, and are invisible elsewhere.
            '\u{200c}' | '\u{200d}' => {
                before.is_some_and(is_joined) && characters.peek().copied().is_some_and(is_joined)
            }
            // Asks for the coloured picture of a symbol.
            '\u{fe0f}' => before.is_some_and(|before| class(before) == Class::Symbol),
            other => class(other) != Class::Other,
        };
        if !allowed {
            return false;
        }
        before = Some(character);
    }
    true
}

fn is_joined(character: char) -> bool {
    let presentation = character == '\u{fe0f}';
    !character.is_ascii()
        && (presentation || matches!(class(character), Class::Letter | Class::Symbol))
}

/// What a character is, as far as contexts are concerned.
#[derive(PartialEq, Eq)]
enum Class {
    /// A letter, or a mark on one.
    Letter,
    Symbol,
    /// A digit, a punctuation mark, or a space.
    Plain,
    /// Anything else, which is not allowed.
    Other,
}

fn class(character: char) -> Class {
    if CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(character) {
        return Class::Other;
    }
    match CodePointMapData::<Category>::new().get(character) {
        Category::UppercaseLetter
        | Category::LowercaseLetter
        | Category::TitlecaseLetter
        | Category::ModifierLetter
        | Category::OtherLetter
        | Category::NonspacingMark
        | Category::SpacingMark => Class::Letter,
        Category::CurrencySymbol
        | Category::MathSymbol
        | Category::ModifierSymbol
        | Category::OtherSymbol => Class::Symbol,
        Category::DecimalNumber
        | Category::LetterNumber
        | Category::OtherNumber
        | Category::ConnectorPunctuation
        | Category::DashPunctuation
        | Category::OpenPunctuation
        | Category::ClosePunctuation
        | Category::InitialPunctuation
        | Category::FinalPunctuation
        | Category::OtherPunctuation
        | Category::SpaceSeparator => Class::Plain,
        _ => Class::Other,
    }
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
            "cafe\u{301}",
            "1\u{202f}000\u{a0}€ – «№ 7»",
            "भुगतान १००",
            "می\u{200c}خواهم",
            "👩\u{200d}💻",
            "❤\u{fe0f}",
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
            "a\u{200c}b",
            "a\u{200d}",
            "\u{200d}ä",
            "ä\u{200d}1",
            "ä\u{200d}\u{200d}ä",
            "1\u{fe0f}",
            "\u{2800}\u{e000}",
            "\u{378}",
            "\u{3164}",
            "a\u{20dd}",
            "\u{fffc}\u{fff9}",
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
