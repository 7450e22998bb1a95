//! Seals records so that only holders of the realm key can read, move, relabel or roll them back.
//!
//! A record is encrypted with XChaCha20-Poly1305 under the realm's sealing key. Opening fails if
//! anything was changed.
//!
//! Layout: format (1 byte), key generation (4), revision (8), nonce (24), ciphertext and tag. The
//! first three, the realm, the kind and the user are associated data, so none of them can be
//! changed.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::key::{RealmKeys, append_part};
use crate::names::Pseudonym;

/// The only format. A new format is written one release after it can be read.
const FORMAT: u8 = 1;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = 1 + 4 + 8;
/// Number of bytes at the beginning of a sealed record that no other sealed record has: they
/// contain its revision and its nonce. They are not authenticated before the record is opened.
pub const BEGINNING_BYTES: usize = HEADER_BYTES + NONCE_BYTES;

/// Returns the revision that the beginning of a sealed record shows. It is not authenticated.
#[must_use]
pub fn beginning_revision(beginning: &[u8]) -> Option<Revision> {
    let bytes = beginning.get(HEADER_BYTES - 8..HEADER_BYTES)?;
    bytes.try_into().ok().map(|bytes| Revision(u64::from_be_bytes(bytes)))
}

/// The revision of a record, which only rises. The publisher uses the time in milliseconds, or one
/// more than the last revision if that is higher, so that it rises even if Redis has lost the last
/// one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// What a sealed record describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A user.
    User(Pseudonym),
    /// The realm itself.
    Realm,
}

/// An opened record.
pub struct Opened {
    /// The revision that the record was sealed with.
    pub revision: Revision,
    /// The content.
    pub plaintext: Zeroizing<Vec<u8>>,
}

/// Reason why a record could not be opened.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OpenError {
    /// It is too short.
    #[error("the record is truncated")]
    Truncated,
    /// Another version has written it, in a format that this version cannot read.
    #[error("the record has format {0}, this version reads format 1")]
    Format(u8),
    /// It was sealed with another generation of the realm key.
    #[error(
        "the record is sealed under generation {found} of the realm key, this is generation {ours}"
    )]
    Generation {
        /// The generation of the record.
        found: u32,
        /// The generation of this key.
        ours: u32,
    },
    /// It is damaged, forged, or moved from another user or realm.
    #[error("the record cannot be opened with this realm's key")]
    NotAuthentic,
}

fn associated_data(keys: &RealmKeys, subject: Subject, header: &[u8]) -> Vec<u8> {
    let mut data = b"fountainai-2fa record".to_vec();
    append_part(&mut data, keys.realm.as_str().as_bytes());
    match subject {
        Subject::User(pseudonym) => {
            append_part(&mut data, b"user");
            append_part(&mut data, pseudonym.as_bytes());
        }
        Subject::Realm => append_part(&mut data, b"realm"),
    }
    append_part(&mut data, header);
    data
}

/// Seals `plaintext` as revision `revision` of `subject`.
pub fn seal(
    keys: &RealmKeys,
    subject: Subject,
    revision: Revision,
    plaintext: &[u8],
    random: &mut impl CryptoRng,
) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(HEADER_BYTES + NONCE_BYTES + plaintext.len() + 16);
    sealed.push(FORMAT);
    sealed.extend(keys.sealing.generation.to_be_bytes());
    sealed.extend(revision.0.to_be_bytes());
    let mut nonce = [0; NONCE_BYTES];
    random.fill_bytes(&mut nonce);
    let associated = associated_data(keys, subject, &sealed);
    let ciphertext = XChaCha20Poly1305::new((&*keys.sealing.bytes).into())
        .encrypt(&XNonce::from(nonce), Payload { msg: plaintext, aad: &associated })
        .unwrap_or_else(|_| unreachable!("a record is far shorter than what the cipher can take"));
    sealed.extend(nonce);
    sealed.extend(ciphertext);
    sealed
}

