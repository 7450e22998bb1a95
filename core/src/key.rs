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
use crate::proof::ProofKey;
use crate::secret::SecretText;
use crate::token::Ed25519Key;
use crate::user::Username;

const KEY_BYTES: usize = 32;
pub(crate) type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

/// The key from which the keys of all realms are derived. It never leaves the operator.
pub struct MasterKey(KeyBytes);

/// The key of one realm, which is given to the namespaces of services. It opens the records of this
/// realm only.
pub struct RealmKey {
    bytes: KeyBytes,
    generation: u32,
}

/// The key that seals a realm's records in one generation.
#[derive(Clone, PartialEq, Eq)]
pub struct SealingKey {
    pub(crate) generation: u32,
    pub(crate) bytes: KeyBytes,
}

/// The keys of a realm's names in Redis. They have no generations, because the used codes of a user
/// are stored under these names.
#[derive(Clone, PartialEq, Eq)]
pub struct NameKeys {
    naming: KeyBytes,
    tagging: KeyBytes,
    requests: KeyBytes,
}

/// The keys of one realm, each for one purpose.
#[derive(Clone)]
pub struct RealmKeys {
    pub(crate) realm: RealmId,
    /// Seals records and opens them.
    pub(crate) sealing: SealingKey,
    /// Open records that were or will be sealed in another generation.
    pub(crate) others: Vec<SealingKey>,
    names: NameKeys,
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
    /// They are not the keys of a realm.
    #[error("must have a line `names KEY`, and for each generation a line `GENERATION KEY`")]
    NotRealmKeys,
}

fn decode(text: &str) -> Option<KeyBytes> {
    let bytes = Zeroizing::new(BASE64.decode(text.trim().as_bytes()).ok()?);
    key_of(&bytes)
}

fn key_of(bytes: &[u8]) -> Option<KeyBytes> {
    let mut key = KeyBytes::default();
    if bytes.len() != KEY_BYTES {
        return None;
    }
    key.copy_from_slice(bytes);
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

    /// Returns what identifies the key without revealing it: 32 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        HEXLOWER.encode(&derive(&self.0, &[b"fingerprint"])[..16])
    }

    /// Derives the key of a realm in one generation.
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

    /// Derives the key that proves that an operator with this master key has written a Secret.
    #[must_use]
    pub fn proof_key(&self) -> ProofKey {
        let mut id = [0; 8];
        id.copy_from_slice(&derive(&self.0, &[b"secret-proof-id"])[..8]);
        ProofKey::new(id, derive(&self.0, &[b"secret-proof"]))
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
        RealmKeys::new(realm, self.name_keys(realm), self.sealing_key(realm), Vec::new())
    }

    /// Derives the key that seals the records of `realm` in this generation.
    #[must_use]
    pub fn sealing_key(&self, realm: &RealmId) -> SealingKey {
        SealingKey { generation: self.generation, bytes: self.purpose(b"seal", realm) }
    }

    /// Derives the keys of the names of `realm`.
    #[must_use]
    pub fn name_keys(&self, realm: &RealmId) -> NameKeys {
        NameKeys {
            naming: self.purpose(b"pseudonym", realm),
            tagging: self.purpose(b"code-tag", realm),
            requests: self.purpose(b"request-tag", realm),
        }
    }

    fn purpose(&self, name: &[u8], realm: &RealmId) -> KeyBytes {
        derive(&self.bytes, &[name, realm.as_str().as_bytes()])
    }
}

impl NameKeys {
    /// Parses the text that [`NameKeys::to_text`] returns.
    ///
    /// # Errors
    /// If it is not three keys in base64.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let bytes = BASE64.decode(text.trim().as_bytes()).map_err(|_| KeyError::NotRealmKeys)?;
        let bytes = Zeroizing::new(bytes);
        let mut parts = bytes.chunks_exact(KEY_BYTES);
        let mut next = || parts.next().and_then(key_of).ok_or(KeyError::NotRealmKeys);
        if bytes.len() != 3 * KEY_BYTES {
            return Err(KeyError::NotRealmKeys);
        }
        Ok(Self { naming: next()?, tagging: next()?, requests: next()? })
    }

    /// Returns the keys in base64.
    #[must_use]
    pub fn to_text(&self) -> SecretText {
        let keys = [&self.naming, &self.tagging, &self.requests].map(|key| key.as_slice());
        SecretText::new(BASE64.encode(Zeroizing::new(keys.concat()).as_slice()))
    }
}

impl RealmKeys {
    /// Returns the keys of `realm`: `sealing` seals and opens records, and `others` open them.
    #[must_use]
    pub fn new(
        realm: &RealmId,
        names: NameKeys,
        sealing: SealingKey,
        others: Vec<SealingKey>,
    ) -> Self {
        Self { realm: realm.clone(), sealing, others, names }
    }

