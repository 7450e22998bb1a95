//! Derives keys from the operator's master key (HKDF-SHA-256, RFC 5869).
//!
//! A realm key, which sidecars get in a credentials file, yields [`RealmKeys`]: one key for each
//! purpose, pseudonyms of users and tags of codes. None of them can be printed.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::code::Code;
use crate::context::Context;
use crate::names::{Caller, CodeTag, Pseudonym, RealmId};
use crate::secret::SecretText;
use crate::token::Ed25519Key;
use crate::user::Username;

const KEY_BYTES: usize = 32;
type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

/// The key from which the keys of all realms are derived. It never leaves the operator.
pub struct MasterKey(KeyBytes);

/// The key of one realm, which is given to the namespaces of services. It opens the records of this
/// realm only.
pub struct RealmKey {
    bytes: KeyBytes,
    generation: u32,
}

/// The keys of one realm, each for one purpose.
pub struct RealmKeys {
    pub(crate) realm: RealmId,
    pub(crate) generation: u32,
    pub(crate) sealing: KeyBytes,
    naming: KeyBytes,
    tagging: KeyBytes,
    requests: KeyBytes,
}

/// How the services of one namespace log in to Redis for one realm. It is derived, so it is stored
/// only where the services read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Distinguishes the logins of a realm. It is not secret.
    pub tag: [u8; 16],
    /// The password: 64 hexadecimal digits.
    pub password: SecretText,
}

/// Reason why a text is not a key. The message never contains the text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// It is not 32 bytes of base64.
    #[error("must be 32 bytes in base64")]
    NotAKey,
    /// It is a realm key without its generation.
    #[error("must have the form GENERATION:KEY, with the key as 32 bytes in base64")]
    NotARealmKey,
}

fn decode(text: &str) -> Option<KeyBytes> {
    let bytes = Zeroizing::new(BASE64.decode(text.trim().as_bytes()).ok()?);
    let mut key = KeyBytes::default();
    if bytes.len() != KEY_BYTES {
        return None;
    }
    key.copy_from_slice(&bytes);
    Some(key)
}

/// Derives a key. The parts of `purpose` are prefixed with their lengths, so that different lists
/// never have the same info.
fn derive(key: &[u8; KEY_BYTES], purpose: &[&[u8]]) -> KeyBytes {
    let mut info = b"fountainai-2fa".to_vec();
    for part in purpose {
        append_part(&mut info, part);
    }
    let mut derived = KeyBytes::default();
    Hkdf::<Sha256>::new(None, key)
        .expand(&info, derived.as_mut_slice())
        .unwrap_or_else(|_| unreachable!("32 bytes are within what HKDF-SHA-256 can expand to"));
    derived
}

/// Appends `part` after its length.
pub(crate) fn append_part(buffer: &mut Vec<u8>, part: &[u8]) {
    buffer.extend((part.len() as u64).to_be_bytes());
    buffer.extend(part);
}

/// Computes the first 128 bits of an HMAC-SHA-256 over length-prefixed parts.
fn keyed_hash(key: &[u8; KEY_BYTES], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    let digest = mac.finalize().into_bytes();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

impl MasterKey {
    /// Generates a random key.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut bytes = KeyBytes::default();
        random.fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// Parses a key in base64.
    ///
    /// # Errors
    /// If it is not 32 bytes of base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self).ok_or(KeyError::NotAKey)
    }

    /// Returns the key in base64.
    #[must_use]
    pub fn to_base64(&self) -> SecretText {
        SecretText::new(BASE64.encode(self.0.as_slice()))
    }

    /// Derives the key of a realm. Another generation yields another key and other names, so
    /// raising it revokes everything that the old key opened.
    #[must_use]
    pub fn realm_key(&self, realm: &RealmId, generation: u32) -> RealmKey {
        let bytes =
            derive(&self.0, &[b"realm", realm.as_str().as_bytes(), &generation.to_be_bytes()]);
        RealmKey { bytes, generation }
    }

    /// Derives how the services of the namespace with the UID `namespace` log in for a realm.
    /// Another namespace of the same name has another login.
    #[must_use]
    pub fn login(&self, realm: &RealmId, generation: u32, namespace: &str) -> Login {
        let part = |purpose: &[u8]| {
            let generation = generation.to_be_bytes();
            derive(
                &self.0,
                &[purpose, realm.as_str().as_bytes(), &generation, namespace.as_bytes()],
            )
        };
        let mut tag = [0; 16];
        tag.copy_from_slice(&part(b"redis-login")[..16]);
        Login {
            tag,
            password: SecretText::new(HEXLOWER.encode(part(b"redis-password").as_slice())),
        }
    }
}

