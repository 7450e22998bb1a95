//! The realm of `dev`: flags on top of the environment. Enters: both. Leaves: the realm's record.
#![expect(
    clippy::doc_markdown,
    reason = "clap shows these comments in a terminal, where backticks are noise"
)]

use std::fs;
use std::path::PathBuf;

use clap::Args;
use twofactor_core::realm::RealmRecord;
use twofactor_core::settings;

/// Policy and providers of a realm that no operator takes care of.
///
/// Passwords have no flags: command lines can be seen by everybody on the machine. Nor have the
/// other settings of text messages and webhooks, which stand beside them, and the texts of
/// messages, which have lines.
#[derive(Args)]
pub struct RealmOptions {
    /// Shown in mails and in authenticator apps [default: FountainAI]
    #[arg(long, env = "ISSUER")]
    issuer: Option<String>,

    /// Minutes for which a delivered code is accepted, 1 to 10 [default: 5]
    #[arg(long, env = "OTP_EXPIRATION_MINUTES", value_name = "MINUTES")]
    otp_expiration_minutes: Option<String>,

    /// Seconds from one code for a user to the next, 0 to 3600; 0 is no limit [default: 60]
    #[arg(long, env = "OTP_GENERATE_INTERVAL_SECONDS", value_name = "SECONDS")]
    otp_generate_interval_seconds: Option<String>,

    /// Codes for a user within an hour, 0 to 100; 0 is no limit [default: 10]
    #[arg(long, env = "OTP_GENERATES_PER_HOUR", value_name = "NUMBER")]
    otp_generates_per_hour: Option<String>,

    /// Codes for all users together that are sent within an hour, 0 to 1000000; 0 is no limit
    /// [default: 1000]
    #[arg(long, env = "OTP_DELIVERIES_PER_HOUR", value_name = "NUMBER")]
    otp_deliveries_per_hour: Option<String>,

    /// Days for which each user's history is kept, 1 to 365 [default: 30]
    #[arg(long, env = "AUDIT_RETENTION_DAYS", value_name = "DAYS")]
    audit_retention_days: Option<String>,

    /// Whether the end user's address and program are kept, true or false [default: true]
    #[arg(long, env = "AUDIT_ORIGIN", value_name = "true|false")]
    audit_origin: Option<String>,

    /// Mail server; without one, codes are shown on the console
    #[arg(long, env = "SMTP_SERVER", value_name = "HOST")]
    smtp_server: Option<String>,

    /// Its port [default: 587]
    #[arg(long, env = "SMTP_PORT", value_name = "PORT")]
    smtp_port: Option<String>,

    /// How the connection to it is protected: starttls, implicit, or plain (codes travel in clear)
    /// [default: implicit on port 465, otherwise starttls]
    #[arg(long, env = "SMTP_SECURITY", value_name = "WAY")]
    smtp_security: Option<String>,

    /// Account on it; its password is in the variable SMTP_PASSWORD
    #[arg(long, env = "SMTP_USERNAME", value_name = "NAME")]
    smtp_username: Option<String>,

    /// Sender of the mails: an address, or "Name <address>"
    #[arg(long, env = "SMTP_FROM_EMAIL", value_name = "ADDRESS")]
    smtp_from_email: Option<String>,

    /// File with CA certificates (PEM) to check the mail server against in place of the system's
    #[arg(long, env = "SMTP_CA_FILE", value_name = "FILE")]
    smtp_ca_file: Option<PathBuf>,

    /// Replicas of Redis that have to know of an accepted code before it is told; too few within
    /// half a second are an answer of 503 [default: 0]
    #[arg(long, env = "REDIS_WAIT", value_name = "REPLICAS")]
    redis_wait: Option<String>,

    /// Whom tokens can be for, separated by commas. Turns tokens on: a request to verify that names
    /// one of them is answered with one
    #[arg(long, env = "TOKEN_AUDIENCES", value_name = "NAMES")]
    token_audiences: Option<String>,

    /// Seconds for which a token is good, 1 to 300 [default: 300]
    #[arg(long, env = "TOKEN_LIFETIME_SECONDS", value_name = "SECONDS")]
    token_lifetime_seconds: Option<String>,

    /// How tokens are signed: HS256, with the key in the variable SECRET_KEY of 32 bytes or more,
    /// or EdDSA, with the key in ED25519_PRIVATE_KEY [default: HS256]
    #[arg(long, env = "ALGORITHM", value_name = "NAME")]
    algorithm: Option<String>,

    /// Answer every name in the same way, known or not, so that answers can be passed on to the
    /// public
    #[arg(long, env = "UNIFORM_ANSWERS", value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    uniform_answers: Option<String>,
}

impl RealmOptions {
    /// The realm that flags and environment describe; `environment` is asked for what has no flag.
    ///
    /// # Errors
    /// A sentence that names what is missing or wrong. It never repeats a secret.
    pub fn realm(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<RealmRecord, String> {
        let ca = self.smtp_ca_file.as_ref().map(|path| {
            fs::read_to_string(path)
                .map_err(|error| format!("SMTP_CA_FILE {}: {error}", path.display()))
        });
        let ca = ca.transpose()?;
        let twilio_ca = certificates("TWILIO_CA_FILE", &environment)?;
        let webhook_ca = certificates("WEBHOOK_CA_FILE", &environment)?;
        let variable = |name: &str| match name {
            "ISSUER" => self.issuer.clone(),
            "OTP_EXPIRATION_MINUTES" => self.otp_expiration_minutes.clone(),
            "OTP_GENERATE_INTERVAL_SECONDS" => self.otp_generate_interval_seconds.clone(),
            "OTP_GENERATES_PER_HOUR" => self.otp_generates_per_hour.clone(),
            "OTP_DELIVERIES_PER_HOUR" => self.otp_deliveries_per_hour.clone(),
            "AUDIT_RETENTION_DAYS" => self.audit_retention_days.clone(),
            "AUDIT_ORIGIN" => self.audit_origin.clone(),
            "SMTP_SERVER" => self.smtp_server.clone(),
            "SMTP_PORT" => self.smtp_port.clone(),
            "SMTP_SECURITY" => self.smtp_security.clone(),
            "SMTP_USERNAME" => self.smtp_username.clone(),
            "SMTP_FROM_EMAIL" => self.smtp_from_email.clone(),
            "REDIS_WAIT" => self.redis_wait.clone(),
            "SMTP_CA" => ca.clone(),
            "TWILIO_CA" => twilio_ca.clone(),
            "WEBHOOK_CA" => webhook_ca.clone(),
            "ALGORITHM" => self.algorithm.clone(),
            "TOKEN_AUDIENCES" => self.token_audiences.clone(),
            "TOKEN_LIFETIME_SECONDS" => self.token_lifetime_seconds.clone(),
            "UNIFORM_ANSWERS" => self.uniform_answers.clone(),
            other => environment(other),
        };
        settings::realm(variable).map_err(|error| error.to_string())
    }
}

/// The content of the file that a variable names.
fn certificates(
    variable: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let Some(path) = environment(variable).filter(|path| !path.is_empty()) else { return Ok(None) };
    fs::read_to_string(&path).map(Some).map_err(|error| format!("{variable} {path}: {error}"))
}
