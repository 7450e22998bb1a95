//! Validates users: turns a [`TwoFactorUser`] into a [`UserDefinition`], or returns everything that
//! is invalid about it.

pub mod realm;
pub mod tokens;

use std::fmt;

use twofactor_core::language::Language;
use twofactor_core::totp::TotpParameters;
use twofactor_core::user::{DeliveryMethod, EmailAddress, PhoneNumber, UserDefinition, Username};

use crate::labels;
use crate::rules::user::{
    DIGITS, EMAIL_NEEDED, NAME_TOO_LONG, OWN_SECRET, PERIOD_SECONDS, PHONE_NUMBER_NEEDED,
    SECRET_KEY_MESSAGE, SKEW, USER_NAME_CHARACTERS,
};
use crate::rules::{ISSUER_CHARACTERS, ISSUER_MESSAGE, NAME_CHARACTERS, NAME_MESSAGE};
use crate::user::{SecretReference, TotpSpec, TwoFactorUser};

/// One invalid field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The path of the field in `kubectl explain`, such as `spec.email`.
    pub field: String,
    /// What is invalid, as a sentence that begins with the field's name. It never contains the
    /// value.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for FieldError {}

/// The errors that were found. Each check returns the valid value or adds an error, so that all
/// errors are reported.
#[derive(Default)]
struct Findings(Vec<FieldError>);

impl Findings {
    fn add(&mut self, field: &str, message: impl fmt::Display) {
        self.0.push(FieldError { field: field.to_owned(), message: message.to_string() });
    }

    fn keep<T, E: fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(field, error)).ok()
    }
}

/// Validates a user.
///
/// Only the API server can check that the username does not change, because that needs the previous
/// version of the object.
///
/// # Errors
/// Returns every invalid field, in the order of the manifest.
pub fn validate(user: &TwoFactorUser) -> Result<UserDefinition, Vec<FieldError>> {
    let mut findings = Findings::default();
    let spec = &user.spec;

    let name = user.metadata.name.as_deref();
    check_name(name, &mut findings);
    let username = match (&spec.username, name) {
        (Some(username), _) => findings.keep("spec.username", Username::try_from(username.clone())),
        // An invalid name was already reported.
        (None, name) => name.and_then(|name| name.parse().ok()),
    };

    let email = spec
        .email
        .as_ref()
        .and_then(|email| findings.keep("spec.email", EmailAddress::try_from(email.clone())));
    if spec.delivery_method == DeliveryMethod::Email {
        match &email {
            Some(email) => {
                findings.keep("spec.email", email.check_deliverable());
            }
            // An address that is none was already reported.
            None if spec.email.is_none() => findings.add("spec.email", EMAIL_NEEDED),
            None => {}
        }
    }

    let phone_number = spec.phone_number.as_ref().and_then(|number| {
        findings.keep("spec.phoneNumber", PhoneNumber::try_from(number.clone()))
    });
    if spec.delivery_method == DeliveryMethod::Sms && spec.phone_number.is_none() {
        findings.add("spec.phoneNumber", PHONE_NUMBER_NEEDED);
    }

    if let Some(reference) = &spec.secret_ref {
        check_secret_reference(reference, name, &mut findings);
    }
    let totp = check_totp(&spec.totp, &mut findings);
    if let Some(issuer) = &spec.issuer {
        findings.keep("spec.issuer", check_issuer(issuer, "realm"));
    }
    let locale = spec.locale.clone();
    let locale = locale.and_then(|locale| findings.keep("spec.locale", Language::try_from(locale)));

    match (username, totp) {
        (Some(username), Some(totp)) if findings.0.is_empty() => Ok(UserDefinition {
            username,
            enabled: spec.enabled,
            delivery_method: spec.delivery_method,
            email,
            phone_number,
            totp,
            issuer: spec.issuer.clone(),
            locale,
        }),
        _ => Err(findings.0),
    }
}

fn check_name(name: Option<&str>, findings: &mut Findings) {
    match name {
        None | Some("") => findings.add("metadata.name", "is missing"),
        Some(name) if name.len() > USER_NAME_CHARACTERS => {
            findings.add("metadata.name", NAME_TOO_LONG);
        }
        Some(name) if !is_object_name(name) => findings.add("metadata.name", NAME_MESSAGE),
        Some(_) => {}
    }
}

fn check_secret_reference(
    reference: &SecretReference,
    user: Option<&str>,
    findings: &mut Findings,
) {
    let SecretReference { name, key } = reference;
    if !is_object_name(name) {
        findings.add("spec.secretRef.name", NAME_MESSAGE);
    } else if user.is_some_and(|user| *name == labels::secret_name(user)) {
        findings.add("spec.secretRef.name", OWN_SECRET);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if key.is_empty() || key.len() > NAME_CHARACTERS || !key.bytes().all(allowed) {
        findings.add("spec.secretRef.key", SECRET_KEY_MESSAGE);
    }
}

fn check_totp(totp: &TotpSpec, findings: &mut Findings) -> Option<TotpParameters> {
    // The core checks these too, but it stops at the first error, and its types are too small for
    // every number in YAML.
    let before = findings.0.len();
    for (field, value, range) in [
        ("spec.totp.digits", totp.digits, DIGITS),
        ("spec.totp.periodSeconds", totp.period_seconds, PERIOD_SECONDS),
        ("spec.totp.skew", totp.skew, SKEW),
    ] {
        if !range.contains(&value) {
            findings.add(
                field,
                format_args!("must be {} to {}, not {value}", range.start(), range.end()),
            );
        }
    }
    if findings.0.len() > before {
        return None;
    }
    let digits = findings.keep("spec.totp.digits", u8::try_from(totp.digits))?;
    let period = findings.keep("spec.totp.periodSeconds", u32::try_from(totp.period_seconds))?;
    let skew = findings.keep("spec.totp.skew", u8::try_from(totp.skew))?;
    findings.keep("spec.totp", TotpParameters::new(totp.algorithm, digits, period, skew))
}

/// `fallback` names whose issuer is used if there is none.
fn check_issuer(issuer: &str, fallback: &str) -> Result<(), String> {
    let characters = issuer.chars().count();
    if characters == 0 {
        return Err(format!(
            "must not be empty: leave the field out to use the {fallback}'s issuer"
        ));
    }
    if characters > ISSUER_CHARACTERS {
        return Err(format!(
            "has {characters} characters, at most {ISSUER_CHARACTERS} are allowed"
        ));
    }
    if issuer.chars().any(|c| c == ':' || c.is_control()) {
        return Err(ISSUER_MESSAGE.to_owned());
    }
    Ok(())
}

/// Returns whether `name` is what Kubernetes calls a DNS-1123 subdomain.
fn is_object_name(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(|&byte| alphanumeric(byte))
            && bytes.last().is_some_and(|&byte| alphanumeric(byte))
            && bytes.iter().all(|&byte| byte == b'-' || alphanumeric(byte))
    };
    name.len() <= NAME_CHARACTERS && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests;
