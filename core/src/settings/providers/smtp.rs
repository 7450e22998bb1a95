//! Reads the settings of the mail server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{certificates, one_line};
use crate::host;
use crate::provider::{Sender, SmtpSecurity, SmtpSettings};
use crate::secret::SecretText;
use crate::settings::{SettingsError, wrong};

/// Returns the mail server, or `None` without `SMTP_SERVER`.
pub(super) fn smtp(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<SmtpSettings>, SettingsError> {
    let Some(server) = variable("SMTP_SERVER") else { return Ok(None) };
    let server = server_of(&server)?;
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
    let username = one_line("SMTP_USERNAME", variable("SMTP_USERNAME"))?;
    if username.as_deref().is_some_and(|name| name.trim() != name) {
        return Err(wrong("SMTP_USERNAME", "must not begin or end with a blank"));
    }
    let password = one_line("SMTP_PASSWORD", variable("SMTP_PASSWORD"))?.map(SecretText::new);
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
    let from = sender_of(variable("SMTP_FROM_EMAIL"))?;
    let ehlo_name = variable("SMTP_EHLO_NAME").map(|text| ehlo_name_of(&text)).transpose()?;
    let ca_certificates = certificates("SMTP_CA", variable("SMTP_CA"))?;
    Ok(Some(SmtpSettings {
        server,
        port,
        security,
        username,
        password,
        from,
        ehlo_name,
        ca_certificates,
    }))
}

/// Reads the name or the IP address of the mail server. The error says which of the usual mistakes
/// the text contains.
fn server_of(text: &str) -> Result<String, SettingsError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    if let Some(name) = host::to_ascii(text) {
        return Ok(name);
    }
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let message = if text.contains("://") {
        "must be a host name like mail.example.org, and no URL: SMTP_PORT and SMTP_SECURITY say the \
         rest"
    } else if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "must be one host name like mail.example.org, without blanks and line breaks"
    } else if text.starts_with(['[', '<', '"', '\'']) {
        "must be a host name like mail.example.org or an IP address, without brackets and quotes; \
         the port belongs in SMTP_PORT"
    } else if text.rsplit_once(':').is_some_and(|(_, port)| is_port(port)) {
        "must be a host name like mail.example.org, without a port: that belongs in SMTP_PORT"
    } else {
        "must be a host name like mail.example.org, or an IP address"
    };
    Err(wrong("SMTP_SERVER", message))
}

fn sender_of(text: Option<String>) -> Result<Sender, SettingsError> {
    const VARIABLE: &str = "SMTP_FROM_EMAIL";
    let text = text.ok_or_else(|| wrong(VARIABLE, "is missing, although SMTP_SERVER is set"))?;
    let from: Sender = text.parse().map_err(|error| wrong(VARIABLE, format!("{error}")))?;
    if host::to_ascii(from.domain()).is_none() {
        return Err(wrong(VARIABLE, "must have a host name after the @, like otp@example.org"));
    }
    Ok(from)
}

/// Reads the name in EHLO (RFC 5321 §4.1.3): a host name, or an IP address in brackets.
fn ehlo_name_of(text: &str) -> Result<String, SettingsError> {
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_address = address.is_some_and(|address| match address.strip_prefix("IPv6:") {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => address.parse::<Ipv4Addr>().is_ok(),
    });
    if is_address {
        return Ok(text.to_owned());
    }
    host::to_ascii(text).ok_or_else(|| {
        wrong(
            "SMTP_EHLO_NAME",
            "must be a host name like otp.example.org, or an IP address like [192.0.2.1] or \
             [IPv6:2001:db8::1]",
        )
    })
}
