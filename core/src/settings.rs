//! A realm's policy and providers under the names that the original service gave its configuration.
//!
//! Enters: a way to look a variable up, be it the environment or a Secret. Leaves: the realm's record, or a
//! sentence that names the variable and says what would be right. No value is ever part of a sentence.

mod limits;

use thiserror::Error;

use crate::realm::{OtpLifetime, RealmRecord, SmtpSecurity, SmtpSettings};
use crate::secret::SecretText;
use crate::user::EmailAddress;

/// The fewest bytes of `SECRET_KEY`: an HS256 key is at least as long as the hash (RFC 7518 §3.2).
pub const SECRET_KEY_BYTES: usize = 32;

/// A variable that is missing or wrong.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{variable} {message}")]
pub struct SettingsError {
    /// The variable's name.
    pub variable: &'static str,
    /// What is wrong with it, as a sentence that goes on from the name.
    pub message: String,
}

/// The variables that tell how to reach providers.
pub const PROVIDERS: [&str; 7] = [
    "SMTP_SERVER",
    "SMTP_PORT",
    "SMTP_SECURITY",
    "SMTP_USERNAME",
    "SMTP_PASSWORD",
    "SMTP_FROM_EMAIL",
    "SMTP_CA",
];

fn wrong(variable: &'static str, message: impl Into<String>) -> SettingsError {
    SettingsError { variable, message: message.into() }
}

/// Reads a realm from the variables that `lookup` knows. An empty variable counts as absent.
///
/// # Errors
/// Names the first variable that is missing or wrong.
pub fn realm(lookup: impl Fn(&str) -> Option<String>) -> Result<RealmRecord, SettingsError> {
    let variable = |name: &str| lookup(name).filter(|text| !text.is_empty());
    if let Some(algorithm) = variable("ALGORITHM")
        && algorithm != "HS256"
    {
        return Err(wrong("ALGORITHM", "must be HS256"));
    }
    if let Some(key) = variable("SECRET_KEY").map(SecretText::new) {
        let length = key.expose_secret().len();
        if length < SECRET_KEY_BYTES {
            let message = format!(
                "has {length} bytes, at least {SECRET_KEY_BYTES} are needed: make one with `openssl rand -base64 48`"
            );
            return Err(wrong("SECRET_KEY", message));
        }
    }
    let defaults = RealmRecord::default();
    Ok(RealmRecord {
        issuer: issuer(variable("ISSUER"))?.unwrap_or(defaults.issuer),
        otp_lifetime: lifetime(variable("OTP_EXPIRATION_MINUTES"))?.unwrap_or(defaults.otp_lifetime),
        smtp: smtp(variable)?,
        callers: None,
        limits: limits::limits(variable)?,
        audit: limits::audit(variable)?,
    })
}

