//! Reads a realm's policy and providers from variables that have the names of the original service.
//!
//! The variables come from the environment or from a Secret. An error names the variable and says
//! what would be valid, and never contains a value.

pub mod certificates;
mod limits;
pub mod providers;
pub mod tokens;
pub mod variables;

use thiserror::Error;

use self::providers::providers;
use crate::message::{MessageTemplates, Part};
use crate::realm::{OtpLifetime, RealmRecord};

/// Maximum number of replicas that can be required.
const MAXIMUM_REPLICAS: u8 = 16;

/// A variable that is missing or invalid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{variable} {message}")]
pub struct SettingsError {
    /// The variable's name.
    pub variable: &'static str,
    /// What is invalid about it, as a sentence that begins with the name.
    pub message: String,
}

fn wrong(variable: &'static str, message: impl Into<String>) -> SettingsError {
    SettingsError { variable, message: message.into() }
}

/// Returns the value of a variable without the line breaks at its end, or `None` if nothing else is
/// in it. A Secret or a file that an editor or `echo` wrote ends with one.
fn given(mut text: String) -> Option<String> {
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Some(text).filter(|text| !text.is_empty())
}

/// Reads a realm from the variables that `lookup` knows. An empty variable counts as absent, and a
/// line break at the end of one is dropped.
///
/// # Errors
/// Names the first variable that is missing or invalid.
pub fn realm(lookup: impl Fn(&str) -> Option<String>) -> Result<RealmRecord, SettingsError> {
    let variable = |name: &str| lookup(name).and_then(given);
    let providers::Read { providers, errors } = providers(variable);
    if let Some((_, error)) = errors.into_iter().next() {
        return Err(error);
    }
    let defaults = RealmRecord::default();
    Ok(RealmRecord {
        issuer: issuer(variable("ISSUER"))?.unwrap_or(defaults.issuer),
        otp_lifetime: lifetime(variable("OTP_EXPIRATION_MINUTES"))?
            .unwrap_or(defaults.otp_lifetime),
        providers,
        message: message(variable)?,
        translations: defaults.translations,
        callers: None,
        limits: limits::limits(variable)?,
        audit: limits::audit(variable)?,
        tokens: tokens::tokens(variable)?,
        retired_keys: Vec::new(),
        max_staleness: None,
        uniform_answers: flag("UNIFORM_ANSWERS", variable)?,
        redis_wait: redis_wait(variable("REDIS_WAIT"))?,
    })
}

fn flag(
    name: &'static str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<bool, SettingsError> {
    match variable(name).as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(wrong(name, "must be true or false")),
    }
}

fn redis_wait(text: Option<String>) -> Result<u8, SettingsError> {
    let Some(text) = text else { return Ok(0) };
    let replicas = text.parse::<u8>().ok().filter(|replicas| *replicas <= MAXIMUM_REPLICAS);
    replicas.ok_or_else(|| {
        wrong("REDIS_WAIT", format!("must be a number of replicas from 0 to {MAXIMUM_REPLICAS}"))
    })
}

fn issuer(text: Option<String>) -> Result<Option<String>, SettingsError> {
    match text {
        Some(text)
            if text.chars().count() > 100
                || text.contains(':')
                || text.chars().any(char::is_control) =>
        {
            Err(wrong(
                "ISSUER",
                "must have at most 100 characters, no colon and no control characters",
            ))
        }
        other => Ok(other),
    }
}

fn lifetime(text: Option<String>) -> Result<Option<OtpLifetime>, SettingsError> {
    let Some(text) = text else { return Ok(None) };
    let minutes = text.parse::<u8>().ok().and_then(|minutes| OtpLifetime::try_from(minutes).ok());
    minutes
        .map(Some)
        .ok_or_else(|| wrong("OTP_EXPIRATION_MINUTES", "must be a number of minutes from 1 to 10"))
}

