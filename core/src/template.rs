//! Fills values into texts that an administrator wrote, such as `Your code is {{code}}`. No value
//! can look like a line, a header or markup of its own.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::code::Code;

/// Something that is filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The code.
    Code,
    /// Until when it is accepted.
    ExpiresAt,
    /// Who says it.
    Issuer,
    /// Whom it is for.
    Username,
    /// The service that asked for it.
    Service,
    /// What is being confirmed with it; nothing where nobody said so.
    Context,
}

/// A text with placeholders, of which each is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Placeholder),
}

/// Why a text is not a template. The text itself is not part of the message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// Braces that begin a placeholder and no end.
    #[error("has {{{{ without }}}} at character {position}")]
    Unclosed {
        /// Where, from 1.
        position: usize,
    },
    /// A placeholder that there is not.
    #[error(
        "has a placeholder at character {position} that there is not: there are {}",
        Placeholder::list()
    )]
    Unknown {
        /// Where, from 1.
        position: usize,
    },
}

/// What one message is filled with.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The code.
    pub code: &'a Code,
    /// Until when it is accepted, as a text.
    pub expires_at: &'a str,
    /// Who says it.
    pub issuer: &'a str,
    /// Whom it is for.
    pub username: &'a str,
    /// The service that asked for it.
    pub service: &'a str,
    /// What is being confirmed with it.
    pub context: Option<&'a str>,
}

/// What a text is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Something that is shown as it is.
    Plain,
    /// HTML: values are escaped, so that they are text there, too.
    Html,
}

impl Placeholder {
    /// Every placeholder, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Code, Self::ExpiresAt, Self::Issuer, Self::Username, Self::Service, Self::Context];

    /// What stands between the braces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::ExpiresAt => "expires_at",
            Self::Issuer => "issuer",
            Self::Username => "username",
            Self::Service => "service",
            Self::Context => "context",
        }
    }

    /// The most characters that it can be filled with.
    #[must_use]
    pub const fn longest(self) -> usize {
        match self {
            Self::Code => 8,
            Self::ExpiresAt => 20,
            Self::Issuer => 100,
            Self::Username => 253,
            Self::Service => 63,
            Self::Context => 140,
        }
    }

    /// All of them, in a sentence.
    fn list() -> String {
        Self::ALL.map(|placeholder| format!("{{{{{}}}}}", placeholder.name())).join(", ")
    }
}

impl Values<'_> {
    fn of(&self, placeholder: Placeholder) -> &str {
        match placeholder {
            Placeholder::Code => self.code.expose_secret(),
            Placeholder::ExpiresAt => self.expires_at,
            Placeholder::Issuer => self.issuer,
            Placeholder::Username => self.username,
            Placeholder::Service => self.service,
            Placeholder::Context => self.context.unwrap_or_default(),
        }
    }
}

impl Template {
    /// Reads a text. Single braces, and two closing ones alone, stand for themselves: style sheets
    /// have them.
    ///
    /// # Errors
    /// Names the first place that is wrong, and the placeholders that there are.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            let position = text[..text.len() - rest.len() + start].chars().count() + 1;
            let inside = &rest[start + 2..];
            let end = inside.find("}}").ok_or(TemplateError::Unclosed { position })?;
            let name = inside[..end].trim_matches(' ');
            let placeholder = Placeholder::ALL
                .into_iter()
                .find(|placeholder| placeholder.name() == name)
                .ok_or(TemplateError::Unknown { position })?;
            if start > 0 {
                pieces.push(Piece::Text(rest[..start].to_owned()));
            }
            pieces.push(Piece::Value(placeholder));
            rest = &inside[end + 2..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// Whether this is filled in anywhere.
    #[must_use]
    pub fn has(&self, placeholder: Placeholder) -> bool {
        self.0.contains(&Piece::Value(placeholder))
    }

    /// The most characters that it can come to.
    #[must_use]
    pub fn longest(&self) -> usize {
        let lengths = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.chars().count(),
            Piece::Value(placeholder) => placeholder.longest(),
        });
        lengths.sum()
    }

    /// The text with its values.
    #[must_use]
    pub fn fill(&self, values: &Values<'_>, form: Form) -> String {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Value(placeholder) => push(&mut filled, values.of(*placeholder), form),
            }
        }
        filled
    }
}