impl MasterKey {
    /// Derives the key that signs a realm's tokens if the administrator has set no other key.
    #[must_use]
    pub fn token_key(&self, realm: &RealmId, generation: u32) -> Ed25519Key {
        let generation = generation.to_be_bytes();
        Ed25519Key::from_bytes(&derive(
            &self.0,
            &[b"token-ed25519", realm.as_str().as_bytes(), &generation],
        ))
    }
}

impl Login {
    /// Returns the SHA-256 of the password in hexadecimal digits, as Redis stores it. It reveals
    /// nothing, because the password has 256 random bits.
    #[must_use]
    pub fn password_hash(&self) -> String {
        HEXLOWER.encode(&Sha256::digest(self.password.expose_secret().as_bytes()))
    }
}

impl RealmKey {
    /// Parses the text that [`RealmKey::to_text`] returns.
    ///
    /// # Errors
    /// If it is not `GENERATION:KEY`.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let (generation, key) = text.trim().split_once(':').ok_or(KeyError::NotARealmKey)?;
        let generation = generation.parse().map_err(|_| KeyError::NotARealmKey)?;
        let bytes = decode(key).ok_or(KeyError::NotARealmKey)?;
        Ok(Self { bytes, generation })
    }

    /// Returns the text that services get: `GENERATION:KEY`, with the key in base64.
    #[must_use]
    pub fn to_text(&self) -> SecretText {
        let mut encoded = BASE64.encode(self.bytes.as_slice());
        let text = format!("{}:{encoded}", self.generation);
        encoded.zeroize();
        SecretText::new(text)
    }

    /// Derives the keys of `realm`, one for each purpose.
    #[must_use]
    pub fn keys(&self, realm: &RealmId) -> RealmKeys {
        let purpose = |name: &[u8]| derive(&self.bytes, &[name, realm.as_str().as_bytes()]);
        RealmKeys {
            realm: realm.clone(),
            generation: self.generation,
            sealing: purpose(b"seal"),
            naming: purpose(b"pseudonym"),
            tagging: purpose(b"code-tag"),
            requests: purpose(b"request-tag"),
        }
    }
}

impl RealmKeys {
    /// Returns the name of a user in Redis.
    #[must_use]
    pub fn pseudonym(&self, username: &Username) -> Pseudonym {
        Pseudonym::from_bytes(keyed_hash(&self.naming, &[username.as_str().as_bytes()]))
    }

    /// Returns the name of an administrator's request in Redis, which must not contain the
    /// administrator's text.
    #[must_use]
    pub fn request_tag(&self, request: &str) -> String {
        HEXLOWER.encode(&keyed_hash(&self.requests, &[request.as_bytes()]))
    }

    /// Returns the name of a code in Redis. The same digits of another user, or requested by
    /// another service or in another context, have another tag.
    #[must_use]
    pub fn code_tag(
        &self,
        user: &Pseudonym,
        caller: &Caller,
        code: &Code,
        context: Option<&Context>,
    ) -> CodeTag {
        let mut parts = vec![
            user.as_bytes().as_slice(),
            caller.as_str().as_bytes(),
            code.expose_secret().as_bytes(),
        ];
        // Without a context, it is the tag of earlier versions, whose sidecars use the same log.
        parts.extend(context.map(|context| context.as_str().as_bytes()));
        CodeTag::from_bytes(keyed_hash(&self.tagging, &parts))
    }

    /// Returns the realm.
    #[must_use]
    pub fn realm(&self) -> &RealmId {
        &self.realm
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MasterKey(redacted)")
    }
}

impl fmt::Debug for RealmKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RealmKey(generation {}, redacted)", self.generation)
    }
}

