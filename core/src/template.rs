//! Fills values into texts that an administrator wrote, such as `Your code is {{code}}`. No value
//! can look like a line, a header or markup of its own.

use std::borrow::Cow;
use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::code::Code;
use crate::context::Context;
use crate::links;

/// A placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The code.
    Code,
    /// The moment until which the code is accepted.
    ExpiresAt,
    /// The issuer.
    Issuer,
    /// The user.
    Username,
    /// The service that requested the code.
    Service,
    /// The context: what the user confirms with the code. Empty if the service has sent none.
    Context,
}

/// A text in which every placeholder is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Placeholder),
}

/// Reason why a text is not a template. The message never contains the text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// A placeholder has no end.
    #[error("has {{{{ without }}}} at character {position}")]
    Unclosed {
        /// The position, from 1.
        position: usize,
    },
    /// A placeholder is unknown.
    #[error(
        "has an unknown placeholder at character {position}: known are {}",
        Placeholder::list()
    )]
    Unknown {
        /// The position, from 1.
        position: usize,
    },
}

/// The values of one message.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The code.
    pub code: &'a Code,
    /// The moment until which the code is accepted, as a text.
    pub expires_at: &'a str,
    /// The issuer.
    pub issuer: &'a str,
    /// The user.
    pub username: &'a str,
    /// The service that requested the code.
    pub service: &'a str,
    /// What the user confirms with the code.
    pub context: Option<&'a str>,
}

/// How values are escaped in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Plain text.
    Plain,
    /// HTML, in which values are escaped so that they stay text.
    Html,
}

impl Placeholder {
    /// Every placeholder, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Code, Self::ExpiresAt, Self::Issuer, Self::Username, Self::Service, Self::Context];

    /// Returns the name between the braces.
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

    /// Returns the maximum length of its value, in characters.
    #[must_use]
    pub const fn longest(self) -> usize {
        match self {
            Self::Code => 8,
            Self::ExpiresAt => 20,
            Self::Issuer => 100,
            Self::Username => 253,
            Self::Service => 63,
            Self::Context => links::longest(Context::MAXIMUM_CHARACTERS),
        }
    }

    /// Returns a list of all placeholders for a sentence.
    fn list() -> String {
        Self::ALL.map(|placeholder| format!("{{{{{}}}}}", placeholder.name())).join(", ")
    }
}

impl Values<'_> {
    fn of(&self, placeholder: Placeholder) -> Cow<'_, str> {
        match placeholder {
            Placeholder::Code => self.code.expose_secret().into(),
            Placeholder::ExpiresAt => self.expires_at.into(),
            Placeholder::Issuer => self.issuer.into(),
            Placeholder::Username => self.username.into(),
            Placeholder::Service => self.service.into(),
            Placeholder::Context => self.shown_context().unwrap_or_default().into(),
        }
    }

    /// Returns the context as messages show it: no program makes a link of it.
    pub(crate) fn shown_context(&self) -> Option<String> {
        self.context.map(links::separated)
    }
}

impl Template {
    /// Parses a text. Single braces and two closing ones alone have no special meaning, because
    /// style sheets contain them.
    ///
    /// # Errors
    /// Names the first invalid position, and the known placeholders.
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

    /// Returns whether the text contains this placeholder.
    #[must_use]
    pub fn has(&self, placeholder: Placeholder) -> bool {
        self.0.contains(&Piece::Value(placeholder))
    }

    /// Returns the maximum length of the filled text, in characters.
    #[must_use]
    pub fn longest(&self) -> usize {
        let lengths = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.chars().count(),
            Piece::Value(placeholder) => placeholder.longest(),
        });
        lengths.sum()
    }

    /// Returns the text with values in place of placeholders.
    #[must_use]
    pub fn fill(&self, values: &Values<'_>, form: Form) -> String {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Value(placeholder) => push(&mut filled, &values.of(*placeholder), form),
            }
        }
        filled
    }
}

/// Appends a value as a part of one line: characters that end a line or change the direction of
/// writing become a space.
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
    fn template_errors_name_the_position_and_do_not_repeat_the_text() {
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
        assert_eq!(Template::parse("ë{{code}}{{context}}").unwrap().longest(), 1 + 8 + 210);
    }
}