    /// Parses the text that [`RealmKeys::to_text`] returns.
    ///
    /// # Errors
    /// If it is not the keys of a realm.
    pub fn from_text(realm: &RealmId, text: &str) -> Result<Self, KeyError> {
        let mut lines = text.lines().filter_map(|line| line.trim().split_once(' '));
        let names = lines.next().filter(|(name, _)| *name == "names");
        let (_, names) = names.ok_or(KeyError::NotRealmKeys)?;
        let mut keys = lines.map(|(generation, key)| {
            let generation = generation.parse().map_err(|_| KeyError::NotRealmKeys)?;
            let bytes = decode(key).ok_or(KeyError::NotRealmKeys)?;
            Ok(SealingKey { generation, bytes })
        });
        let sealing = keys.next().ok_or(KeyError::NotRealmKeys)??;
        let others = keys.collect::<Result<_, _>>()?;
        Ok(Self::new(realm, NameKeys::from_text(names)?, sealing, others))
    }

    /// Returns the text that services get: the keys of names, and those of each generation.
    #[must_use]
    pub fn to_text(&self) -> SecretText {
        let mut text = format!("names {}\n", self.names.to_text().expose_secret());
        for key in [&self.sealing].into_iter().chain(&self.others) {
            let mut encoded = BASE64.encode(key.bytes.as_slice());
            text.extend([key.generation.to_string().as_str(), " ", &encoded, "\n"]);
            encoded.zeroize();
        }
        SecretText::new(text)
    }

    /// The generation of the key that seals records.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.sealing.generation
    }

    /// The key that opens records of this generation.
    pub(crate) fn opening(&self, generation: u32) -> Option<&SealingKey> {
        let mut keys = [&self.sealing].into_iter().chain(&self.others);
        keys.find(|key| key.generation == generation)
    }

    /// Whether both name users and codes of the same realm alike.
    #[must_use]
    pub fn has_names_of(&self, other: &Self) -> bool {
        self.realm == other.realm && self.names == other.names
    }

    /// Returns the name of a user in Redis.
    #[must_use]
    pub fn pseudonym(&self, username: &Username) -> Pseudonym {
        Pseudonym::from_bytes(keyed_hash(&self.names.naming, &[username.as_str().as_bytes()]))
    }

    /// Returns the name of an administrator's request in Redis, which must not contain the
    /// administrator's text.
    #[must_use]
    pub fn request_tag(&self, request: &str) -> String {
        HEXLOWER.encode(&keyed_hash(&self.names.requests, &[request.as_bytes()]))
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
        CodeTag::from_bytes(keyed_hash(&self.names.tagging, &parts))
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

impl fmt::Debug for SealingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SealingKey(generation {}, redacted)", self.generation)
    }
}

impl fmt::Debug for NameKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NameKeys(redacted)")
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
            self.realm,
            self.generation()
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
            assert_ne!(keys.sealing.bytes, keys.names.naming);
            assert_ne!(keys.names.naming, keys.names.tagging);
            names.push(keys.pseudonym(&user));
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn the_keys_of_several_generations_survive_their_text_form() {
        let (id, old, new) =
            (realm("a"), master().realm_key(&realm("a"), 1), master().realm_key(&realm("a"), 2));
        let sealing = vec![old.sealing_key(&id)];
        let keys = RealmKeys::new(&id, old.name_keys(&id), new.sealing_key(&id), sealing);
        let again = RealmKeys::from_text(&id, keys.to_text().expose_secret()).unwrap();
        assert!(again.has_names_of(&old.keys(&id)) && !again.has_names_of(&new.keys(&id)));
        assert_eq!(again.generation(), 2);
        assert!(again.opening(1).unwrap().bytes == old.keys(&id).sealing.bytes);
        assert!(again.opening(3).is_none());
        assert!(!format!("{again:?}").contains("names "));
        let text = keys.to_text();
        let lines: Vec<&str> = text.expose_secret().lines().collect();
        for wrong in ["", "x", lines[0], lines[1], &[lines[0], "x y"].join("\n"), &lines[0][..30]] {
            assert_eq!(RealmKeys::from_text(&id, wrong).unwrap_err(), KeyError::NotRealmKeys);
        }
    }

    #[test]
    fn a_fingerprint_identifies_a_master_key_and_reveals_nothing() {
        assert_eq!(master().fingerprint(), master().fingerprint());
        assert_eq!(master().fingerprint().len(), 32);
        assert_ne!(master().fingerprint(), MasterKey(Zeroizing::new([8; KEY_BYTES])).fingerprint());
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
