//! Builds a message from the realm's templates and the values of one code.
//!
//! Whatever an administrator writes, a message contains the code, and the user sees what they
//! confirm with it.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::template::{self, Form, Placeholder, Template, TemplateError, Values};

/// The text before a context that is appended to a text without a placeholder for it.
const CONFIRMING: &str = "You confirm: ";

/// Maximum length of a text message. Providers reject longer ones.
const MAXIMUM_SMS_CHARACTERS: usize = 1600;

/// A part of a message that an administrator can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The subject of mails.
    Subject,
    /// The text of mails and webhooks.
    Text,
    /// The text of mails as HTML.
    Html,
    /// The text of text messages.
    Sms,
}

/// Reason why a text cannot be a part of a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PartError {
    /// It is empty.
    #[error("must not be empty: leave it out to use the default")]
    Empty,
    /// It is too long.
    #[error("has {found} characters, at most {most} are allowed")]
    TooLong {
        /// The number of characters.
        found: usize,
        /// The maximum number of characters.
        most: usize,
    },
    /// It is too long with the longest values.
    #[error(
        "has {found} characters with the longest values, and text messages have at most {MAXIMUM_SMS_CHARACTERS}"
    )]
    TooLongFilledIn {
        /// The number of characters with the longest values.
        found: usize,
    },
    /// It is a subject of several lines.
    #[error("must be one line, without control characters")]
    NotOneLine,
    /// It contains invisible characters.
    #[error("must not contain control characters other than line breaks and tabs")]
    ControlCharacter,
    /// It does not contain the code, so the message would be useless.
    #[error("must contain {{{{code}}}}")]
    NoCode,
    /// It is not a template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The templates of a realm's messages. Absent ones default to the contract's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageTemplates {
    /// The subject of mails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Template>,
    /// The text of mails and webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Template>,
    /// The text of mails as HTML. If absent, mails have no HTML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<Template>,
    /// The text of text messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sms: Option<Template>,
}

static SUBJECT: LazyLock<Template> = LazyLock::new(|| own("Your {{issuer}} OTP"));
static TEXT: LazyLock<Template> = LazyLock::new(|| {
    own(
        "Your {{issuer}} OTP: {{code}}\nIt expires at {{expires_at}}.\nIt was asked for by {{service}}.\n",
    )
});
static SMS: LazyLock<Template> = LazyLock::new(|| {
    own("Your {{issuer}} OTP: {{code}}\nIt expires at {{expires_at}}. Asked for by {{service}}.")
});

fn own(text: &str) -> Template {
    Template::parse(text)
        .unwrap_or_else(|_| unreachable!("the defaults are templates, as a test says"))
}

impl Part {
    /// Every part, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Subject, Self::Text, Self::Html, Self::Sms];

    /// Returns the name of the variable.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Subject => "MESSAGE_SUBJECT",
            Self::Text => "MESSAGE_TEXT",
            Self::Html => "MESSAGE_HTML",
            Self::Sms => "MESSAGE_SMS",
        }
    }

    /// Returns the name of the field in manifests.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Text => "text",
            Self::Html => "html",
            Self::Sms => "sms",
        }
    }

    /// Returns the maximum length, in characters.
    #[must_use]
    pub const fn longest(self) -> usize {
        match self {
            Self::Subject => 200,
            Self::Text => 4000,
            Self::Html => 16_000,
            Self::Sms => 1000,
        }
    }

    /// Parses what an administrator has written.
    ///
    /// # Errors
    /// Says what is invalid, as a sentence that begins with the name of the field.
    pub fn parse(self, text: &str) -> Result<Template, PartError> {
        // Files from Windows end their lines with two characters.
        let text = text.replace("\r\n", "\n");
        let (found, most) = (text.chars().count(), self.longest());
        if text.trim().is_empty() {
            return Err(PartError::Empty);
        }
        if found > most {
            return Err(PartError::TooLong { found, most });
        }
        let breaks = |c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}';
        if self == Self::Subject && text.contains(breaks) {
            return Err(PartError::NotOneLine);
        }
        if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
            return Err(PartError::ControlCharacter);
        }
        let template = Template::parse(&text)?;
        if self != Self::Subject && !template.has(Placeholder::Code) {
            return Err(PartError::NoCode);
        }
        let appended = if template.has(Placeholder::Context) {
            0
        } else {
            "\n".len() + CONFIRMING.len() + Placeholder::Context.longest()
        };
        let found = template.longest() + appended;
        if self == Self::Sms && found > MAXIMUM_SMS_CHARACTERS {
            return Err(PartError::TooLongFilledIn { found });
        }
        Ok(template)
    }
}

