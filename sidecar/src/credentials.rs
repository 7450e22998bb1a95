//! What a sidecar is given to serve a realm. Enters: a directory, mounted from a Secret that the operator keeps.
//! Leaves: where Redis is, and the realm's keys.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;
use twofactor_core::key::{RealmKey, RealmKeys};
use twofactor_core::names::{Caller, RealmNames};
use twofactor_core::secret::SecretText;

/// The file with the URL of Redis.
pub const REDIS_URL: &str = "redis-url";
/// The file with the realm's key, as `GENERATION:KEY`.
pub const REALM_KEY: &str = "realm-key";
/// The file with the installation's id.
pub const INSTALLATION: &str = "installation";
/// The file with the realm's id.
pub const REALM: &str = "realm";
/// The file with the namespace that this sidecar asks for.
pub const CALLER: &str = "caller";

/// Why the credentials are not usable. No content of a file is part of the message.
#[derive(Debug, Error)]
#[error("{file}: {reason}", file = .file.display())]
pub struct CredentialsError {
    file: std::path::PathBuf,
    reason: String,
}

/// Everything that a sidecar needs to serve a realm.
#[derive(Debug)]
pub struct Credentials {
    /// Where Redis is; may hold a password.
    pub redis_url: SecretText,
    /// The realm's keys.
    pub keys: RealmKeys,
    /// The realm's names in Redis.
    pub names: RealmNames,
    /// The namespace that this sidecar asks for.
    pub caller: Caller,
}

impl Credentials {
    /// Reads the five files of `directory`.
    ///
    /// # Errors
    /// Names the file that is missing or wrong, and what would be right.
    pub fn read(directory: &Path) -> Result<Self, CredentialsError> {
        let text = |name: &str| {
            let file = directory.join(name);
            match fs::read_to_string(&file) {
                Ok(text) => Ok(SecretText::new(text)),
                Err(error) => Err(CredentialsError { file, reason: error.to_string() }),
            }
        };
        let realm = parse(directory, REALM, &text(REALM)?)?;
        let installation = parse(directory, INSTALLATION, &text(INSTALLATION)?)?;
        let key = RealmKey::from_text(text(REALM_KEY)?.expose_secret()).map_err(|error| {
            CredentialsError { file: directory.join(REALM_KEY), reason: error.to_string() }
        })?;
        Ok(Self {
            redis_url: SecretText::new(text(REDIS_URL)?.expose_secret().trim().to_owned()),
            keys: key.keys(&realm),
            names: RealmNames::new(&installation, &realm),
            caller: parse(directory, CALLER, &text(CALLER)?)?,
        })
    }
}

fn parse<T: FromStr<Err: ToString>>(
    directory: &Path,
    name: &str,
    text: &SecretText,
) -> Result<T, CredentialsError> {
    text.expose_secret()
        .trim()
        .parse()
        .map_err(|error: T::Err| CredentialsError { file: directory.join(name), reason: error.to_string() })
}
