//! Proves that an operator with this master key has written a user's Secret: an HMAC-SHA-256 over
//! what the Secret is for, as an annotation beside it.
//!
//! A proof opens nothing. It says that the seed in a Secret without an owner is the seed of this
//! user, which distinguishes a restored Secret from a forged or an edited one.

use std::fmt;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

use crate::key::KeyBytes;
use crate::seed::Seed;

/// The only format.
const FORMAT: &str = "1";
/// Length of the ID of a key, in hexadecimal digits.
const ID_DIGITS: usize = 16;
/// Length of a proof: format, ID of the key and HMAC, with a colon between two of them.
const LENGTH: usize = FORMAT.len() + 1 + ID_DIGITS + 1 + 64;

/// What a proof is about.
#[derive(Clone, Copy)]
pub struct Statement<'a> {
    /// The name of the namespace. A Secret that is copied to another namespace does not prove
    /// itself there.
    pub namespace: &'a str,
    /// The name of the user object.
    pub user: &'a str,
    /// The username that services verify.
    pub username: &'a str,
    /// The seed.
    pub seed: &'a Seed,
    /// The request for a new seed that this one answers.
    pub rotation: Option<&'a str>,
}

/// A key that makes proofs, derived from a master key.
pub struct ProofKey {
    id: String,
    bytes: KeyBytes,
}

/// The key that makes proofs, and the one before, whose proofs are accepted too.
#[derive(Debug)]
pub struct ProofKeys {
    current: ProofKey,
    previous: Option<ProofKey>,
}

/// Which key has made a valid proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvenBy {
    /// The current one.
    Current,
    /// The one before, so the proof should be replaced.
    Previous,
}

/// Why a text proves nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProofError {
    /// It is no proof.
    #[error("is not a proof")]
    NotAProof,
    /// Neither of the keys has made it.
    #[error("was made with another master key")]
    OtherKey,
    /// It is about something else, or forged.
    #[error("is of another namespace, user, username or seed")]
    Wrong,
}

impl ProofKey {
    /// `id` distinguishes keys, and reveals nothing of `bytes`.
    pub(crate) fn new(id: [u8; ID_DIGITS / 2], bytes: KeyBytes) -> Self {
        Self { id: HEXLOWER.encode(&id), bytes }
    }

    /// Computes the HMAC. Each part is prefixed with its length, so that no byte can move from one
    /// part to another.
    fn mac(&self, statement: &Statement<'_>) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.bytes.as_slice())
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        let Statement { namespace, user, username, seed, rotation } = statement;
        let texts = [FORMAT, namespace, user, username].map(str::as_bytes);
        let rotation = rotation.map(str::as_bytes);
        for part in texts.into_iter().chain([seed.expose_secret()]).chain(rotation) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

impl ProofKeys {
    /// Proves with `current`, and accepts the proofs of `previous` too.
    #[must_use]
    pub const fn new(current: ProofKey, previous: Option<ProofKey>) -> Self {
        Self { current, previous }
    }

    /// The ID of the key that makes proofs: 16 hexadecimal digits. It is not secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.current.id
    }

    /// Returns the proof: `1:ID:HMAC`, with the HMAC in hexadecimal digits.
    #[must_use]
    pub fn prove(&self, statement: &Statement<'_>) -> String {
        let digest = self.current.mac(statement).finalize().into_bytes();
        format!("{FORMAT}:{}:{}", self.current.id, HEXLOWER.encode(&digest))
    }

    /// Checks a proof, in a time that does not depend on how much of it is right.
    ///
    /// # Errors
    /// If it does not prove the statement.
    pub fn check(&self, proof: &str, statement: &Statement<'_>) -> Result<ProvenBy, ProofError> {
        // The text comes from an annotation, which can be long.
        if proof.len() != LENGTH {
            return Err(ProofError::NotAProof);
        }
        let mut parts = proof.split(':');
        let (Some(FORMAT), Some(id), Some(digest), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ProofError::NotAProof);
        };
        let digest = HEXLOWER.decode(digest.as_bytes()).map_err(|_| ProofError::NotAProof)?;
        let (key, proven_by) = match &self.previous {
            _ if id == self.current.id => (&self.current, ProvenBy::Current),
            Some(previous) if id == previous.id => (previous, ProvenBy::Previous),
            _ => return Err(ProofError::OtherKey),
        };
        key.mac(statement).verify_slice(&digest).map_err(|_| ProofError::Wrong)?;
        Ok(proven_by)
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ProofKey({}, redacted)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;

    use super::*;
    use crate::key::MasterKey;

    fn key(byte: u8) -> ProofKey {
        MasterKey::from_base64(&BASE64.encode(&[byte; 32])).unwrap().proof_key()
    }

    fn seed(byte: u8) -> Seed {
        Seed::from_bytes(vec![byte; 20]).unwrap()
    }

    fn statement(seed: &Seed) -> Statement<'_> {
        Statement {
            namespace: "people",
            user: "alice",
            username: "alice@example.org",
            seed,
            rotation: None,
        }
    }

