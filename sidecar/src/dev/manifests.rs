//! Reads users from manifests on disk, as they should be published, with a problem for everything
//! that is wrong.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rand_core::CryptoRng;
use thiserror::Error;
use twofactor_api::manifest::{self, Located, Manifests, Problem};
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::import;
use twofactor_core::names::Pseudonym;
use twofactor_core::record::UserRecord;
use twofactor_core::seed::Seed;
use twofactor_core::user::{UserDefinition, Username};
use twofactor_store::StoreError;
use twofactor_store::publisher::{DesiredUser, Publisher, UnlistedUsers};

/// Endings of the files that are read from a folder.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Maximum size of a file of manifests, in bytes.
const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// A path that cannot be read.
#[derive(Debug, Error)]
#[error("{path}: {source}", path = .path.display())]
pub struct PathError {
    path: PathBuf,
    source: io::Error,
}

/// Reads the files of `paths`, and those in the folders of `paths`, sorted. Files in a folder whose
/// names begin with a dot are left out, because editors and synchronizing programs keep copies
/// there. Fails if a path is missing or cannot be read.
pub fn read_files(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, PathError> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut inside = list(path)?;
            inside.sort();
            files.append(&mut inside);
        } else {
            files.push(path.clone());
        }
    }
    files.into_iter().map(|path| read_file(&path)).collect()
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, PathError> {
    let wrong = |source| PathError { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.is_file() && ENDINGS.contains(&ending) && !hidden {
            files.push(path);
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<(String, Vec<u8>), PathError> {
    let wrong = |source| PathError { path: path.to_owned(), source };
    if fs::metadata(path).map_err(wrong)?.len() > LARGEST_FILE {
        return Err(wrong(io::Error::other("is larger than 16 MiB")));
    }
    Ok((path.display().to_string(), fs::read(path).map_err(wrong)?))
}

/// Parses all files, with the problems in them.
pub fn parse(files: &[(String, Vec<u8>)]) -> Manifests {
    let mut all = Manifests::default();
    for (name, content) in files {
        all.append(manifest::read(name, content));
    }
    all
}

/// Where a user's seed comes from.
enum SeedSource {
    /// A Secret among the manifests.
    Imported(Seed),
    /// The manifest names a Secret that is missing or unusable, so the user has none.
    Missing,
    /// The manifest names no Secret, so `dev` makes the seed.
    Own,
}

/// The seeds of `dev` by user, made here or found in the store.
#[derive(Default)]
pub struct SeedBook {
    seeds: HashMap<Username, Seed>,
    /// Seeds that were made here and are not known to be published.
    fresh: HashMap<Username, Seed>,
    /// Users whose seed was given to the publisher. That may have succeeded although it seemed to
    /// fail, and a code may have been used since.
    offered: HashSet<Username>,
}

impl SeedBook {
    /// Whether the seed is known here; otherwise it may be in the store.
    fn knows(&self, username: &Username) -> bool {
        self.seeds.contains_key(username)
    }

    fn found(&mut self, username: &Username, seed: Seed) {
        self.seeds.insert(username.clone(), seed);
    }

    fn make(&mut self, username: &Username, random: &mut impl CryptoRng) {
        let seed = Seed::generate(random);
        self.fresh.insert(username.clone(), seed.clone());
        self.seeds.insert(username.clone(), seed);
    }

    /// Returns the seeds that were made for the users, once all are published.
    pub fn take_published(&mut self) -> HashMap<Username, Seed> {
        std::mem::take(&mut self.fresh)
    }

    /// Forgets the seeds that were made here, because another process published other ones.
    pub fn forget_fresh(&mut self) {
        for username in std::mem::take(&mut self.fresh).into_keys() {
            self.seeds.remove(&username);
            self.offered.remove(&username);
        }
    }
}

struct User {
    definition: UserDefinition,
    source: SeedSource,
    /// The value of the annotation that resets failures.
    reset: Option<String>,
}

/// The valid users of the manifests.
pub struct Users {
    users: Vec<User>,
    complete: bool,
}

impl Users {
    /// Validates users one by one, so that an invalid one does not affect the others.
    pub fn from_manifests(manifests: &Manifests) -> (Self, Vec<Problem>) {
        let mut problems = manifests.problems.clone();
        let mut taken: HashMap<Username, String> = HashMap::new();
        let mut users = Vec::new();
        for located in &manifests.users {
            let definition = match located.validate() {
                Ok(definition) => definition,
                Err(mut wrong) => {
                    problems.append(&mut wrong);
                    continue;
                }
            };
            if let Some(owner) = taken.get(&definition.username) {
                let message =
                    format!("{:?} is taken by the user at {owner}", definition.username.as_str());
                problems.push(problem(located, "spec.username", message));
                continue;
            }
            taken.insert(definition.username.clone(), format!("{}:{}", located.file, located.line));
            let source = seed_source(located, &definition, manifests).unwrap_or_else(|wrong| {
                problems.push(wrong);
                SeedSource::Missing
            });
            let annotations = located.value.metadata.annotations.as_ref();
            let reset =
                annotations.and_then(|all| all.get(labels::RESET_FAILURES_ANNOTATION)).cloned();
            users.push(User { definition, source, reset });
        }
        (Self { users, complete: problems.is_empty() }, problems)
    }

    /// Whether published users who are not among these are removed. They are not if a manifest is
    /// invalid, because it may be that of such a user, who would lose their seed.
    pub fn unlisted(&self) -> UnlistedUsers {
        if self.complete { UnlistedUsers::Remove } else { UnlistedUsers::Keep }
    }

    /// Returns the names of published users who are not among these, although the manifests cannot
    /// all be read. Names that cannot be read in the store are left out.
    pub async fn kept(&self, publisher: &Publisher) -> Result<BTreeSet<String>, StoreError> {
        let mut kept = BTreeSet::new();
        if self.complete {
            return Ok(kept);
        }
        let pseudonym = |user: &User| publisher.keys().pseudonym(&user.definition.username);
        let listed: HashSet<Pseudonym> = self.users.iter().map(pseudonym).collect();
        for user in publisher.store().users().await? {
            if !listed.contains(&user)
                && let Some(record) = publisher.current(user).await?
            {
                kept.insert(record.definition.username.into());
            }
        }
        Ok(kept)
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Returns the users with their seeds: imported, known, already published, or new. Fails if the
    /// store does not answer, because no seed is made while there may be one.
    pub async fn desired(
        &self,
        book: &mut SeedBook,
        random: &mut impl CryptoRng,
        publisher: &Publisher,
    ) -> Result<Vec<DesiredUser>, StoreError> {
        let mut desired = Vec::with_capacity(self.users.len());
        for User { definition, source, reset } in &self.users {
            let username = &definition.username;
            let seed = match source {
                SeedSource::Imported(seed) => Some(seed.clone()),
                SeedSource::Missing => None,
                SeedSource::Own => {
                    if !book.knows(username) {
                        let record =
                            publisher.current(publisher.keys().pseudonym(username)).await?;
                        match record.and_then(|record| record.seed) {
                            Some(seed) => book.found(username, seed),
                            None => book.make(username, random),
                        }
                    }
                    book.seeds.get(username).cloned()
                }
            };
            let ours = matches!(source, SeedSource::Own) && book.fresh.contains_key(username);
            let fresh = ours && book.offered.insert(username.clone());
            desired.push(DesiredUser {
                record: UserRecord {
                    definition: definition.clone(),
                    seed,
                    provenance: None,
                    source: None,
                },
                fresh,
                reset: reset.as_ref().map(|request| publisher.keys().request_tag(request)),
                // Only Redis knows it.
                disabled: false,
            });
        }
        Ok(desired)
    }

    /// Whether the seed of a user comes from a Secret.
    pub fn has_imports(&self) -> bool {
        self.users.iter().any(|user| matches!(user.source, SeedSource::Imported(_)))
    }

    /// Returns the definitions in the order of the manifests.
    pub fn definitions(&self) -> impl Iterator<Item = &UserDefinition> {
        self.users.iter().map(|user| &user.definition)
    }
}

fn seed_source(
    located: &Located<TwoFactorUser>,
    user: &UserDefinition,
    manifests: &Manifests,
) -> Result<SeedSource, Problem> {
    let object = &located.value;
    let Some(reference) = &object.spec.secret_ref else { return Ok(SeedSource::Own) };
    let namespace = object.metadata.namespace.as_deref();
    let Some(secret) = manifests.secret(namespace, &reference.name) else {
        let message = format!(
            "there is no Secret {:?} among the manifests of this namespace",
            reference.name
        );
        return Err(problem(located, "spec.secretRef.name", message));
    };
    let Some(value) = secret.values.get(&reference.key) else {
        let (name, key) = (&reference.name, &reference.key);
        let message = if secret.binary.contains(key) {
            format!("the key {key:?} of the Secret {name:?} is not text")
        } else {
            format!("the Secret {name:?} has no key {key:?}")
        };
        return Err(problem(located, "spec.secretRef.key", message));
    };
    let imported = import::seed(value.expose_secret(), &user.username, &user.totp);
    imported.map(SeedSource::Imported).map_err(|error| {
        let message =
            format!("the key {:?} of the Secret {:?} {error}", reference.key, reference.name);
        problem(located, "spec.secretRef", message)
    })
}

fn problem(located: &Located<TwoFactorUser>, field: &str, message: String) -> Problem {
    Problem {
        file: located.file.clone(),
        line: located.line_of(field),
        field: Some(field.to_owned()),
        message,
    }
}
