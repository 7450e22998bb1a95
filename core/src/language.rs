//! Names the languages of messages, and chooses the one for a user.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A language tag (BCP 47) such as `de` or `de-CH`: letters and digits in parts of 1 to 8, the
/// first of 2 to 8 letters, at most 35 characters. Tags are compared without case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Language(String);

/// Reason why a text is not a language tag.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("is not a language tag: write it like de or de-CH")]
pub struct LanguageError;

impl Language {
    /// Maximum length of a tag, in characters (RFC 5646 §4.4.1).
    pub const MAXIMUM_CHARACTERS: usize = 35;

    /// Returns the value for this language, or for the closest one that it is a variant of (the
    /// lookup of RFC 4647 §3.4): for `de-CH-1996` that of `de-CH`, or that of `de`.
    #[must_use]
    pub fn lookup<'a, T>(&self, values: &'a BTreeMap<Self, T>) -> Option<&'a T> {
        let mut tag = self.0.as_str();
        loop {
            if let Some(value) = values.get(&Self(tag.to_owned())) {
                return Some(value);
            }
            tag = tag.rsplit_once('-')?.0;
            // A part of one character only announces the parts after it.
            if let Some((shorter, last)) = tag.rsplit_once('-')
                && last.len() == 1
            {
                tag = shorter;
            }
        }
    }
}

impl TryFrom<String> for Language {
    type Error = LanguageError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_part = |part: &str| {
            (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let first = text.split('-').next().unwrap_or_default();
        let well_formed = text.len() <= Self::MAXIMUM_CHARACTERS
            && text.split('-').all(is_part)
            && first.len() >= 2
            && first.bytes().all(|byte| byte.is_ascii_alphabetic());
        if well_formed { Ok(Self(text.to_ascii_lowercase())) } else { Err(LanguageError) }
    }
}

impl From<Language> for String {
    fn from(language: Language) -> Self {
        language.0
    }
}

impl fmt::Display for Language {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(text: &str) -> Language {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn tags_are_read_without_case() {
        for text in ["de", "DE", "de-CH", "zh-Hant-TW", "gsw", "de-CH-x-phonebk", "es-419"] {
            assert_eq!(language(text).to_string(), text.to_ascii_lowercase());
        }
        for text in [
            "",
            "d",
            "de_DE",
            "de-",
            "-de",
            "de--CH",
            "de-CH ",
            "12",
            "dä",
            "de_DE.UTF-8",
            "*",
            &"de-".repeat(12),
        ] {
            assert_eq!(Language::try_from(text.to_owned()), Err(LanguageError), "{text}");
        }
    }

    #[test]
    fn the_closest_language_is_found() {
        let values = ["de", "de-CH", "zh-Hant", "en"].map(|tag| (language(tag), tag));
        let values = BTreeMap::from(values);
        for (tag, found) in [
            ("de", Some("de")),
            ("de-AT", Some("de")),
            ("DE-ch", Some("de-CH")),
            ("de-CH-1996", Some("de-CH")),
            ("de-CH-x-private", Some("de-CH")),
            ("zh-Hant-TW", Some("zh-Hant")),
            ("zh", None),
            ("zh-Hans-CN", None),
            ("fr", None),
            ("deu", None),
        ] {
            assert_eq!(language(tag).lookup(&values), found.as_ref(), "{tag}");
        }
    }
}
