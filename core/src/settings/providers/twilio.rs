//! Reads the settings of Twilio.

use super::{address, certificates, flag, proxy};
use crate::provider::{Endpoint, TwilioSender, TwilioSettings};
use crate::secret::SecretText;
use crate::settings::{SettingsError, wrong};
use crate::user::PhoneNumber;

/// URL of Twilio, unless an administrator sets another one.
const TWILIO: &str = "https://api.twilio.com";
/// Maximum length of an alphanumeric sender.
const LONGEST_SENDER: usize = 11;

const ACCOUNT: &str = "TWILIO_ACCOUNT_SID";
const TOKEN: &str = "TWILIO_AUTH_TOKEN";
const KEY: &str = "TWILIO_API_KEY";
const KEY_SECRET: &str = "TWILIO_API_SECRET";
const NUMBER: &str = "TWILIO_PHONE_NUMBER";
const SERVICE: &str = "TWILIO_MESSAGING_SERVICE_SID";

/// Returns the account with Twilio, or `None` without any of its variables.
pub(super) fn twilio(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<TwilioSettings>, SettingsError> {
    let named = [ACCOUNT, TOKEN, KEY, KEY_SECRET, NUMBER, SERVICE];
    // All are looked up, so that the list of variables can be compared with the code.
    if named.map(|name| variable(name).is_none()).into_iter().all(|is_absent| is_absent) {
        return Ok(None);
    }
    let account_sid =
        variable(ACCOUNT).ok_or_else(|| wrong(ACCOUNT, "is missing: Twilio needs it"))?;
    if account_sid.starts_with("SK") {
        return Err(wrong(
            ACCOUNT,
            "must begin with AC: an API key, which begins with SK, belongs in TWILIO_API_KEY",
        ));
    }
    // The value becomes a part of a path.
    if !is_sid(&account_sid, "AC") {
        return Err(wrong(ACCOUNT, "must be AC and 32 hexadecimal digits"));
    }
    let (api_key, auth_token) = login(variable(TOKEN), variable(KEY), variable(KEY_SECRET))?;
    let sender = sender(variable(NUMBER), variable(SERVICE))?;
    let url = variable("TWILIO_API_URL").unwrap_or_else(|| TWILIO.to_owned());
    let allow_http = flag("TWILIO_ALLOW_HTTP", variable("TWILIO_ALLOW_HTTP").as_deref())?;
    let url = address("TWILIO_API_URL", "TWILIO_ALLOW_HTTP", &url, allow_http)?;
    if url.query().is_some() {
        return Err(wrong(
            "TWILIO_API_URL",
            "must not have a query: the path of the API is added to it",
        ));
    }
    let proxy = proxy("TWILIO_PROXY", variable("TWILIO_PROXY"), &url)?;
    let api = Endpoint {
        url: SecretText::new(url.as_str().trim_end_matches('/').to_owned()),
        ca_certificates: certificates("TWILIO_CA", variable("TWILIO_CA"))?,
        proxy,
    };
    Ok(Some(TwilioSettings { api, account_sid, api_key, auth_token, sender }))
}

/// Returns the API key, if that logs in, and the password.
fn login(
    token: Option<String>,
    key: Option<String>,
    secret: Option<String>,
) -> Result<(Option<String>, SecretText), SettingsError> {
    let (name, key, password) = match (token, key, secret) {
        (Some(token), None, None) => (TOKEN, None, token),
        (None, Some(key), Some(secret)) => (KEY_SECRET, Some(key), secret),
        (Some(_), Some(_), _) => {
            return Err(wrong(KEY, "and TWILIO_AUTH_TOKEN exclude each other"));
        }
        (_, None, Some(_)) => {
            return Err(wrong(KEY, "is missing, although TWILIO_API_SECRET is set"));
        }
        (None, Some(_), None) => {
            return Err(wrong(KEY_SECRET, "is missing, although TWILIO_API_KEY is set"));
        }
        (None, None, None) => {
            let message = "is missing: Twilio needs it, or TWILIO_API_KEY and TWILIO_API_SECRET";
            return Err(wrong(TOKEN, message));
        }
    };
    if key.as_deref().is_some_and(|key| !is_sid(key, "SK")) {
        return Err(wrong(KEY, "must be SK and 32 hexadecimal digits"));
    }
    if !password.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(name, "must be letters and digits, without spaces or line breaks"));
    }
    Ok((key, SecretText::new(password)))
}

fn sender(number: Option<String>, service: Option<String>) -> Result<TwilioSender, SettingsError> {
    match (number, service) {
        (Some(_), Some(_)) => {
            let message =
                "and TWILIO_PHONE_NUMBER exclude each other: the service chooses the number";
            Err(wrong(SERVICE, message))
        }
        (Some(text), None) if is_short_code(&text) || is_name(&text) => {
            Ok(TwilioSender::Named(text))
        }
        (Some(text), None) => {
            PhoneNumber::try_from(text).map(TwilioSender::PhoneNumber).map_err(|_| {
                wrong(
                    NUMBER,
                    "must be a phone number like +15005550006, a short code of 3 to 8 digits, or a \
                     name of at most 11 letters, digits and spaces",
                )
            })
        }
        (None, Some(sid)) if is_sid(&sid, "MG") => Ok(TwilioSender::MessagingService(sid)),
        (None, Some(_)) => Err(wrong(SERVICE, "must be MG and 32 hexadecimal digits")),
        (None, None) => {
            let message =
                "is missing: text messages need a number, or TWILIO_MESSAGING_SERVICE_SID";
            Err(wrong(NUMBER, message))
        }
    }
}

fn is_short_code(text: &str) -> bool {
    (3..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks an alphanumeric sender, as Twilio does: at least one letter.
fn is_name(text: &str) -> bool {
    text.len() <= LONGEST_SENDER
        && text.trim() == text
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" &+-_".contains(&byte))
}

/// Checks an identifier of Twilio: two letters and 32 hexadecimal digits.
fn is_sid(text: &str, kind: &str) -> bool {
    text.strip_prefix(kind)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