/// Adds a value as what it is: a part of one line. Whatever ends a line or changes the direction of
/// writing becomes a space.
pub(crate) fn push(text: &mut String, value: &str, form: Form) {
    for character in value.chars() {
        match (character, form) {
            (character, _) if disturbs(character) => text.push(' '),
            ('&', Form::Html) => text.push_str("&amp;"),
            ('<', Form::Html) => text.push_str("&lt;"),
            ('>', Form::Html) => text.push_str("&gt;"),
            ('"', Form::Html) => text.push_str("&quot;"),
            ('\'', Form::Html) => text.push_str("&#39;"),
            (character, _) => text.push(character),
        }
    }
}

fn disturbs(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => formatter.write_str(text),
            Piece::Value(placeholder) => {
                formatter.write_str("{{")?;
                formatter.write_str(placeholder.name())?;
                formatter.write_char('}')?;
                formatter.write_char('}')
            }
        })
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, value: &str, form: Form) -> String {
        let code = Code::parse("123456").unwrap();
        let values = Values {
            code: &code,
            expires_at: "2026-11-22T12:00:00Z",
            issuer: value,
            username: value,
            service: "kms",
            context: None,
        };
        Template::parse(template).unwrap().fill(&values, form)
    }

    #[test]
    fn placeholders_are_filled_in_and_everything_else_stays() {
        assert_eq!(
            filled("{{code}} until {{ expires_at }}", "", Form::Plain),
            "123456 until 2026-11-22T12:00:00Z"
        );
        assert_eq!(filled("{a} }} { {{service}}{{context}}.", "", Form::Plain), "{a} }} { kms.");
        assert_eq!(filled("@media print{b{c:d}}", "", Form::Html), "@media print{b{c:d}}");
        assert_eq!(filled("", "", Form::Plain), "");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_not_repeated() {
        let error = Template::parse("Zoë {{code").unwrap_err();
        assert_eq!(error.to_string(), "has {{ without }} at character 5");
        for text in ["a {{secret}}", "a {{}}", "a {{Code}}", "a {{code }x}}", "a {{{code}}}"] {
            let error = Template::parse(text).unwrap_err();
            assert_eq!(error, TemplateError::Unknown { position: 3 }, "{text}");
            assert!(
                error.to_string().ends_with("{{username}}, {{service}}, {{context}}"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_value_is_never_a_placeholder_a_line_or_markup() {
        assert_eq!(filled("{{username}}", "{{code}}", Form::Plain), "{{code}}");
        for breaking in ["\r\n", "\n\u{85}", "\u{2028}\u{2029}", "\u{202e}\0", "\u{2066}\u{feff}"] {
            let value = format!("a{breaking}Bcc: x");
            assert_eq!(filled("{{issuer}}", &value, Form::Plain), "a  Bcc: x", "{breaking:?}");
        }
        assert_eq!(
            filled("<b title=\"{{username}}\">{{username}}</b>", "<i>'&\"", Form::Html),
            "<b title=\"&lt;i&gt;&#39;&amp;&quot;\">&lt;i&gt;&#39;&amp;&quot;</b>"
        );
    }

    #[test]
    fn a_template_comes_back_from_its_text() {
        for text in ["{{code}}", "a{{code}}b {{context}}", "}} {", ""] {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.to_string(), text);
            let json = serde_json::to_string(&template).unwrap();
            assert_eq!(serde_json::from_str::<Template>(&json).unwrap(), template);
        }
        assert!(serde_json::from_str::<Template>("\"{{x}}\"").is_err());
    }

    #[test]
    fn the_longest_text_is_counted_in_characters() {
        assert_eq!(Template::parse("ë{{code}}{{context}}").unwrap().longest(), 1 + 8 + 140);
    }
}
