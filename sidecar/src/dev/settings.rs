//! Builds the realm of `dev` from flags and the environment.
#![expect(
    clippy::doc_markdown,
    reason = "clap shows these comments in a terminal, where backticks are noise"
)]

use std::collections::HashMap;
use std::fs;

use clap::Args;
use twofactor_core::realm::RealmRecord;
use twofactor_core::settings;

/// Variables with CA certificates, which are read from the file that NAME_FILE names.
const CERTIFICATES: [&str; 3] = ["SMTP_CA", "TWILIO_CA", "WEBHOOK_CA"];

macro_rules! realm_options {
    ($($(#[$help:meta])* $field:ident = $variable:literal $([$($argument:tt)+])?;)*) => {
        /// Policy and providers of a realm without an operator.
        ///
        /// Passwords have no flags, because every user of the machine can see command lines. Nor
        /// have the other settings of text messages and webhooks, which belong to passwords, and
        /// the texts of messages, which have several lines.
        #[derive(Args)]
        pub struct RealmOptions {
            $(
                $(#[$help])*
                #[arg(long, env = $variable $(, $($argument)+)?)]
                $field: Option<String>,
            )*
        }

        impl RealmOptions {
            /// Returns the value of a flag, by the name of its variable.
            fn flag(&self, variable: &str) -> Option<&String> {
                match variable {
                    $($variable => self.$field.as_ref(),)*
                    _ => None,
                }
            }
        }
    };
}

realm_options! {
    /// Name shown in mails and in authenticator apps [default: FountainAI]
    issuer = "ISSUER";
    /// Minutes for which a delivered code is accepted, 1 to 10 [default: 5]
    otp_expiration_minutes = "OTP_EXPIRATION_MINUTES" [value_name = "MINUTES"];
    /// Seconds between two codes for a user, 0 to 3600; 0 is no limit [default: 60]
    otp_generate_interval_seconds = "OTP_GENERATE_INTERVAL_SECONDS" [value_name = "SECONDS"];
    /// Maximum number of codes for a user within an hour, 0 to 100; 0 is no limit [default: 10]
    otp_generates_per_hour = "OTP_GENERATES_PER_HOUR" [value_name = "NUMBER"];
    /// Maximum number of codes that are sent to all users together within an hour, 0 to 1000000; 0
    /// is no limit [default: 1000]
    otp_deliveries_per_hour = "OTP_DELIVERIES_PER_HOUR" [value_name = "NUMBER"];
    /// Maximum number of failed attempts for a user within a day, 0 to 1000; 0 is no limit
    /// [default: 20]
    otp_failures_per_day = "OTP_FAILURES_PER_DAY" [value_name = "NUMBER"];
    /// Days for which each user's history is kept, 1 to 365 [default: 30]
    audit_retention_days = "AUDIT_RETENTION_DAYS" [value_name = "DAYS"];
    /// Maximum number of entries of each user's history, 10 to 500 [default: 500]
    audit_entries = "AUDIT_ENTRIES" [value_name = "NUMBER"];
    /// Whether the end user's address and program are recorded, true or false [default: true]
    audit_origin = "AUDIT_ORIGIN" [value_name = "true|false"];
    /// Mail server; without one, codes are shown on the console
    smtp_server = "SMTP_SERVER" [value_name = "HOST"];
    /// Port of the mail server [default: 587]
    smtp_port = "SMTP_PORT" [value_name = "PORT"];
    /// How the connection to the mail server is protected: starttls, implicit, or plain (codes are
    /// sent unencrypted) [default: implicit on port 465, otherwise starttls]
    smtp_security = "SMTP_SECURITY" [value_name = "WAY"];
    /// Account on the mail server; its password is in the variable SMTP_PASSWORD
    smtp_username = "SMTP_USERNAME" [value_name = "NAME"];
    /// Sender of the mails: an address, or "Name <address>"
    smtp_from_email = "SMTP_FROM_EMAIL" [value_name = "ADDRESS"];
    /// Name of this client in EHLO [default: the domain of the sender]
    smtp_ehlo_name = "SMTP_EHLO_NAME" [value_name = "NAME"];
    /// File with CA certificates (PEM) to check the mail server against in place of the system's
    smtp_ca_file = "SMTP_CA_FILE" [value_name = "FILE"];
    /// Number of Redis replicas that must confirm an accepted code before the answer; if too few do
    /// within half a second, the answer is 503 [default: 0]
    redis_wait = "REDIS_WAIT" [value_name = "REPLICAS"];
    /// Audiences that tokens can be for, separated by commas. Turns tokens on: a request to verify
    /// that names one of them is answered with a token
    token_audiences = "TOKEN_AUDIENCES" [value_name = "NAMES"];
    /// Lifetime of a token in seconds, 1 to 300 [default: 300]
    token_lifetime_seconds = "TOKEN_LIFETIME_SECONDS" [value_name = "SECONDS"];
    /// How tokens are signed: HS256, with the key in the variable SECRET_KEY of 32 bytes or more,
    /// or EdDSA, with the key in ED25519_PRIVATE_KEY [default: HS256]
    algorithm = "ALGORITHM" [value_name = "NAME"];
    /// Answer every name in the same way, known or not, so that answers can be passed on to the
    /// public
    uniform_answers = "UNIFORM_ANSWERS"
        [value_name = "true|false", num_args = 0..=1, default_missing_value = "true"];
}

impl RealmOptions {
    /// Returns the realm that flags and environment describe. An error names what is missing or
    /// invalid, and never contains a secret.
    pub fn realm(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<RealmRecord, String> {
        let variable = |name: &str| self.flag(name).cloned().or_else(|| environment(name));
        let mut certificates = HashMap::new();
        for name in CERTIFICATES {
            let file = format!("{name}_FILE");
            let path = variable(&file).unwrap_or_default();
            let path = path.trim_end_matches(['\r', '\n']);
            if !path.is_empty() {
                // The error of a setting would name the variable of the operator.
                let pem =
                    read_certificates(path).map_err(|error| format!("{file} {path} {error}"))?;
                certificates.insert(name, pem);
            }
        }
        let lookup = |name: &str| {
            if CERTIFICATES.contains(&name) {
                certificates.get(name).cloned()
            } else {
                variable(name)
            }
        };
        settings::realm(lookup).map_err(|error| error.to_string())
    }
}

fn read_certificates(path: &str) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let pem = String::from_utf8(bytes)
        .map_err(|_| "must be certificates in PEM, which is text".to_owned())?;
    settings::certificates::check(&pem)?;
    Ok(pem)
}
