//! Reads the settings of providers from variables that have the names of the original service. A
//! provider that cannot be used is reported with the first variable that is missing or invalid.

use url::Url;

use super::{SettingsError, wrong};
use crate::provider::{
    Endpoint, Providers, SmtpSecurity, SmtpSettings, TwilioSender, TwilioSettings, WebhookSettings,
};
use crate::secret::SecretText;
use crate::user::{DeliveryMethod, EmailAddress, PhoneNumber};
use crate::webhook::WebhookSecrets;

/// URL of Twilio, unless an administrator sets another one.
const TWILIO: &str = "https://api.twilio.com";

/// The providers whose settings are valid, and what is invalid about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The providers that can be used.
    pub providers: Providers,
    /// What is invalid about the others.
    pub errors: Vec<(DeliveryMethod, SettingsError)>,
}

/// Reads all providers. An empty variable counts as absent, and a provider without variables is
/// absent.
#[must_use]
pub fn providers(lookup: impl Fn(&str) -> Option<String>) -> Read {
    let variable = |name: &str| lookup(name).filter(|text| !text.is_empty());
    let mut errors = Vec::new();
    let mut keep = |method, error: SettingsError| errors.push((method, error));
    let providers = Providers {
        smtp: smtp(variable).unwrap_or_else(|error| {
            keep(DeliveryMethod::Email, error);
            None
        }),
        twilio: twilio(variable).unwrap_or_else(|error| {
            keep(DeliveryMethod::Sms, error);
            None
        }),
        webhook: webhook(variable).unwrap_or_else(|error| {
            keep(DeliveryMethod::Webhook, error);
            None
        }),
    };
    Read { providers, errors }
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
        (Some(_), None) => {
            return Err(wrong("SMTP_PASSWORD", "is missing, although SMTP_USERNAME is set"));
        }
        (None, Some(_)) => {
            return Err(wrong("SMTP_USERNAME", "is missing, although SMTP_PASSWORD is set"));
        }
        _ => {}
    }
    if username.is_some() && security == SmtpSecurity::Plain {
        return Err(wrong(
            "SMTP_SECURITY",
            "must not be plain with SMTP_USERNAME: the password would be sent unencrypted",
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
    let ca_certificates = certificates("SMTP_CA", variable("SMTP_CA"))?;
    Ok(Some(SmtpSettings { server, port, security, username, password, from, ca_certificates }))
}

/// An address, or a name and an address in angle brackets.
fn is_sender(text: &str) -> bool {
    let address = match text.strip_suffix('>').and_then(|rest| rest.split_once('<')) {
        // Only characters that may be unquoted in a header (RFC 5322 §3.2.3), and spaces between
        // them.
        Some((name, address))
            if !name.chars().any(|c| c.is_control() || ",;:<>()[]\"\\@.".contains(c)) =>
        {
            address
        }
        Some(_) => return false,
        None => text,
    };
    EmailAddress::try_from(address.to_owned()).is_ok()
}

fn twilio(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<TwilioSettings>, SettingsError> {
    let named = [
        "TWILIO_ACCOUNT_SID",
        "TWILIO_AUTH_TOKEN",
        "TWILIO_PHONE_NUMBER",
        "TWILIO_MESSAGING_SERVICE_SID",
    ];
    if named.iter().all(|name| variable(name).is_none()) {
        return Ok(None);
    }
    let needed = |name| variable(name).ok_or_else(|| wrong(name, "is missing: Twilio needs it"));
    let account_sid = needed("TWILIO_ACCOUNT_SID")?;
    // The value becomes a part of a path.
    if !is_sid(&account_sid, "AC") {
        return Err(wrong("TWILIO_ACCOUNT_SID", "must be AC and 32 hexadecimal digits"));
    }
    let auth_token = SecretText::new(needed("TWILIO_AUTH_TOKEN")?);
    if !auth_token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            "TWILIO_AUTH_TOKEN",
            "must be letters and digits, without spaces or line breaks",
        ));
    }
    let sender = match (variable("TWILIO_PHONE_NUMBER"), variable("TWILIO_MESSAGING_SERVICE_SID")) {
        (Some(_), Some(_)) => {
            let message =
                "and TWILIO_PHONE_NUMBER exclude each other: the service chooses the number";
            return Err(wrong("TWILIO_MESSAGING_SERVICE_SID", message));
        }
        (Some(number), None) => TwilioSender::PhoneNumber(
            PhoneNumber::try_from(number)
                .map_err(|error| wrong("TWILIO_PHONE_NUMBER", error.to_string()))?,
        ),
        (None, Some(sid)) if is_sid(&sid, "MG") => TwilioSender::MessagingService(sid),
        (None, Some(_)) => {
            return Err(wrong(
                "TWILIO_MESSAGING_SERVICE_SID",
                "must be MG and 32 hexadecimal digits",
            ));
        }
        (None, None) => {
            let message =
                "is missing: text messages need a number, or TWILIO_MESSAGING_SERVICE_SID";
            return Err(wrong("TWILIO_PHONE_NUMBER", message));
        }
    };
    let url = variable("TWILIO_API_URL").unwrap_or_else(|| TWILIO.to_owned());
    let allow_http = flag("TWILIO_ALLOW_HTTP", variable("TWILIO_ALLOW_HTTP").as_deref())?;
    let url = address("TWILIO_API_URL", "TWILIO_ALLOW_HTTP", &url, allow_http)?;
    if url.query().is_some() {
        return Err(wrong(
            "TWILIO_API_URL",
            "must not have a query: the path of the API is added to it",
        ));
    }
    let api = Endpoint {
        url: SecretText::new(url.as_str().trim_end_matches('/').to_owned()),
        ca_certificates: certificates("TWILIO_CA", variable("TWILIO_CA"))?,
    };
    Ok(Some(TwilioSettings { api, account_sid, auth_token, sender }))
}