fn message(variable: impl Fn(&str) -> Option<String>) -> Result<MessageTemplates, SettingsError> {
    let mut templates = MessageTemplates::default();
    for part in Part::ALL {
        if let Some(text) = variable(part.variable()) {
            let template =
                part.parse(&text).map_err(|error| wrong(part.variable(), error.to_string()))?;
            templates.set(part, Some(template));
        }
    }
    Ok(templates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<RealmRecord, SettingsError> {
        realm(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_any_variable_the_defaults_of_the_contract_hold() {
        assert_eq!(read(&[]).unwrap(), RealmRecord::default());
        assert_eq!(
            read(&[("SMTP_SERVER", ""), ("SECRET_KEY", "")]).unwrap(),
            RealmRecord::default()
        );
    }

    #[test]
    fn invalid_values_are_named_and_never_repeated() {
        for (variables, variable) in [
            (&[("SECRET_KEY", "short-and-secret-value")][..], "SECRET_KEY"),
            (&[("ALGORITHM", "none")], "ALGORITHM"),
            (&[("UNIFORM_ANSWERS", "yes")], "UNIFORM_ANSWERS"),
            (&[("OTP_EXPIRATION_MINUTES", "0")], "OTP_EXPIRATION_MINUTES"),
            (&[("OTP_EXPIRATION_MINUTES", "11")], "OTP_EXPIRATION_MINUTES"),
            (&[("OTP_EXPIRATION_MINUTES", "soon")], "OTP_EXPIRATION_MINUTES"),
            (&[("OTP_GENERATE_INTERVAL_SECONDS", "3601")], "OTP_GENERATE_INTERVAL_SECONDS"),
            (&[("OTP_GENERATES_PER_HOUR", "101")], "OTP_GENERATES_PER_HOUR"),
            (&[("OTP_DELIVERIES_PER_HOUR", "-1")], "OTP_DELIVERIES_PER_HOUR"),
            (&[("AUDIT_RETENTION_DAYS", "0")], "AUDIT_RETENTION_DAYS"),
            (&[("AUDIT_ENTRIES", "501")], "AUDIT_ENTRIES"),
            (&[("AUDIT_ORIGIN", "no")], "AUDIT_ORIGIN"),
            (&[("ISSUER", "a:b")], "ISSUER"),
            (&[("SMTP_SERVER", "mail.example.org")], "SMTP_FROM_EMAIL"),
            (&[("TWILIO_AUTH_TOKEN", "very-secret-value")], "TWILIO_ACCOUNT_SID"),
            (&[("WEBHOOK_SECRET", "very-secret-value")], "WEBHOOK_URL"),
            (&[("MESSAGE_SUBJECT", "secret-value\nx")], "MESSAGE_SUBJECT"),
            (&[("MESSAGE_TEXT", "secret-value")], "MESSAGE_TEXT"),
            (&[("MESSAGE_HTML", "{{code}} {{secret-value}}")], "MESSAGE_HTML"),
            (&[("MESSAGE_SMS", "{{code")], "MESSAGE_SMS"),
            (&[("REDIS_WAIT", "-1")], "REDIS_WAIT"),
            (&[("REDIS_WAIT", "17")], "REDIS_WAIT"),
        ] {
            let error = read(variables).unwrap_err();
            assert_eq!(error.variable, variable);
            assert!(!error.to_string().contains("secret-value"), "{error}");
        }
    }

    #[test]
    fn a_line_break_at_the_end_is_dropped_from_every_variable() {
        let variables = [
            ("ISSUER", "A"),
            ("OTP_EXPIRATION_MINUTES", "3"),
            ("SECRET_KEY", "at least thirty-two bytes of a key"),
            ("TOKEN_AUDIENCES", "kms"),
            ("UNIFORM_ANSWERS", "true"),
            ("REDIS_WAIT", "1"),
            ("MESSAGE_SUBJECT", "For {{service}}"),
            ("SMTP_SERVER", "mail.example.org"),
            ("SMTP_FROM_EMAIL", "otp@example.org"),
        ];
        let ended = variables.map(|(name, value)| (name, format!("{value}\n")));
        let ended: Vec<_> = ended.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(read(&ended).unwrap(), read(&variables).unwrap());
    }

    #[test]
    fn variables_replace_the_texts_of_messages() {
        let realm = read(&[("MESSAGE_SUBJECT", "For {{service}}"), ("MESSAGE_SMS", "")]).unwrap();
        assert_eq!(realm.message.subject.unwrap().to_string(), "For {{service}}");
        assert_eq!((realm.message.text, realm.message.sms), (None, None));
    }
}