/// Returns the generation of the key that a record was sealed with, as the record says. It is not
/// authenticated before the record is opened.
#[must_use]
pub fn generation(sealed: &[u8]) -> Option<u32> {
    let bytes = sealed.get(1..5)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Opens a record that [`seal`] made for the same subject with the same key.
///
/// # Errors
/// If it is anything else. The error reveals nothing of the content.
pub fn open(keys: &RealmKeys, subject: Subject, sealed: &[u8]) -> Result<Opened, OpenError> {
    let (header, rest) = sealed.split_at_checked(HEADER_BYTES).ok_or(OpenError::Truncated)?;
    let (nonce, ciphertext) =
        rest.split_first_chunk::<NONCE_BYTES>().ok_or(OpenError::Truncated)?;
    let [format, generation @ .., _, _, _, _, _, _, _, _] = header else {
        return Err(OpenError::Truncated);
    };
    if *format != FORMAT {
        return Err(OpenError::Format(*format));
    }
    let generation = u32::from_be_bytes(generation.try_into().map_err(|_| OpenError::Truncated)?);
    let key = keys
        .opening(generation)
        .ok_or(OpenError::Generation { found: generation, ours: keys.generation() })?;
    let revision =
        header[5..].try_into().map(u64::from_be_bytes).map_err(|_| OpenError::Truncated)?;
    let associated = associated_data(keys, subject, header);
    let plaintext = XChaCha20Poly1305::new((&*key.bytes).into())
        .decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: &associated })
        .map_err(|_| OpenError::NotAuthentic)?;
    Ok(Opened { revision: Revision(revision), plaintext: Zeroizing::new(plaintext) })
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;
    use crate::key::MasterKey;

    fn keys(realm: &str, generation: u32) -> RealmKeys {
        let master = MasterKey::from_base64(&data_encoding::BASE64.encode(&[9; 32])).unwrap();
        let realm = realm.parse().unwrap();
        master.realm_key(&realm, generation).keys(&realm)
    }

    const ALICE: Subject = Subject::User(Pseudonym::from_bytes([1; 16]));
    const BOB: Subject = Subject::User(Pseudonym::from_bytes([2; 16]));

    fn sealed() -> Vec<u8> {
        seal(&keys("a", 1), ALICE, Revision(42), b"content", &mut UnwrapErr(SysRng))
    }

    #[test]
    fn what_was_sealed_is_opened_with_its_revision() {
        let opened = open(&keys("a", 1), ALICE, &sealed()).unwrap();
        assert_eq!(
            (opened.revision, opened.plaintext.as_slice()),
            (Revision(42), b"content".as_slice())
        );
    }

    #[test]
    fn a_record_is_opened_with_the_key_of_its_generation_and_no_old_key_opens_a_new_one() {
        let (old, new) = (keys("a", 1), keys("a", 2));
        let realm = "a".parse().unwrap();
        let master = MasterKey::from_base64(&data_encoding::BASE64.encode(&[9; 32])).unwrap();
        let old_key = master.realm_key(&realm, 1);
        let both = RealmKeys::new(
            &realm,
            old_key.name_keys(&realm),
            master.realm_key(&realm, 2).sealing_key(&realm),
            vec![old_key.sealing_key(&realm)],
        );
        assert!(open(&both, ALICE, &sealed()).is_ok());
        let again = seal(&both, ALICE, Revision(43), b"content", &mut UnwrapErr(SysRng));
        assert_eq!((generation(&sealed()), generation(&again)), (Some(1), Some(2)));
        assert!(open(&new, ALICE, &again).is_ok());
        assert_eq!(
            open(&old, ALICE, &again).err().unwrap(),
            OpenError::Generation { found: 2, ours: 1 }
        );
        assert_eq!(generation(&[1, 0, 0]), None);
    }

    #[test]
    fn sealing_twice_gives_different_bytes() {
        assert_ne!(sealed(), sealed());
    }

    #[test]
    fn a_record_of_another_user_realm_kind_or_generation_does_not_open() {
        let sealed = sealed();
        let error = |keys: &RealmKeys, subject| open(keys, subject, &sealed).err().unwrap();
        assert_eq!(error(&keys("a", 1), BOB), OpenError::NotAuthentic);
        assert_eq!(error(&keys("a", 1), Subject::Realm), OpenError::NotAuthentic);
        assert_eq!(error(&keys("b", 1), ALICE), OpenError::NotAuthentic);
        assert_eq!(error(&keys("a", 2), ALICE), OpenError::Generation { found: 1, ours: 2 });
    }

    #[test]
    fn no_byte_of_a_record_can_be_changed_and_none_left_out() {
        let sealed = sealed();
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(open(&keys("a", 1), ALICE, &changed).is_err(), "byte {index}");
            assert!(open(&keys("a", 1), ALICE, &sealed[..index]).is_err(), "first {index} bytes");
        }
    }
}
