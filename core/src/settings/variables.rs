//! Lists the variables of a realm's settings, for the reference page and for readers of Secrets.

/// The part of the settings that a variable belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Lifetimes, limits and the history.
    Policy,
    /// Signed tokens.
    Tokens,
    /// The mail server.
    Email,
    /// Twilio.
    Sms,
    /// The receiver of webhooks.
    Webhook,
    /// The texts of messages.
    Messages,
}

impl Group {
    /// Every group, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Policy, Self::Tokens, Self::Email, Self::Sms, Self::Webhook, Self::Messages];

    /// Whether its variables are those of a provider, which a realm's Secret may contain.
    #[must_use]
    pub const fn is_provider(self) -> bool {
        matches!(self, Self::Email | Self::Sms | Self::Webhook)
    }
}

/// A variable of a realm's settings.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// The part of the settings that it belongs to.
    pub group: Group,
    /// The value that counts if it is absent or empty.
    pub default: Option<&'static str>,
    /// What it means and which values are valid, as plain text.
    pub meaning: &'static str,
}

const fn variable(
    group: Group,
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Variable {
    let default = if default.is_empty() { None } else { Some(default) };
    Variable { name, group, default, meaning }
}

/// All variables that [`realm`](super::realm) reads.
pub const VARIABLES: [Variable; 43] = [
    variable(
        Group::Policy,
        "ISSUER",
        "FountainAI",
        "Issuer, which messages and authenticator apps show: at most 100 characters, no colon",
    ),
    variable(
        Group::Policy,
        "OTP_EXPIRATION_MINUTES",
        "5",
        "Minutes for which a delivered code is valid, 1 to 10",
    ),
    variable(
        Group::Policy,
        "OTP_GENERATE_INTERVAL_SECONDS",
        "60",
        "Minimum number of seconds between two codes for a user, 0 to 3600; 0 is no limit",
    ),
    variable(
        Group::Policy,
        "OTP_GENERATES_PER_HOUR",
        "10",
        "Maximum number of codes for a user within an hour, 0 to 100; 0 is no limit",
    ),
    variable(
        Group::Policy,
        "OTP_DELIVERIES_PER_HOUR",
        "1000",
        "Maximum number of codes sent for all users of the realm within an hour, 0 to 1000000; 0 is \
         no limit",
    ),
    variable(
        Group::Policy,
        "OTP_FAILURES_PER_DAY",
        "20",
        "Maximum number of failed attempts for a user within a day from one namespace, 0 to 1000; 0 \
         is no limit",
    ),
    variable(
        Group::Policy,
        "AUDIT_RETENTION_DAYS",
        "30",
        "Days for which each user's history is kept, 1 to 365",
    ),
    variable(
        Group::Policy,
        "AUDIT_ENTRIES",
        "500",
        "Maximum number of entries of each user's history, 10 to 500",
    ),
    variable(
        Group::Policy,
        "AUDIT_ORIGIN",
        "true",
        "Whether history and log contain the end user's address and program, true or false",
    ),
    variable(
        Group::Policy,
        "UNIFORM_ANSWERS",
        "false",
        "Whether every username gets the same answers, so that a service can pass them on to the \
         public, true or false",
    ),
    variable(
        Group::Policy,
        "REDIS_WAIT",
        "0",
        "Number of replicas of Redis that must acknowledge an accepted code before the answer, 0 \
         to 16; if too few do so within half a second, the answer is 503",
    ),
    variable(
        Group::Tokens,
        "TOKEN_AUDIENCES",
        "",
        "Audiences that tokens can be for, separated by commas; without it there are no tokens",
    ),
    variable(
        Group::Tokens,
        "TOKEN_LIFETIME_SECONDS",
        "300",
        "Seconds for which a token is valid, 1 to 300",
    ),
    variable(
        Group::Tokens,
        "ALGORITHM",
        "HS256",
        "Algorithm of signatures: HS256 with SECRET_KEY, or EdDSA with ED25519_PRIVATE_KEY",
    ),
    variable(Group::Tokens, "SECRET_KEY", "", "Shared key for HS256, 32 bytes or more"),
    variable(
        Group::Tokens,
        "ED25519_PRIVATE_KEY",
        "",
        "Private key for EdDSA, in PEM or as its 32 bytes in base64",
    ),
    variable(
        Group::Email,
        "SMTP_SERVER",
        "",
        "Mail server: a host name or an IP address, without a port; without it, no mail is sent",
    ),
    variable(Group::Email, "SMTP_PORT", "587", "Port of the mail server"),
    variable(
        Group::Email,
        "SMTP_SECURITY",
        "implicit on port 465, otherwise starttls",
        "Protection of the connection: starttls, implicit, or plain, which is valid without a \
         password only, because codes and password would travel in clear",
    ),
    variable(Group::Email, "SMTP_USERNAME", "", "Account on the mail server; without it, no login"),
    variable(Group::Email, "SMTP_PASSWORD", "", "Password of SMTP_USERNAME"),
    variable(
        Group::Email,
        "SMTP_FROM_EMAIL",
        "",
        "Sender, such as otp@example.org or Name <otp@example.org>; required with SMTP_SERVER",
    ),
    variable(
        Group::Email,
        "SMTP_EHLO_NAME",
        "domain of SMTP_FROM_EMAIL",
        "Name of this client in EHLO: a host name, or an IP address in brackets",
    ),
    variable(
        Group::Email,
        "SMTP_CA",
        "",
        "CA certificates (PEM) to verify the mail server with, instead of the system's",
    ),
    variable(
        Group::Sms,
        "TWILIO_ACCOUNT_SID",
        "",
        "Account that text messages are sent with; without it, none are sent",
    ),
    variable(
        Group::Sms,
        "TWILIO_AUTH_TOKEN",
        "",
        "Token of the account; either this or TWILIO_API_KEY and TWILIO_API_SECRET are required",
    ),
    variable(
        Group::Sms,
        "TWILIO_API_KEY",
        "",
        "API key (SK...) that logs in instead of the account",
    ),
    variable(Group::Sms, "TWILIO_API_SECRET", "", "Secret of TWILIO_API_KEY"),
    variable(
        Group::Sms,
        "TWILIO_PHONE_NUMBER",
        "",
        "Sender: a phone number such as +15005550006, a short code, or a name of at most 11 \
         letters and digits; either this or TWILIO_MESSAGING_SERVICE_SID is required",
    ),
    variable(
        Group::Sms,
        "TWILIO_MESSAGING_SERVICE_SID",
        "",
        "Messaging service, which chooses the sender's number",
    ),
    variable(
        Group::Sms,
        "TWILIO_API_URL",
        "https://api.twilio.com",
        "Address of Twilio, or of another service with the same API",
    ),
    variable(
        Group::Sms,
        "TWILIO_CA",
        "",
        "CA certificates (PEM) to verify that address with, instead of the system's",
    ),
    variable(
        Group::Sms,
        "TWILIO_ALLOW_HTTP",
        "false",
        "Whether TWILIO_API_URL may be http, so that codes travel in clear, true or false",
    ),
    variable(
        Group::Sms,
        "TWILIO_PROXY",
        "",
        "HTTP proxy to that address, such as http://proxy.example.org:3128, also with \
         name:password@; without it, the connection is direct, whatever HTTPS_PROXY says",
    ),
    variable(
        Group::Webhook,
        "WEBHOOK_URL",
        "",
        "Receiver of signed webhooks; without it, none are sent",
    ),
    variable(
        Group::Webhook,
        "WEBHOOK_SECRET",
        "",
        "Secret (whsec_...) that webhooks are signed with; required with WEBHOOK_URL",
    ),
    variable(
        Group::Webhook,
        "WEBHOOK_CA",
        "",
        "CA certificates (PEM) to verify the receiver with, instead of the system's",
    ),
    variable(
        Group::Webhook,
        "WEBHOOK_ALLOW_HTTP",
        "false",
        "Whether WEBHOOK_URL may be http, so that codes travel in clear, true or false",
    ),
    variable(
        Group::Webhook,
        "WEBHOOK_PROXY",
        "",
        "HTTP proxy to the receiver, such as http://proxy.example.org:3128, also with \
         name:password@; without it, the connection is direct, whatever HTTPS_PROXY says",
    ),
    variable(
        Group::Messages,
        "MESSAGE_SUBJECT",
        "",
        "Template of the subject of mails; without it, the built-in one",
    ),
    variable(
        Group::Messages,
        "MESSAGE_TEXT",
        "",
        "Template of the text of mails and webhooks, which must contain {{code}}; without it, the \
         built-in one",
    ),
    variable(
        Group::Messages,
        "MESSAGE_HTML",
        "",
        "Template of the HTML part of mails, which must contain {{code}}; without it there is none",
    ),
    variable(
        Group::Messages,
        "MESSAGE_SMS",
        "",
        "Template of text messages, which must contain {{code}}; without it, the built-in one",
    ),
];

/// The variables of providers, which a realm's Secret may contain.
pub const PROVIDERS: [&str; 23] = {
    let mut names = [""; 23];
    let (mut index, mut found) = (0, 0);
    while index < VARIABLES.len() {
        if VARIABLES[index].group.is_provider() {
            names[found] = VARIABLES[index].name;
            found += 1;
        }
        index += 1;
    }
    names
};

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;
    use crate::realm::RealmRecord;
    use crate::settings::realm;

    #[test]
    fn the_list_has_exactly_the_variables_that_a_realm_is_read_from() {
        let asked = RefCell::new(BTreeSet::new());
        let values = [
            ("SMTP_SERVER", "mail.example.org"),
            ("SMTP_FROM_EMAIL", "otp@example.org"),
            ("TWILIO_ACCOUNT_SID", "AC0123456789abcdef0123456789abcdef"),
            ("TWILIO_AUTH_TOKEN", "token"),
            ("TWILIO_PHONE_NUMBER", "+15005550006"),
            ("WEBHOOK_URL", "https://otp.example.org/codes"),
            ("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ];
        realm(|name| {
            asked.borrow_mut().insert(name.to_owned());
            let value = values.iter().find(|(known, _)| *known == name);
            value.map(|(_, value)| (*value).to_owned())
        })
        .unwrap();
        let listed: BTreeSet<_> =
            VARIABLES.iter().map(|variable| variable.name.to_owned()).collect();
        assert_eq!(asked.into_inner(), listed);
    }

    #[test]
    fn the_listed_defaults_are_those_of_the_realm() {
        let defaults = realm(|name| {
            let variable = VARIABLES.iter().find(|variable| variable.name == name).unwrap();
            variable.default.filter(|_| !variable.group.is_provider()).map(str::to_owned)
        });
        assert_eq!(defaults.unwrap(), RealmRecord::default());
    }
}
