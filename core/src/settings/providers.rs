//! Reads the settings of providers from variables that have the names of the original service. A
//! provider that cannot be used is reported with the first variable that is missing or invalid.

mod smtp;
mod twilio;

use url::Url;

use super::{SettingsError, given, wrong};
use crate::provider::{Endpoint, Providers, WebhookSettings};
use crate::secret::SecretText;
use crate::user::DeliveryMethod;
use crate::webhook::WebhookSecrets;

/// The providers whose settings are valid, and what is invalid about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The providers that can be used.
    pub providers: Providers,
    /// What is invalid about the others.
    pub errors: Vec<(DeliveryMethod, SettingsError)>,
}

/// Reads all providers. An empty variable counts as absent, a line break at the end of one is
/// dropped, and a provider without variables is absent.
#[must_use]
pub fn providers(lookup: impl Fn(&str) -> Option<String>) -> Read {
    let variable = |name: &str| lookup(name).and_then(given);
    let mut errors = Vec::new();
    let mut keep = |method, error: SettingsError| errors.push((method, error));
    let providers = Providers {
        smtp: smtp::smtp(variable).unwrap_or_else(|error| {
            keep(DeliveryMethod::Email, error);
            None
        }),
        twilio: twilio::twilio(variable).unwrap_or_else(|error| {
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
    let proxy = proxy("WEBHOOK_PROXY", variable("WEBHOOK_PROXY"), &url)?;
    let secrets = WebhookSecrets::parse(secret.expose_secret())
        .map_err(|error| wrong("WEBHOOK_SECRET", error.to_string()))?;
    let receiver = Endpoint {
        url: SecretText::new(url.into()),
        ca_certificates: certificates("WEBHOOK_CA", variable("WEBHOOK_CA"))?,
        proxy,
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
    // The parser would drop blanks and line breaks.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong(variable, "must be one address, without blanks and line breaks"));
    }
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

/// Reads the proxy through which requests to `server` go.
fn proxy(
    variable: &'static str,
    text: Option<String>,
    server: &Url,
) -> Result<Option<SecretText>, SettingsError> {
    let Some(text) = text else { return Ok(None) };
    let blank = |c: char| c.is_whitespace() || c.is_control();
    let url = Url::parse(&text).ok().filter(|url| {
        let is_whole = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        url.scheme() == "http" && url.has_host() && is_whole && !text.contains(blank)
    });
    if url.is_none() {
        let message = "must be like http://proxy.example.org:3128, with name:password@ before the \
                       host if the proxy asks for them";
        return Err(wrong(variable, message));
    }
    if server.scheme() != "https" {
        return Err(wrong(variable, "needs an https address, because the proxy could read codes"));
    }
    Ok(Some(SecretText::new(text)))
}

fn flag(variable: &'static str, text: Option<&str>) -> Result<bool, SettingsError> {
    match text {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(wrong(variable, "must be true or false")),
    }
}

/// Reads a text that becomes part of one line.
fn one_line(variable: &'static str, text: Option<String>) -> Result<Option<String>, SettingsError> {
    if text.as_deref().is_some_and(|text| text.contains(char::is_control)) {
        return Err(wrong(variable, "must be one line, without control characters"));
    }
    Ok(text)
}

fn certificates(
    variable: &'static str,
    text: Option<String>,
) -> Result<Option<String>, SettingsError> {
    if let Some(pem) = &text {
        super::certificates::check(pem).map_err(|message| wrong(variable, message))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{SmtpSecurity, TwilioSender};

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
        assert_eq!(named.from.name.as_deref(), Some("FountainAI"));
        let host = [("SMTP_SERVER", "Mail.Bücher.example"), ("SMTP_EHLO_NAME", "[192.0.2.1]")];
        assert_eq!(smtp(&host).server, "mail.xn--bcher-kva.example");
        assert_eq!(smtp(&host).ehlo_name.as_deref(), Some("[192.0.2.1]"));
        for address in ["192.0.2.1", "2001:db8::1", "localhost", "mail_server", "mail.example.org."]
        {
            let server = [("SMTP_SERVER", address)];
            let found = read(&[&server, &MAIL]).providers.smtp.unwrap();
            assert_eq!(found.server, address);
        }
    }

    #[test]
    fn a_line_break_at_the_end_of_a_variable_is_dropped() {
        let ended = |list: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
            list.iter().map(|(name, value)| (*name, format!("{value}\r\n"))).collect()
        };
        let more = [
            ("SMTP_PORT", "2525"),
            ("SMTP_USERNAME", "otp"),
            ("SMTP_PASSWORD", "a password of words"),
            ("SMTP_SECURITY", "starttls"),
        ];
        let all = [ended(&MAIL), ended(&TWILIO), ended(&WEBHOOK), ended(&more)].concat();
        let found = providers(|name| {
            all.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        });
        assert_eq!(found, read(&[&more, &MAIL, &TWILIO, &WEBHOOK]));
        assert_eq!(found.errors, []);
        let absent = [("SMTP_SERVER", "\n"), ("WEBHOOK_CA", "\n")];
        assert_eq!(read(&[&absent, &WEBHOOK]).errors, []);
    }

    #[test]
    fn a_server_in_another_form_is_refused_with_the_right_one() {
        for (text, sentence) in [
            ("mail.example.org:587", "without a port: that belongs in SMTP_PORT"),
            ("192.0.2.1:25", "without a port: that belongs in SMTP_PORT"),
            ("smtp://mail.example.org", "no URL"),
            ("https://mail.example.org/", "no URL"),
            ("[2001:db8::1]", "without brackets"),
            ("[2001:db8::1]:587", "without brackets"),
            ("\"mail.example.org\"", "without brackets and quotes"),
            (" mail.example.org", "without blanks"),
            ("mail.example.org ", "without blanks"),
            ("a.example.org b.example.org", "without blanks"),
            ("a.example.org\nb.example.org", "without blanks and line breaks"),
            ("mail.example.org/", "must be a host name like mail.example.org, or"),
            ("otp@mail.example.org", "must be a host name like mail.example.org, or"),
            ("-mail.example.org", "must be a host name like mail.example.org, or"),
        ] {
            let found = read(&[&[("SMTP_SERVER", text)], &MAIL]);
            let (_, error) = &found.errors[0];
            assert_eq!(error.variable, "SMTP_SERVER");
            assert!(error.message.contains(sentence), "{text}: {error}");
        }
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
        for sender in ["FountainAI", "12345", "A&B Shop 1", "0180abc"] {
            let twilio = read(&[&[("TWILIO_PHONE_NUMBER", sender)], &TWILIO]).providers.twilio;
            assert_eq!(twilio.unwrap().sender, TwilioSender::Named(sender.to_owned()));
        }
        let key = [
            ("TWILIO_AUTH_TOKEN", ""),
            ("TWILIO_API_KEY", "SK0123456789abcdef0123456789abcdef"),
            ("TWILIO_API_SECRET", "secret-of-the-key"),
        ];
        let twilio = read(&[&key, &TWILIO]).providers.twilio.unwrap();
        assert_eq!(twilio.api_key.as_deref(), Some(key[1].1));
        assert_eq!(twilio.auth_token.expose_secret(), "secret-of-the-key");
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
    fn a_proxy_is_that_of_one_provider_and_never_printed() {
        let proxy = "http://otp:very-secret-value@proxy.example.org:3128";
        let found = read(&[&[("TWILIO_PROXY", proxy)], &TWILIO, &WEBHOOK]).providers;
        let (twilio, webhook) = (found.twilio.unwrap(), found.webhook.unwrap());
        assert_eq!(twilio.api.proxy.as_ref().unwrap().expose_secret(), proxy);
        assert_eq!(webhook.receiver.proxy, None);
        assert!(!format!("{twilio:?}").contains("secret-value"));
        for address in ["http://[2001:db8::1]:3128/", "http://proxy"] {
            let found = read(&[&[("WEBHOOK_PROXY", address)], &WEBHOOK]).providers;
            let proxy = found.webhook.unwrap().receiver.proxy.unwrap();
            assert_eq!(proxy.expose_secret(), address);
        }
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
            (&[("SMTP_FROM_EMAIL", "FountainAI otp@example.org")], "SMTP_FROM_EMAIL"),
            (&[("SMTP_FROM_EMAIL", "otp@-bad.example")], "SMTP_FROM_EMAIL"),
            (&[("SMTP_PORT", " 587")], "SMTP_PORT"),
            (&[("SMTP_PORT", "587/tcp")], "SMTP_PORT"),
            (&[("SMTP_USERNAME", "otp "), ("SMTP_PASSWORD", "secret-value")], "SMTP_USERNAME"),
            (&[("SMTP_USERNAME", "otp"), ("SMTP_PASSWORD", "secret-value\nx")], "SMTP_PASSWORD"),
            (&[("SMTP_EHLO_NAME", "192.0.2.1")], "SMTP_EHLO_NAME"),
            (&[("SMTP_EHLO_NAME", "a b")], "SMTP_EHLO_NAME"),
            (&[("SMTP_EHLO_NAME", "[x]")], "SMTP_EHLO_NAME"),
            (&[("SMTP_CA", "very-secret-value")], "SMTP_CA"),
            (&[("TWILIO_ACCOUNT_SID", "")], "TWILIO_ACCOUNT_SID"),
            (&[("TWILIO_ACCOUNT_SID", "AC/../x-secret-value")], "TWILIO_ACCOUNT_SID"),
            (&[("TWILIO_ACCOUNT_SID", "SK0123456789abcdef0123456789abcdef")], "TWILIO_ACCOUNT_SID"),
            (&[("TWILIO_API_KEY", "SK0123456789abcdef0123456789abcdef")], "TWILIO_API_KEY"),
            (&[("TWILIO_AUTH_TOKEN", ""), ("TWILIO_API_SECRET", "secret-value")], "TWILIO_API_KEY"),
            (&[("TWILIO_AUTH_TOKEN", ""), ("TWILIO_API_KEY", "SK")], "TWILIO_API_SECRET"),
            (
                &[
                    ("TWILIO_AUTH_TOKEN", ""),
                    ("TWILIO_API_KEY", "AC-secret-value"),
                    ("TWILIO_API_SECRET", "x"),
                ],
                "TWILIO_API_KEY",
            ),
            (&[("TWILIO_PHONE_NUMBER", "15005550006")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_PHONE_NUMBER", "A name that is too long")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_PHONE_NUMBER", "FountainAI ")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_PHONE_NUMBER", "Größe")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_AUTH_TOKEN", "")], "TWILIO_AUTH_TOKEN"),
            (&[("TWILIO_AUTH_TOKEN", "secret-value\r\nX: y")], "TWILIO_AUTH_TOKEN"),
            (&[("TWILIO_PHONE_NUMBER", "")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_PHONE_NUMBER", "030 123")], "TWILIO_PHONE_NUMBER"),
            (&[("TWILIO_MESSAGING_SERVICE_SID", "MG")], "TWILIO_MESSAGING_SERVICE_SID"),
            (&[("TWILIO_API_URL", "http://secret-value.example.org")], "TWILIO_API_URL"),
            (&[("TWILIO_API_URL", "https://example.org/?x=secret-value")], "TWILIO_API_URL"),
            (&[("TWILIO_ALLOW_HTTP", "yes")], "TWILIO_ALLOW_HTTP"),
            (&[("TWILIO_PROXY", "secret-value.example.org:3128")], "TWILIO_PROXY"),
            (&[("TWILIO_PROXY", "https://secret-value.example.org")], "TWILIO_PROXY"),
            (&[("TWILIO_PROXY", "socks5://secret-value.example.org")], "TWILIO_PROXY"),
            (&[("TWILIO_PROXY", "http://proxy.example.org/secret-value")], "TWILIO_PROXY"),
            (&[("WEBHOOK_PROXY", "http://x:secret-value\n@proxy")], "WEBHOOK_PROXY"),
            (
                &[
                    ("WEBHOOK_URL", "http://otp.example.org"),
                    ("WEBHOOK_ALLOW_HTTP", "true"),
                    ("WEBHOOK_PROXY", "http://x:secret-value@proxy"),
                ],
                "WEBHOOK_PROXY",
            ),
            (&[("WEBHOOK_URL", "")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "otp.example.org")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "https://otp.example.org/a b")], "WEBHOOK_URL"),
            (&[("WEBHOOK_URL", "https://secret-value.\nexample.org/")], "WEBHOOK_URL"),
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