impl MessageTemplates {
    /// Returns these texts, with those of `fallback` for parts that are absent. The text and the
    /// HTML of a mail are one part, because they must say the same.
    #[must_use]
    pub fn over(self, fallback: &Self) -> Self {
        let has_mail = self.text.is_some() || self.html.is_some();
        let mail = if has_mail { &self } else { fallback };
        Self {
            text: mail.text.clone(),
            html: mail.html.clone(),
            subject: self.subject.or_else(|| fallback.subject.clone()),
            sms: self.sms.or_else(|| fallback.sms.clone()),
        }
    }

    /// Sets one of the parts.
    pub fn set(&mut self, part: Part, template: Option<Template>) {
        match part {
            Part::Subject => self.subject = template,
            Part::Text => self.text = template,
            Part::Html => self.html = template,
            Part::Sms => self.sms = template,
        }
    }

    /// Returns the subject of a mail, which is one line.
    #[must_use]
    pub fn subject(&self, values: &Values<'_>) -> String {
        self.subject.as_ref().unwrap_or(&SUBJECT).fill(values, Form::Plain)
    }

    /// Returns the text of a mail, which contains the code.
    #[must_use]
    pub fn text(&self, values: &Values<'_>) -> String {
        plain(self.text.as_ref().unwrap_or(&TEXT), values)
    }

    /// Returns the text of a mail as HTML.
    #[must_use]
    pub fn html(&self, values: &Values<'_>) -> Option<String> {
        let template = self.html.as_ref()?;
        let mut html = template.fill(values, Form::Html);
        if let Some(context) = appended_context(template, values) {
            let mut paragraph = format!("<p>{CONFIRMING}");
            template::push(&mut paragraph, &context, Form::Html);
            paragraph.push_str("</p>\n");
            // Values are escaped, so this closing tag is the administrator's.
            let end = html.rfind("</body>").unwrap_or(html.len());
            html.insert_str(end, &paragraph);
        }
        Some(html)
    }

    /// Returns a text message, which contains the code.
    #[must_use]
    pub fn sms(&self, values: &Values<'_>) -> String {
        plain(self.sms.as_ref().unwrap_or(&SMS), values).trim_end().to_owned()
    }
}

fn plain(template: &Template, values: &Values<'_>) -> String {
    let mut text = template.fill(values, Form::Plain);
    if let Some(context) = appended_context(template, values) {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(CONFIRMING);
        template::push(&mut text, &context, Form::Plain);
        text.push('\n');
    }
    text
}