    #[test]
    fn a_proof_holds_for_its_statement_and_for_no_other() {
        let (keys, alice, other) = (ProofKeys::new(key(1), None), seed(1), seed(2));
        let statement = statement(&alice);
        let proof = keys.prove(&statement);
        assert_eq!(proof.len(), LENGTH);
        assert_eq!(keys.check(&proof, &statement), Ok(ProvenBy::Current));
        for changed in [
            Statement { namespace: "peopl", user: "ealice", ..statement },
            Statement { namespace: "others", ..statement },
            Statement { user: "bob", ..statement },
            Statement { username: "alice", ..statement },
            Statement { seed: &other, ..statement },
            Statement { rotation: Some(""), ..statement },
            Statement { rotation: Some("1"), ..statement },
        ] {
            assert_eq!(keys.check(&proof, &changed), Err(ProofError::Wrong));
        }
    }

    #[test]
    fn a_text_that_is_no_proof_is_refused_whatever_its_length() {
        let (keys, alice) = (ProofKeys::new(key(1), None), seed(1));
        let proof = keys.prove(&statement(&alice));
        let check = |text: &str| keys.check(text, &statement(&alice));
        let long = "1:".repeat(125_000);
        for text in ["", "1", &proof[1..], &proof.replace(':', ";"), &long] {
            assert_eq!(check(text), Err(ProofError::NotAProof), "{text:.99}");
        }
        assert_eq!(check(&format!("2{}", &proof[1..])), Err(ProofError::NotAProof));
        assert_eq!(check(&proof.to_uppercase()), Err(ProofError::NotAProof));
        let last = if proof.ends_with('0') { '1' } else { '0' };
        assert_eq!(check(&format!("{}{last}", &proof[..LENGTH - 1])), Err(ProofError::Wrong));
    }

    #[test]
    fn a_proof_of_the_master_key_before_is_accepted_while_that_key_is_known() {
        let alice = seed(1);
        let old = ProofKeys::new(key(1), None).prove(&statement(&alice));
        let rotated = ProofKeys::new(key(2), Some(key(1)));
        assert_eq!(rotated.check(&old, &statement(&alice)), Ok(ProvenBy::Previous));
        let new = rotated.prove(&statement(&alice));
        assert_ne!(old, new);
        assert_eq!(rotated.check(&new, &statement(&alice)), Ok(ProvenBy::Current));
        let forgotten = ProofKeys::new(key(2), None);
        assert_eq!(forgotten.check(&old, &statement(&alice)), Err(ProofError::OtherKey));
    }

    #[test]
    fn a_proof_key_is_not_printed() {
        let (printed, id) = (format!("{:?}", key(1)), ProofKeys::new(key(1), None).id().to_owned());
        assert_eq!(printed, format!("ProofKey({id}, redacted)"));
    }
}