fn issuer(text: Option<String>) -> Result<Option<String>, SettingsError> {
    match text {
        Some(text)
            if text.chars().count() > 100 || text.contains(':') || text.chars().any(char::is_control) =>
        {
            Err(wrong("ISSUER", "must have at most 100 characters, no colon and no control characters"))
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

fn smtp(variable: impl Fn(&str) -> Option<String>) -> Result<Option<SmtpSettings>, SettingsError> {
    let Some(server) = variable("SMTP_SERVER") else { return Ok(None) };
    let port = match variable("SMTP_PORT") {
        None => 587,
        Some(text) => text
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| wrong("SMTP_PORT", "must be a port number from 1 to 65535"))?,
    };
    let security = match variable("SMTP_SECURITY").as_deref() {
        None if port == 465 => SmtpSecurity::Implicit,
        None | Some("starttls") => SmtpSecurity::Starttls,
        Some("implicit") => SmtpSecurity::Implicit,
        Some("plain") => SmtpSecurity::Plain,
        Some(_) => return Err(wrong("SMTP_SECURITY", "must be starttls, implicit or plain")),
    };
    let username = variable("SMTP_USERNAME");
    let password = variable("SMTP_PASSWORD").map(SecretText::new);
    match (&username, &password) {
        (Some(_), None) => return Err(wrong("SMTP_PASSWORD", "is missing, although SMTP_USERNAME is set")),
        (None, Some(_)) => return Err(wrong("SMTP_USERNAME", "is missing, although SMTP_PASSWORD is set")),
        _ => {}
    }
    if username.is_some() && security == SmtpSecurity::Plain {
        return Err(wrong(
            "SMTP_SECURITY",
            "must not be plain with SMTP_USERNAME: the password would travel in clear",
        ));
    }
    let from = variable("SMTP_FROM_EMAIL")
        .ok_or_else(|| wrong("SMTP_FROM_EMAIL", "is missing, although SMTP_SERVER is set"))?;
    if !is_sender(&from) {
        return Err(wrong(
            "SMTP_FROM_EMAIL",
            "must be an address like otp@example.org, or like Name <otp@example.org>",
        ));
    }
    Ok(Some(SmtpSettings {
        server,
        port,
        security,
        username,
        password,
        from,
        ca_certificates: variable("SMTP_CA"),
    }))
}

/// An address, or a name and an address in angle brackets.
fn is_sender(text: &str) -> bool {
    let address = match text.strip_suffix('>').and_then(|rest| rest.split_once('<')) {
        // What stands in a header unquoted (RFC 5322 §3.2.3), spaces between.
        Some((name, address)) if !name.chars().any(|c| c.is_control() || ",;:<>()[]\"\\@.".contains(c)) => {
            address
        }
        Some(_) => return false,
        None => text,
    };
    EmailAddress::try_from(address.to_owned()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<RealmRecord, SettingsError> {
        realm(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    const MAIL: [(&str, &str); 2] =
        [("SMTP_SERVER", "mail.example.org"), ("SMTP_FROM_EMAIL", "otp@example.org")];

    fn with_mail(more: &[(&'static str, &'static str)]) -> Result<RealmRecord, SettingsError> {
        read(&[more, MAIL.as_slice()].concat())
    }

    #[test]
    fn without_any_variable_the_defaults_of_the_contract_hold() {
        assert_eq!(read(&[]).unwrap(), RealmRecord::default());
        assert_eq!(read(&[("SMTP_SERVER", ""), ("SECRET_KEY", "")]).unwrap(), RealmRecord::default());
    }

    #[test]
    fn a_mail_server_needs_only_a_name_and_a_sender() {
        let smtp = with_mail(&[]).unwrap().smtp.unwrap();
        assert_eq!((smtp.port, smtp.security), (587, SmtpSecurity::Starttls));
        let smtp = with_mail(&[("SMTP_PORT", "465")]).unwrap().smtp.unwrap();
        assert_eq!(smtp.security, SmtpSecurity::Implicit);
    }

    #[test]
    fn what_is_wrong_is_named_and_never_repeated() {
        for (variables, variable) in [
            (&[("SECRET_KEY", "short-and-secret-value")][..], "SECRET_KEY"),
            (&[("ALGORITHM", "none")], "ALGORITHM"),
            (&[("OTP_EXPIRATION_MINUTES", "0")], "OTP_EXPIRATION_MINUTES"),
            (&[("OTP_EXPIRATION_MINUTES", "11")], "OTP_EXPIRATION_MINUTES"),
            (&[("OTP_EXPIRATION_MINUTES", "soon")], "OTP_EXPIRATION_MINUTES"),
            (&[("OTP_GENERATE_INTERVAL_SECONDS", "3601")], "OTP_GENERATE_INTERVAL_SECONDS"),
            (&[("OTP_GENERATES_PER_HOUR", "101")], "OTP_GENERATES_PER_HOUR"),
            (&[("OTP_DELIVERIES_PER_HOUR", "-1")], "OTP_DELIVERIES_PER_HOUR"),
            (&[("AUDIT_RETENTION_DAYS", "0")], "AUDIT_RETENTION_DAYS"),
            (&[("AUDIT_ORIGIN", "no")], "AUDIT_ORIGIN"),
            (&[("ISSUER", "a:b")], "ISSUER"),
            (&[("SMTP_PORT", "0")], "SMTP_PORT"),
            (&[("SMTP_SECURITY", "ssl")], "SMTP_SECURITY"),
            (&[("SMTP_USERNAME", "otp")], "SMTP_PASSWORD"),
            (&[("SMTP_PASSWORD", "very-secret-value")], "SMTP_USERNAME"),
            (
                &[
                    ("SMTP_USERNAME", "otp"),
                    ("SMTP_PASSWORD", "very-secret-value"),
                    ("SMTP_SECURITY", "plain"),
                ],
                "SMTP_SECURITY",
            ),
            (&[("SMTP_FROM_EMAIL", "nobody")], "SMTP_FROM_EMAIL"),
            (&[("SMTP_FROM_EMAIL", "A\r\nBcc: <x@example.org>")], "SMTP_FROM_EMAIL"),
        ] {
            let error = with_mail(variables).unwrap_err();
            assert_eq!(error.variable, variable);
            assert!(!error.to_string().contains("secret-value"), "{error}");
        }
        assert_eq!(read(&[("SMTP_SERVER", "mail.example.org")]).unwrap_err().variable, "SMTP_FROM_EMAIL");
    }

    #[test]
    fn a_sender_may_have_a_name() {
        assert!(with_mail(&[]).is_ok());
        let realm =
            read(&[("SMTP_SERVER", "m"), ("SMTP_FROM_EMAIL", "FountainAI <otp@example.org>")]).unwrap();
        assert_eq!(realm.smtp.unwrap().from, "FountainAI <otp@example.org>");
    }
}
