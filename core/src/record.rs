//! Seals and opens a user's record: the definition and the seed that the publisher gives to
//! sidecars.

use rand_core::CryptoRng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::key::RealmKeys;
use crate::names::Pseudonym;
use crate::seal::{self, OpenError, Revision, Subject};
use crate::secret::SecretText;
use crate::seed::Seed;
use crate::totp::Totp;
use crate::user::UserDefinition;

/// Initial size of the buffer, larger than any valid record. The buffer never grows, so no copy of
/// a seed is left in memory.
const LARGEST_USER: usize = 4096;

/// Maximum number of characters of a rotation request in a record: an annotation can hold 256 KiB,
/// a record cannot.
const ROTATION_CHARACTERS: usize = 128;

/// Everything that a sidecar knows about a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRecord {
    /// What the administrator has written.
    pub definition: UserDefinition,
    /// The seed. Absent while the user's Secret is missing or unusable.
    pub seed: Option<Seed>,
    /// Whose seed it is, so that the publisher can restore it. Absent if it is never restored.
    pub provenance: Option<Provenance>,
    /// What the publisher has made the record from, in its own words, so that it can tell whether
    /// that has changed. Sidecars ignore it.
    pub source: Option<String>,
}

/// Distinguishes a user's seed from the seed of an earlier user of the same name, and from an
/// earlier seed of the same user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The UID of the object that declares the user.
    pub owner: String,
    /// The request for a new seed that this one answers.
    pub rotation: Option<String>,
}

impl Provenance {
    /// Describes the seed of the user object with the UID `owner`, made for the request `rotation`.
    #[must_use]
    pub fn new(owner: &str, rotation: Option<&str>) -> Self {
        let rotation = rotation.map(|text| text.chars().take(ROTATION_CHARACTERS).collect());
        Self { owner: owner.to_owned(), rotation }
    }
}

/// Reason why a sealed record could not be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It was opened, but contains something else, because another version has written it.
    #[error("the record was opened but does not contain what this version expects")]
    Content,
}

#[derive(Serialize, Deserialize)]
struct SealedUser {
    #[serde(flatten)]
    definition: UserDefinition,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provenance: Option<Provenance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

impl UserRecord {
    /// Returns what computes this user's codes, or nothing without a seed.
    #[must_use]
    pub fn totp(&self) -> Option<Totp> {
        self.seed.as_ref().map(|seed| Totp::new(seed, self.definition.totp))
    }

    /// Returns what computes the codes that are delivered in a context, or in none.
    #[must_use]
    pub fn totp_in(&self, context: Option<&Context>) -> Option<Totp> {
        let Some(context) = context else { return self.totp() };
        self.seed.as_ref().map(|seed| Totp::new(&seed.in_context(context), self.definition.totp))
    }

    /// Seals the record with `revision` for the user `pseudonym`.
    pub fn seal(
        &self,
        keys: &RealmKeys,
        pseudonym: Pseudonym,
        revision: Revision,
        random: &mut impl CryptoRng,
    ) -> Vec<u8> {
        let content = SealedUser {
            definition: self.definition.clone(),
            seed: self.seed.as_ref().map(Seed::to_base32),
            provenance: self.provenance.clone(),
            source: self.source.clone(),
        };
        let plaintext = to_plaintext(&content, LARGEST_USER);
        seal::seal(keys, Subject::User(pseudonym), revision, &plaintext, random)
    }

    /// Opens a record of the user `pseudonym`.
    ///
    /// # Errors
    /// If it cannot be opened, belongs to another user, or contains something else.
    pub fn open(
        keys: &RealmKeys,
        pseudonym: Pseudonym,
        sealed: &[u8],
    ) -> Result<(Revision, Self), RecordError> {
        let opened = seal::open(keys, Subject::User(pseudonym), sealed)?;
        let content: SealedUser = from_plaintext(&opened.plaintext)?;
        if keys.pseudonym(&content.definition.username) != pseudonym {
            return Err(RecordError::Content);
        }
        let seed = match content.seed {
            Some(text) => {
                Some(Seed::from_base32(text.expose_secret()).map_err(|_| RecordError::Content)?)
            }
            None => None,
        };
        let SealedUser { definition, provenance, source, .. } = content;
        Ok((opened.revision, Self { definition, seed, provenance, source }))
    }
}

pub(crate) fn to_plaintext(content: &impl Serialize, capacity: usize) -> Zeroizing<Vec<u8>> {
    let mut plaintext = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *plaintext, content).unwrap_or_else(|_| {
        unreachable!("a record has only text keys, and memory does not fail to be written")
    });
    plaintext
}

pub(crate) fn from_plaintext<T: DeserializeOwned>(plaintext: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(plaintext).map_err(|_| RecordError::Content)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;
    use crate::key::MasterKey;
    use crate::totp::TotpParameters;
    use crate::user::DeliveryMethod;

    fn keys() -> RealmKeys {
        let realm = "a".parse().unwrap();
        MasterKey::generate(&mut UnwrapErr(SysRng)).realm_key(&realm, 1).keys(&realm)
    }

    fn alice(seed: Option<Seed>) -> UserRecord {
        UserRecord {
            definition: UserDefinition {
                username: "alice".parse().unwrap(),
                enabled: true,
                delivery_method: DeliveryMethod::Email,
                email: Some("alice@example.org".to_owned().try_into().unwrap()),
                phone_number: None,
                totp: TotpParameters::default(),
                issuer: None,
                locale: None,
            },
            seed,
            provenance: Some(Provenance { owner: "uid".to_owned(), rotation: None }),
            source: Some("1 48213 FountainAI".to_owned()),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_with_and_without_a_seed() {
        let keys = keys();
        let pseudonym = keys.pseudonym(&"alice".parse().unwrap());
        for seed in [Some(Seed::generate(&mut UnwrapErr(SysRng))), None] {
            let record = alice(seed);
            let sealed = record.seal(&keys, pseudonym, Revision(5), &mut UnwrapErr(SysRng));
            assert_eq!(UserRecord::open(&keys, pseudonym, &sealed).unwrap(), (Revision(5), record));
        }
    }

    #[test]
    fn a_record_sealed_under_a_name_that_is_not_its_users_is_refused() {
        let keys = keys();
        let bob = keys.pseudonym(&"bob".parse().unwrap());
        let sealed = alice(None).seal(&keys, bob, Revision(5), &mut UnwrapErr(SysRng));
        assert_eq!(UserRecord::open(&keys, bob, &sealed).unwrap_err(), RecordError::Content);
    }

    #[test]
    fn a_sealed_record_hides_seed_and_address() {
        let keys = keys();
        let pseudonym = keys.pseudonym(&"alice".parse().unwrap());
        let seed = Seed::generate(&mut UnwrapErr(SysRng));
        let text = seed.to_base32();
        let sealed = alice(Some(seed)).seal(&keys, pseudonym, Revision(5), &mut UnwrapErr(SysRng));
        let shown = String::from_utf8_lossy(&sealed);
        assert!(!shown.contains(text.expose_secret()) && !shown.contains("alice"));
    }
}
