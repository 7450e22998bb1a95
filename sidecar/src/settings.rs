//! Configuration under the names that the original service had. Enters: flags and the environment. Leaves: the
//! realm's record, or a sentence that names the variable and what would be right.
#![expect(
    clippy::doc_markdown,
    reason = "clap shows these comments in a terminal, where backticks are noise"
)]

use std::fs;
use std::path::PathBuf;

use clap::Args;
use twofactor_core::realm::{OtpLifetime, RealmRecord, SmtpSecurity, SmtpSettings};
use twofactor_core::secret::SecretText;

/// Policy and providers of a realm that no operator takes care of.
///
/// Passwords have no flags: command lines can be seen by everybody on the machine.
#[derive(Args)]
pub struct RealmOptions {
    /// Shown in mails and in authenticator apps
    #[arg(long, env = "ISSUER", default_value = "FountainAI")]
    issuer: String,

    /// Minutes for which a delivered code is accepted, 1 to 10
    #[arg(long, env = "OTP_EXPIRATION_MINUTES", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=10))]
    otp_expiration_minutes: u8,

    /// Mail server; without one, codes are shown on the console
    #[arg(long, env = "SMTP_SERVER")]
    smtp_server: Option<String>,

    /// Its port
    #[arg(long, env = "SMTP_PORT", default_value_t = 587)]
    smtp_port: u16,

    /// How the connection to it is protected: starttls, implicit, or plain (mail server on this machine only).
    /// Without this, port 465 means implicit and any other port starttls
    #[arg(long, env = "SMTP_SECURITY", value_parser = parse_security)]
    smtp_security: Option<SmtpSecurity>,

    /// Account on it; its password is in the variable SMTP_PASSWORD
    #[arg(long, env = "SMTP_USERNAME")]
    smtp_username: Option<String>,

    /// Sender of the mails: an address, or "Name <address>"
    #[arg(long, env = "SMTP_FROM_EMAIL")]
    smtp_from_email: Option<String>,

    /// File with CA certificates (PEM) to check the mail server against in place of the system's
    #[arg(long, env = "SMTP_CA_FILE")]
    smtp_ca_file: Option<PathBuf>,

    /// How tokens are signed. Only HS256 is known; the key is in the variable SECRET_KEY, of 32 bytes or more
    #[arg(long, env = "ALGORITHM", default_value = "HS256", value_parser = ["HS256"])]
    algorithm: String,
}

fn parse_security(text: &str) -> Result<SmtpSecurity, String> {
    match text {
        "starttls" => Ok(SmtpSecurity::Starttls),
        "implicit" => Ok(SmtpSecurity::Implicit),
        "plain" => Ok(SmtpSecurity::Plain),
        _ => Err("must be starttls, implicit or plain".to_owned()),
    }
}

/// The variables that hold secrets, and so have no flag.
pub struct SecretVariables {
    /// `SMTP_PASSWORD`
    pub smtp_password: Option<SecretText>,
    /// `SECRET_KEY`
    pub secret_key: Option<SecretText>,
}

impl SecretVariables {
    /// Reads them with `variable`, which is the environment's unless a test has another one.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let secret = |name: &str| variable(name).filter(|text| !text.is_empty()).map(SecretText::new);
        Self { smtp_password: secret("SMTP_PASSWORD"), secret_key: secret("SECRET_KEY") }
    }
}

/// The fewest bytes of `SECRET_KEY`: an HS256 key is as long as the hash (RFC 7518 §3.2).
const SECRET_KEY_BYTES: usize = 32;

impl RealmOptions {
    /// Whether there is a mail server to send codes through.
    #[must_use]
    pub fn sends_mail(&self) -> bool {
        self.smtp_server.is_some()
    }

    /// The realm that these options describe.
    ///
    /// # Errors
    /// A sentence that names what is missing or wrong. It never repeats a secret.
    pub fn realm(&self, secrets: SecretVariables) -> Result<RealmRecord, String> {
        if let Some(key) = &secrets.secret_key
            && key.expose_secret().len() < SECRET_KEY_BYTES
        {
            let length = key.expose_secret().len();
            return Err(format!(
                "SECRET_KEY has {length} bytes, at least {SECRET_KEY_BYTES} are needed for HS256: \
                 make one with `openssl rand -base64 48`"
            ));
        }
        let otp_lifetime = OtpLifetime::try_from(self.otp_expiration_minutes)
            .map_err(|error| format!("OTP_EXPIRATION_MINUTES {error}"))?;
        Ok(RealmRecord { issuer: self.issuer.clone(), otp_lifetime, smtp: self.smtp(secrets.smtp_password)? })
    }

    fn smtp(&self, password: Option<SecretText>) -> Result<Option<SmtpSettings>, String> {
        let Some(server) = self.smtp_server.clone() else { return Ok(None) };
        if self.smtp_username.is_some() && password.is_none() {
            return Err("SMTP_USERNAME is set, but SMTP_PASSWORD is not".to_owned());
        }
        let from = self.smtp_from_email.clone().ok_or("SMTP_SERVER is set, but SMTP_FROM_EMAIL is not")?;
        if from.parse::<lettre::message::Mailbox>().is_err() {
            return Err("SMTP_FROM_EMAIL must be an address, or \"Name <address>\"".to_owned());
        }
        let read = |path: &PathBuf| {
            fs::read_to_string(path).map_err(|error| format!("SMTP_CA_FILE {}: {error}", path.display()))
        };
        let by_port = if self.smtp_port == 465 { SmtpSecurity::Implicit } else { SmtpSecurity::Starttls };
        Ok(Some(SmtpSettings {
            server,
            port: self.smtp_port,
            security: self.smtp_security.unwrap_or(by_port),
            username: self.smtp_username.clone(),
            password,
            from,
            ca_certificates: self.smtp_ca_file.as_ref().map(read).transpose()?,
        }))
    }
}