/// Returns the context if the template does not say where it stands.
fn appended_context(template: &Template, values: &Values<'_>) -> Option<String> {
    if template.has(Placeholder::Context) { None } else { values.shown_context() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;

    fn with_values<T>(context: Option<&str>, work: impl FnOnce(&Values<'_>) -> T) -> T {
        let code = Code::parse("123456").unwrap();
        work(&Values {
            code: &code,
            expires_at: "2026-11-22T12:00:00Z",
            issuer: "FountainAI",
            username: "alice",
            service: "kms",
            context,
        })
    }

    fn templates(parts: &[(Part, &str)]) -> MessageTemplates {
        let mut templates = MessageTemplates::default();
        for (part, text) in parts {
            templates.set(*part, Some(part.parse(text).unwrap()));
        }
        templates
    }

    #[test]
    fn the_defaults_are_those_of_the_contract_and_name_the_service() {
        let defaults = MessageTemplates::default();
        with_values(None, |values| {
            assert_eq!(defaults.subject(values), "Your FountainAI OTP");
            assert_eq!(
                defaults.text(values),
                "Your FountainAI OTP: 123456\nIt expires at 2026-11-22T12:00:00Z.\nIt was asked for by kms.\n"
            );
            assert_eq!(defaults.html(values), None);
            let sms = "Your FountainAI OTP: 123456\nIt expires at 2026-11-22T12:00:00Z. Asked for by kms.";
            assert_eq!(defaults.sms(values), sms);
            // One text message of the alphabet that all phones know, for names of a usual length.
            assert!(sms.is_ascii() && sms.len() <= 160);
        });
        for (part, default) in [(Part::Subject, &SUBJECT), (Part::Text, &TEXT), (Part::Sms, &SMS)] {
            assert_eq!(part.parse(&default.to_string()).as_ref(), Ok(&**default));
        }
    }

    #[test]
    fn a_context_is_shown_where_the_template_says_or_at_the_end() {
        let context = Some("transfer 100 to <X>\r\nand more");
        let placed = templates(&[
            (Part::Text, "{{context}}: {{code}}"),
            (Part::Html, "<b>{{code}}</b> {{context}}"),
        ]);
        let other = templates(&[
            (Part::Text, "{{code}}"),
            (Part::Html, "<body>{{code}}</body>"),
            (Part::Sms, "{{code}}"),
        ]);
        with_values(context, |values| {
            let shown = "transfer 100 to <X>  and more";
            assert_eq!(placed.text(values), format!("{shown}: 123456"));
            assert_eq!(
                placed.html(values).unwrap(),
                "<b>123456</b> transfer 100 to &lt;X&gt;  and more"
            );
            assert_eq!(other.text(values), format!("123456\nYou confirm: {shown}\n"));
            assert_eq!(other.sms(values), format!("123456\nYou confirm: {shown}"));
            assert_eq!(
                other.html(values).unwrap(),
                "<body>123456<p>You confirm: transfer 100 to &lt;X&gt;  and more</p>\n</body>"
            );
            assert!(
                MessageTemplates::default()
                    .text(values)
                    .ends_with(&format!("You confirm: {shown}\n"))
            );
        });
        with_values(None, |values| assert_eq!(placed.text(values), ": 123456"));
    }

    #[test]
    fn a_link_in_a_context_cannot_be_clicked_in_any_part() {
        let placed = templates(&[
            (Part::Subject, "{{context}}"),
            (Part::Text, "{{context}} {{code}}"),
            (Part::Html, "<p>{{context}} {{code}}"),
            (Part::Sms, "{{context}} {{code}}"),
        ]);
        let appended = templates(&[(Part::Html, "{{code}}")]);
        with_values(Some("at https://evil.example/?a=b"), |values| {
            for templates in [placed, appended, MessageTemplates::default()] {
                let mut texts = vec![templates.text(values), templates.sms(values)];
                texts.extend(templates.html(values));
                texts.extend(templates.subject.is_some().then(|| templates.subject(values)));
                for text in texts {
                    assert!(text.contains("at https: //evil. example/?a=b"), "{text}");
                }
            }
        });
    }

    #[test]
    fn texts_of_a_language_fall_back_part_by_part() {
        let own = templates(&[
            (Part::Subject, "own"),
            (Part::Text, "own {{code}}"),
            (Part::Html, "<b>own {{code}}</b>"),
            (Part::Sms, "own {{code}}"),
        ]);
        assert_eq!(MessageTemplates::default().over(&own), own);
        assert_eq!(own.clone().over(&MessageTemplates::default()), own);
        let german = templates(&[(Part::Text, "Ihr Code: {{code}}")]).over(&own);
        assert_eq!(german.text.unwrap().to_string(), "Ihr Code: {{code}}");
        assert_eq!((german.html, german.subject, german.sms), (None, own.subject, own.sms));
    }

    #[test]
    fn each_mistake_has_a_message() {
        for (part, text, sentence) in [
            (Part::Text, " \n", "must not be empty: leave it out to use the default"),
            (Part::Text, "no code", "must contain {{code}}"),
            (Part::Html, "<b>{{expires_at}}</b>", "must contain {{code}}"),
            (Part::Sms, "{{service}}", "must contain {{code}}"),
            (Part::Subject, "a\nb", "must be one line, without control characters"),
            (Part::Subject, "a\rBcc: x", "must be one line, without control characters"),
            (Part::Subject, "a\u{2028}b", "must be one line, without control characters"),
            (
                Part::Text,
                "{{code}}\u{1b}[2J",
                "must not contain control characters other than line breaks and tabs",
            ),
            (Part::Text, "{{code}", "has {{ without }} at character 1"),
            (Part::Subject, &"x".repeat(201), "has 201 characters, at most 200 are allowed"),
            (
                Part::Sms,
                "{{code}}{{username}}{{username}}{{username}}{{username}}{{username}}{{username}}",
                "has 1750 characters with the longest values, and text messages have at most 1600",
            ),
        ] {
            assert_eq!(part.parse(text).unwrap_err().to_string(), sentence, "{text:?}");
        }
        assert!(matches!(
            Part::Text.parse("{{code}} {{otp}}"),
            Err(PartError::Template(TemplateError::Unknown { position: 10 }))
        ));
    }

    #[test]
    fn a_subject_needs_no_code_and_a_text_may_have_lines_of_any_system() {
        assert!(Part::Subject.parse("{{issuer}} for {{service}}").is_ok());
        assert_eq!(Part::Text.parse("a\r\n\t{{code}}\r\n").unwrap().to_string(), "a\n\t{{code}}\n");
    }
}