/// Checks an identifier of Twilio: two letters and 32 hexadecimal digits.
fn is_sid(text: &str, kind: &str) -> bool {
    text.strip_prefix(kind)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn webhook(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<WebhookSettings>, SettingsError> {
    let (url, secret) =
        match (variable("WEBHOOK_URL"), variable("WEBHOOK_SECRET").map(SecretText::new)) {
            (None, None) => return Ok(None),
            (Some(_), None) => {
                return Err(wrong("WEBHOOK_SECRET", "is missing, although WEBHOOK_URL is set"));
            }
            (None, Some(_)) => {
                return Err(wrong("WEBHOOK_URL", "is missing, although WEBHOOK_SECRET is set"));
            }
            (Some(url), Some(secret)) => (url, secret),
        };
    let allow_http = flag("WEBHOOK_ALLOW_HTTP", variable("WEBHOOK_ALLOW_HTTP").as_deref())?;
    let url = address("WEBHOOK_URL", "WEBHOOK_ALLOW_HTTP", &url, allow_http)?;
    let secrets = WebhookSecrets::parse(secret.expose_secret())
        .map_err(|error| wrong("WEBHOOK_SECRET", error.to_string()))?;
    let receiver = Endpoint {
        url: SecretText::new(url.into()),
        ca_certificates: certificates("WEBHOOK_CA", variable("WEBHOOK_CA"))?,
    };
    Ok(Some(WebhookSettings { receiver, secrets }))
}

/// Reads a URL that requests can be sent to.
fn address(
    variable: &'static str,
    allowing: &'static str,
    text: &str,
    allow_http: bool,
) -> Result<Url, SettingsError> {
    let url = Url::parse(text)
        .map_err(|_| wrong(variable, "must be an address like https://otp.example.org/codes"))?;
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        "http" => {
            let message = format!(
                "must be https: with http, codes are sent unencrypted. {allowing}=true allows that"
            );
            return Err(wrong(variable, message));
        }
        _ => return Err(wrong(variable, "must begin with https://")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(variable, "must not hold a name or a password before the host"));
    }
    if url.fragment().is_some() {
        return Err(wrong(variable, "must not hold a #: what follows one is never sent"));
    }
    Ok(url)
}

fn flag(variable: &'static str, text: Option<&str>) -> Result<bool, SettingsError> {
    match text {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(wrong(variable, "must be true or false")),
    }
}

fn certificates(
    variable: &'static str,
    text: Option<String>,
) -> Result<Option<String>, SettingsError> {
    match text {
        Some(text) if !text.contains("-----BEGIN CERTIFICATE-----") => {
            Err(wrong(variable, "holds no certificate: it must be in PEM"))
        }
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIL: [(&str, &str); 2] =
        [("SMTP_SERVER", "mail.example.org"), ("SMTP_FROM_EMAIL", "otp@example.org")];
    const TWILIO: [(&str, &str); 3] = [
        ("TWILIO_ACCOUNT_SID", "AC0123456789abcdef0123456789abcdef"),
        ("TWILIO_AUTH_TOKEN", "very-secret-value"),
        ("TWILIO_PHONE_NUMBER", "+15005550006"),
    ];
    const WEBHOOK: [(&str, &str); 2] = [
        ("WEBHOOK_URL", "https://otp.example.org/codes?key=very-secret-value"),
        ("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ];

    /// The first of a name counts.
    fn read(variables: &[&[(&str, &str)]]) -> Read {
        let variables = variables.concat();
        providers(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_mail_server_needs_only_a_name_and_a_sender() {
        let smtp = |more| read(&[more, &MAIL]).providers.smtp.unwrap();
        assert_eq!((smtp(&[]).port, smtp(&[]).security), (587, SmtpSecurity::Starttls));
        assert_eq!(smtp(&[("SMTP_PORT", "465")]).security, SmtpSecurity::Implicit);
        let named = smtp(&[("SMTP_FROM_EMAIL", "FountainAI <otp@example.org>")]);
        assert_eq!(named.from, "FountainAI <otp@example.org>");
    }

    #[test]
    fn twilio_needs_an_account_and_a_sender() {
        let twilio = read(&[&TWILIO]).providers.twilio.unwrap();
        assert_eq!(twilio.api.url.expose_secret(), "https://api.twilio.com");
        assert!(matches!(twilio.sender, TwilioSender::PhoneNumber(_)));
        let service = ("TWILIO_MESSAGING_SERVICE_SID", "MG0123456789abcdef0123456789abcdef");
        let twilio =
            read(&[&[("TWILIO_PHONE_NUMBER", ""), service], &TWILIO]).providers.twilio.unwrap();
        assert_eq!(twilio.sender, TwilioSender::MessagingService(service.1.to_owned()));
        let elsewhere = read(&[&[("TWILIO_API_URL", "https://sms.example.org/twilio/")], &TWILIO]);
        let url = elsewhere.providers.twilio.unwrap().api.url;
        assert_eq!(url.expose_secret(), "https://sms.example.org/twilio");
    }

    #[test]
    fn a_webhook_needs_an_address_and_a_secret() {
        let webhook = read(&[&WEBHOOK]).providers.webhook.unwrap();
        assert_eq!(webhook.receiver.url.expose_secret(), WEBHOOK[0].1);
        assert!(!format!("{webhook:?}").contains("secret-value"));
        let clear = [("WEBHOOK_URL", "http://127.0.0.1:9/"), ("WEBHOOK_ALLOW_HTTP", "true")];
        assert!(read(&[&clear, &WEBHOOK]).providers.webhook.unwrap().receiver.is_in_clear());
    }

    #[test]
    fn an_invalid_provider_is_named_and_does_not_affect_the_others() {
        let from = |variable: &str| match variable.split('_').next() {
            Some("SMTP") => DeliveryMethod::Email,
            Some("TWILIO") => DeliveryMethod::Sms,
            _ => DeliveryMethod::Webhook,
        };
        for (variables, variable) in [
            (&[("SMTP_PORT", "0")][..], "SMTP_PORT"),
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
            (&[("SMTP_FROM_EMAIL", "")], "SMTP_FROM_EMAIL"),
            (&[("SMTP_FROM_EMAIL", "not-an-address")], "SMTP_FROM_EMAIL"),
            (&[("SMTP_FROM_EMAIL", "A\r\nBcc: <x@example.org>")], "SMTP_FROM_EMAIL"),
            (&[("SMTP_CA", "very-secret-value")], "SMTP_CA"),
            (&[("TWILIO_ACCOUNT_SID", "")], "TWILIO_ACCOUNT_SID"),
            (&[("TWILIO_ACCOUNT_SID", "AC/../x-secret-value")], "TWILIO_ACCOUNT_SID"),
            (&[("TWILIO_AUTH_TOKEN", "")], "TWILIO_AUTH_TOKEN"),
            (&[("TWILIO_AUTH_TOKEN", "secret-value\r\nX: y")], "TWILIO_AUTH_TOKEN"),
            (&[("TWILIO_PHONE_NUMBER", "")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_PHONE_NUMBER", "030 123")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_MESSAGING_SERVICE_SID", "MG")], "TWILIO_MESSAGING_SERVICE_SID"),
            (&[("TWILIO_API_URL", "http://secret-value.example.org")], "TWILIO_API_URL"),
            (&[("TWILIO_API_URL", "https://example.org/?x=secret-value")], "TWILIO_API_URL"),
            (&[("TWILIO_ALLOW_HTTP", "yes")], "TWILIO_ALLOW_HTTP"),
            (&[("WEBHOOK_URL", "")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "otp.example.org")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "ftp://secret-value.example.org")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "http://secret-value.example.org")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "https://x:secret-value@example.org")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "https://example.org/#secret-value")], "WEBHOOK_URL"),
            (&[("WEBHOOK_SECRET", "")], "WEBHOOK_SECRET"),
            (&[("WEBHOOK_SECRET", "very-secret-value")], "WEBHOOK_SECRET"),
            (&[("WEBHOOK_ALLOW_HTTP", "1")], "WEBHOOK_ALLOW_HTTP"),
            (&[("WEBHOOK_CA", "x")], "WEBHOOK_CA"),
        ] {
            let found = read(&[variables, &MAIL, &TWILIO, &WEBHOOK]);
            let [(method, error)] = &found.errors[..] else {
                panic!("{variable}: {:?}", found.errors)
            };
            assert_eq!((error.variable, *method), (variable, from(variable)));
            assert!(!error.to_string().contains("secret-value"), "{error}");
            assert_eq!(found.providers.methods().len(), 2, "{variable}");
        }
    }
}
