//! What a sidecar is given to serve a realm. Enters: a directory, mounted from a Secret that the
//! operator keeps. Leaves: where Redis is, and the realm's keys.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
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

/// The file with what the certificates of Redis are checked against, in PEM. It may be missing.
pub const REDIS_CA: &str = "redis-ca";

/// The files, in the order in which they are read.
const FILES: [&str; 6] = [REDIS_URL, REALM_KEY, INSTALLATION, REALM, CALLER, REDIS_CA];
/// The link that the kubelet swaps when a mounted Secret changes. Each file is a link through it,
/// so a set of files belongs together only when it was read through one and the same target.
const DATA: &str = "..data";
/// How often a set that was swapped while it was read is read again.
const ATTEMPTS: usize = 3;

/// Why the credentials are not usable. No content of a file is part of the message.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{file}: {reason}", file = .file.display())]
pub struct CredentialsError {
    file: PathBuf,
    reason: String,
}

/// Everything that a sidecar needs to serve a realm.
#[derive(Debug)]
pub struct Credentials {
    /// Where Redis is; may hold a password.
    pub redis_url: SecretText,
    /// What its certificates are checked against (PEM), in place of the authorities that the system
    /// trusts.
    pub redis_authority: Option<String>,
    /// The realm's keys.
    pub keys: RealmKeys,
    /// The realm's names in Redis.
    pub names: RealmNames,
    /// The namespace that this sidecar asks for.
    pub caller: Caller,
}

/// What tells one state of the files from another without reading them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    folder: PathBuf,
    /// Absent for a file that is not there.
    files: [Option<Stamp>; FILES.len()],
}

/// Device, inode and size of a file, and the seconds and nanoseconds of its last change.
type Stamp = (u64, u64, u64, i64, i64);

/// The texts of the files, all of one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct CredentialFiles {
    directory: PathBuf,
    texts: [SecretText; FILES.len()],
}

impl Version {
    /// Looks at the files of `directory`: a few calls of the system, and nothing is read.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        let folder = target(directory);
        let files = FILES.map(|name| {
            let data = fs::metadata(folder.join(name)).ok()?;
            Some((data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
        });
        Self { folder, files }
    }
}

impl CredentialFiles {
    /// Reads the files of `directory`, and tells which version of them it was.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be read.
    pub fn read(directory: &Path) -> (Version, Result<Self, CredentialsError>) {
        let mut attempt = 1;
        loop {
            let version = Version::of(directory);
            let result = Self::read_from(&version.folder, directory);
            if attempt == ATTEMPTS || Version::of(directory) == version {
                return (version, result);
            }
            attempt += 1;
        }
    }

    /// Reads from `folder`, which `directory` leads to, and names files as they are called in
    /// `directory`.
    fn read_from(folder: &Path, directory: &Path) -> Result<Self, CredentialsError> {
        if !folder.is_dir() {
            let reason = "is not a folder: the operator keeps a Secret twofactor-REALM for each namespace that it lets \
                          in; mount it there, or name another folder with --credentials";
            return Err(CredentialsError { file: directory.to_owned(), reason: reason.to_owned() });
        }
        let mut texts = FILES.map(|_| SecretText::new(String::new()));
        for (name, text) in FILES.iter().zip(&mut texts) {
            match fs::read_to_string(folder.join(name)) {
                Ok(content) => *text = SecretText::new(content),
                Err(error) if *name == REDIS_CA && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(CredentialsError {
                        file: directory.join(name),
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(Self { directory: directory.to_owned(), texts })
    }

    /// Understands what the files say.
    ///
    /// # Errors
    /// Names the file that is wrong, and what would be right.
    pub fn parse(&self) -> Result<Credentials, CredentialsError> {
        let [redis_url, key, installation, realm, caller, authority] = &self.texts;
        let authority = authority.expose_secret().trim();
        let realm = self.parsed(REALM, realm)?;
        let installation = self.parsed(INSTALLATION, installation)?;
        let key = RealmKey::from_text(key.expose_secret())
            .map_err(|error| self.wrong(REALM_KEY, &error))?;
        Ok(Credentials {
            redis_url: SecretText::new(redis_url.expose_secret().trim().to_owned()),
            redis_authority: (!authority.is_empty()).then(|| authority.to_owned()),
            keys: key.keys(&realm),
            names: RealmNames::new(&installation, &realm),
            caller: self.parsed(CALLER, caller)?,
        })
    }

    /// Whether `other` opens and names the same records in Redis.
    #[must_use]
    pub fn is_same_realm(&self, other: &Self) -> bool {
        let of_the_realm = |files: &Self| {
            let [_, key, installation, realm, ..] = &files.texts;
            [key, installation, realm]
                .map(|text| SecretText::new(text.expose_secret().trim().to_owned()))
        };
        of_the_realm(self) == of_the_realm(other)
    }

    /// An error about one of the files.
    #[must_use]
    pub fn wrong(&self, name: &str, reason: &dyn ToString) -> CredentialsError {
        CredentialsError { file: self.directory.join(name), reason: reason.to_string() }
    }

    fn parsed<T: FromStr<Err: ToString>>(
        &self,
        name: &str,
        text: &SecretText,
    ) -> Result<T, CredentialsError> {
        text.expose_secret().trim().parse().map_err(|error: T::Err| self.wrong(name, &error))
    }
}

/// The folder that the files are in now.
fn target(directory: &Path) -> PathBuf {
    fs::read_link(directory.join(DATA))
        .map_or_else(|_| directory.to_owned(), |data| directory.join(data))
}