impl fmt::Debug for RealmKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "RealmKeys(realm {}, generation {}, redacted)",
            self.realm, self.generation
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master() -> MasterKey {
        MasterKey(Zeroizing::new([7; KEY_BYTES]))
    }

    fn realm(name: &str) -> RealmId {
        name.parse().unwrap()
    }

    #[test]
    fn keys_survive_their_text_form() {
        let again = MasterKey::from_base64(master().to_base64().expose_secret()).unwrap();
        assert_eq!(again.0, master().0);
        let key = master().realm_key(&realm("a"), 3);
        let again = RealmKey::from_text(key.to_text().expose_secret()).unwrap();
        assert_eq!((again.bytes, again.generation), (key.bytes, 3));
    }

    #[test]
    fn texts_that_are_not_keys_are_refused() {
        for text in ["", "abc", "AAAA", &BASE64.encode(&[1; 31]), &BASE64.encode(&[1; 33])] {
            assert_eq!(MasterKey::from_base64(text).unwrap_err(), KeyError::NotAKey);
            assert_eq!(RealmKey::from_text(text).unwrap_err(), KeyError::NotARealmKey);
        }
        assert_eq!(RealmKey::from_text("x:AAAA").unwrap_err(), KeyError::NotARealmKey);
    }

    #[test]
    fn every_realm_generation_and_purpose_has_its_own_key() {
        let user = "alice".parse().unwrap();
        let mut names = Vec::new();
        for (name, generation) in [("a", 1), ("a", 2), ("b", 1)] {
            let keys = master().realm_key(&realm(name), generation).keys(&realm(name));
            assert_ne!(keys.sealing, keys.naming);
            assert_ne!(keys.naming, keys.tagging);
            names.push(keys.pseudonym(&user));
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn every_realm_generation_and_namespace_has_its_own_login() {
        let mut logins = Vec::new();
        for (name, generation, namespace) in
            [("a", 1, "x"), ("a", 2, "x"), ("b", 1, "x"), ("a", 1, "y")]
        {
            let login = master().login(&realm(name), generation, namespace);
            assert_eq!(login, master().login(&realm(name), generation, namespace));
            assert!(!format!("{login:?}").contains(login.password.expose_secret()));
            assert_eq!(login.password.expose_secret().len(), 64);
            assert_eq!(login.password_hash().len(), 64);
            logins.push((login.tag, login.password_hash()));
        }
        logins.sort();
        logins.dedup_by(|a, b| a.0 == b.0 || a.1 == b.1);
        assert_eq!(logins.len(), 4);
    }

    #[test]
    fn a_code_tag_depends_on_user_caller_code_and_context() {
        let keys = master().realm_key(&realm("a"), 1).keys(&realm("a"));
        let tag_in = |user: &str, caller: &str, code: &str, context: Option<&str>| {
            let user = keys.pseudonym(&user.parse().unwrap());
            let context = context.map(|context| context.parse().unwrap());
            keys.code_tag(
                &user,
                &caller.parse().unwrap(),
                &Code::parse(code).unwrap(),
                context.as_ref(),
            )
        };
        let tag = |user: &str, caller: &str, code: &str| tag_in(user, caller, code, None);
        let mut tags = vec![
            tag("alice", "kms", "123456"),
            tag("bob", "kms", "123456"),
            tag("alice", "kms1", "123456"),
            tag("alice", "kms", "123457"),
            tag("alice", "kms", "1234567"),
            tag_in("alice", "kms", "123456", Some("to X")),
            tag_in("alice", "kms", "123456", Some("to Y")),
        ];
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), 7);
        assert_eq!(tag("alice", "kms", "123456"), tag("alice", "kms", "123456"));
    }

    #[test]
    fn usernames_that_differ_in_case_or_spaces_are_different_users() {
        let keys = master().realm_key(&realm("a"), 1).keys(&realm("a"));
        let pseudonym = |name: &str| keys.pseudonym(&name.parse().unwrap());
        assert_ne!(pseudonym("alice"), pseudonym("Alice"));
        assert_ne!(pseudonym("alice"), pseudonym("alice "));
        assert_ne!(pseudonym("Zo\u{eb}"), pseudonym("Zoe\u{308}"));
    }
}
