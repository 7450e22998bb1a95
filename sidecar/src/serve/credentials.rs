//! Reads the credentials of a realm from a directory, which is mounted from a Secret that the
//! operator maintains: where Redis is, and the realm's keys.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;
use twofactor_core::key::{RealmKey, RealmKeys};
use twofactor_core::names::{Caller, RealmNames};
use twofactor_core::secret::SecretText;
use twofactor_store::redis::{ClientIdentity, RedisAccess};

/// The file with the URL of Redis.
pub const REDIS_URL: &str = "redis-url";
/// The file with the realm's keys, of every generation that is in use.
pub const REALM_KEYS: &str = "realm-keys";
/// The file with the realm's first key, as `GENERATION:KEY`, if an operator of version 0.1 has
/// written the credentials.
pub const REALM_KEY: &str = "realm-key";
/// The file with the installation's id.
pub const INSTALLATION: &str = "installation";
/// The file with the realm's id.
pub const REALM: &str = "realm";
/// The file with the namespace of this sidecar.
pub const CALLER: &str = "caller";

/// The file with the CA certificates of Redis, in PEM. It may be missing.
pub const REDIS_CA: &str = "redis-ca";
/// The file with the client certificate for Redis, in PEM. It may be missing.
pub const REDIS_CLIENT_CERTIFICATE: &str = "redis-client-certificate";
/// The file with the private key of that certificate. It may be missing.
pub const REDIS_CLIENT_KEY: &str = "redis-client-key";
/// The file that says that the operator loads the scripts into Redis. It may be missing.
pub const SCRIPTS: &str = "scripts";

/// The files that may be missing. The first key may be, if there are the keys.
const OPTIONAL: [&str; 5] =
    [REALM_KEYS, REDIS_CA, REDIS_CLIENT_CERTIFICATE, REDIS_CLIENT_KEY, SCRIPTS];
/// The files, in the order in which they are read.
const FILES: [&str; 10] = [
    REDIS_URL,
    REALM_KEYS,
    REALM_KEY,
    INSTALLATION,
    REALM,
    CALLER,
    REDIS_CA,
    REDIS_CLIENT_CERTIFICATE,
    REDIS_CLIENT_KEY,
    SCRIPTS,
];
/// The link that the kubelet swaps if a mounted Secret changes. Each file is a link through it, so
/// files belong together only if they were read through the same target.
const DATA: &str = "..data";
/// Maximum number of attempts to read files that are swapped during the read.
const ATTEMPTS: usize = 3;

/// Why the credentials cannot be used. The message never contains the content of a file.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{file}: {reason}", file = .file.display())]
pub struct CredentialsError {
    file: PathBuf,
    reason: String,
}

/// The credentials of a realm.
#[derive(Debug)]
pub struct Credentials {
    /// What connections to Redis are made with.
    pub redis: RedisAccess,
    pub keys: RealmKeys,
    /// The realm's names in Redis.
    pub names: RealmNames,
    /// The namespace of this sidecar.
    pub caller: Caller,
    /// Whether this sidecar loads scripts that Redis does not know, because the operator, of
    /// version 0.1, does not.
    pub loads_scripts: bool,
}

/// Identifies a state of the files without their content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    folder: PathBuf,
    /// `None` for a missing file.
    files: [Option<FileVersion>; FILES.len()],
}

/// Device, inode and size of a file, and the seconds and nanoseconds of its last change.
type FileVersion = (u64, u64, u64, i64, i64);

/// The texts of the files, which were all read in the same state.
#[derive(Debug, PartialEq, Eq)]
pub struct CredentialFiles {
    directory: PathBuf,
    texts: [SecretText; FILES.len()],
}

impl Version {
    /// Returns the version of the files of `directory`, with a few system calls and without reading
    /// a file.
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
    /// Reads the files of `directory`, and returns their version. An error names the file that is
    /// missing or cannot be read.
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

    /// Reads from `folder`, to which `directory` links; errors name files in `directory`.
    fn read_from(folder: &Path, directory: &Path) -> Result<Self, CredentialsError> {
        if !folder.is_dir() {
            let reason = "is not a folder: the operator maintains a Secret twofactor-REALM in each allowed namespace; \
                          mount it there, or name another folder with --credentials";
            return Err(CredentialsError { file: directory.to_owned(), reason: reason.to_owned() });
        }
        let mut texts = FILES.map(|_| SecretText::new(String::new()));
        let mut has_keys = false;
        for (name, text) in FILES.iter().zip(&mut texts) {
            let may_be_missing = OPTIONAL.contains(name) || (*name == REALM_KEY && has_keys);
            match fs::read_to_string(folder.join(name)) {
                Ok(content) => {
                    has_keys |= *name == REALM_KEYS;
                    *text = SecretText::new(content);
                }
                Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => {}
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

    /// Parses the files. An error names the invalid file and the reason.
    pub fn parse(&self) -> Result<Credentials, CredentialsError> {
        let [
            redis_url,
            keys,
            first_key,
            installation,
            realm,
            caller,
            authority,
            certificate,
            certificate_key,
            scripts,
        ] = &self.texts;
        let authority = authority.expose_secret().trim();
        let certificate = certificate.expose_secret();
        let realm = self.parsed(REALM, realm)?;
        let installation = self.parsed(INSTALLATION, installation)?;
        let keys = if keys.expose_secret().is_empty() {
            RealmKey::from_text(first_key.expose_secret())
                .map(|key| key.keys(&realm))
                .map_err(|error| self.wrong(REALM_KEY, &error))?
        } else {
            RealmKeys::from_text(&realm, keys.expose_secret())
                .map_err(|error| self.wrong(REALM_KEYS, &error))?
        };
        Ok(Credentials {
            redis: RedisAccess {
                url: SecretText::new(redis_url.expose_secret().trim().to_owned()),
                authority: (!authority.is_empty()).then(|| authority.to_owned()),
                identity: (!certificate.is_empty()).then(|| ClientIdentity {
                    certificate: certificate.to_owned(),
                    key: certificate_key.clone(),
                }),
            },
            keys,
            names: RealmNames::new(&installation, &realm),
            caller: self.parsed(CALLER, caller)?,
            loads_scripts: scripts.expose_secret().trim().is_empty(),
        })
    }

    /// Returns an error about one of the files.
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

/// Returns the folder that the files are in now.
fn target(directory: &Path) -> PathBuf {
    fs::read_link(directory.join(DATA))
        .map_or_else(|_| directory.to_owned(), |data| directory.join(data))
}
