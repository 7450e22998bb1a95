//! Names the keys in Redis.
//!
//! No key contains the name of a person: a user appears as a keyed hash. It is also the hash tag,
//! so that all keys of a user are in one slot of a Redis Cluster and a brace in a username does no
//! harm.

use std::fmt;

use thiserror::Error;

/// Version of everything that Redis stores: of key names, of fields and of values.
const LAYOUT: &str = "2fa1";
/// Number of characters between the braces of the key with a node's fill id.
const NODE_TAG: usize = 5;

macro_rules! identifier {
    ($(#[$documentation:meta])* $name:ident, $longest:literal) => {
        $(#[$documentation])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdentifierError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                if text.is_empty() || text.len() > $longest || !text.bytes().all(allowed) {
                    return Err(IdentifierError { longest: $longest });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// The id of the installation that wrote a key, so that two clusters can share a Redis. It is
    /// the UID of the namespace `kube-system` unless an administrator sets another one.
    Installation,
    64
);
identifier!(
    /// The id of a realm: the UID of the namespace that contains its users.
    RealmId,
    64
);
identifier!(
    /// The namespace of the calling service. Codes and failure counts of different callers are
    /// separate.
    Caller,
    63
);

/// The reason why a text is not an identifier.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 1 to {longest} letters, digits or hyphens")]
pub struct IdentifierError {
    /// Maximum number of characters.
    pub longest: usize,
}

/// The name of a user in Redis: 128 bits of a hash that is keyed by the realm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pseudonym([u8; 16]);

impl Pseudonym {
    /// Wraps the first 128 bits of a keyed hash.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bits.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Pseudonym {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Pseudonym {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pseudonym({self})")
    }
}

impl std::str::FromStr for Pseudonym {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = IdentifierError { longest: 32 };
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| error)?;
        bytes.try_into().map(Self).map_err(|_| error)
    }
}

/// The name of a submitted or issued code in Redis: 128 bits of a hash over user, caller and code
/// that is keyed by the realm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodeTag([u8; 16]);

impl CodeTag {
    /// Wraps the first 128 bits of a keyed hash.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for CodeTag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CodeTag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CodeTag({self})")
    }
}

/// The names of the keys of one realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmNames {
    prefix: String,
    realm: RealmId,
}

/// The names of the keys of one user, all in one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNames {
    /// The sealed record. Sidecars only read it. No expiry.
    pub record: String,
    /// Hash: revision, since, until, failures and blocks, and when codes were requested. Only the
    /// publisher creates it. No expiry.
    pub state: String,
    /// Hash: the OTP log, the codes that were issued. Expires with the last of them.
    pub otp: String,
    /// List: the history. Trimmed by age and length.
    pub history: String,
    /// Stream: the history that sidecars of version 0.1 write. Trimmed by age.
    pub log: String,
}

impl RealmNames {
    /// Builds the names of `realm` in `installation`.
    #[must_use]
    pub fn new(installation: &Installation, realm: &RealmId) -> Self {
        Self { prefix: format!("{LAYOUT}:{installation}:{realm}"), realm: realm.clone() }
    }

    /// Returns the glob pattern of every key of every realm of `installation`.
    #[must_use]
    pub fn every_key_of(installation: &Installation) -> String {
        format!("{LAYOUT}:{installation}:*")
    }

    /// Returns the realm of a key, or nothing for keys of other installations or other programs.
    #[must_use]
    pub fn realm_of(installation: &Installation, key: &str) -> Option<RealmId> {
        let rest = key.strip_prefix(LAYOUT)?.strip_prefix(':')?;
        let rest = rest.strip_prefix(installation.as_str())?.strip_prefix(':')?;
        rest.split_once(":{")?.0.parse().ok()
    }

    /// Returns the name of an ACL user of this realm.
    #[must_use]
    pub fn login(&self, tag: &[u8; 16]) -> String {
        format!("{}:{}", self.prefix, data_encoding::HEXLOWER.encode(tag))
    }

    /// Returns the realm of an ACL user, or nothing for users of other installations or other
    /// programs.
    #[must_use]
    pub fn realm_of_login(installation: &Installation, name: &str) -> Option<RealmId> {
        let rest = name.strip_prefix(LAYOUT)?.strip_prefix(':')?;
        let rest = rest.strip_prefix(installation.as_str())?.strip_prefix(':')?;
        let (realm, tag) = rest.split_once(':')?;
        tag.parse::<Pseudonym>().ok()?;
        realm.parse().ok()
    }

    /// Returns the glob patterns of the keys that sidecars only read: the realm's own, and the
    /// users' records.
    #[must_use]
    pub fn keys_to_read(&self) -> Vec<String> {
        // Neither the prefix nor a realm's id has characters that are special in a pattern, and
        // braces are not special.
        let any_node = "?".repeat(NODE_TAG);
        vec![
            self.realm_record(),
            self.realm_meta(),
            self.node_fill_id(&any_node),
            self.realm_heartbeat(),
            self.pattern_of_every("rec"),
        ]
    }

    /// Returns the glob patterns of the keys of all realms that sidecars only read.
    #[must_use]
    pub fn shared_keys_to_read(&self) -> Vec<String> {
        vec![self.heartbeat(&"?".repeat(NODE_TAG))]
    }

    /// Returns the glob patterns of the keys that sidecars write.
    #[must_use]
    pub fn keys_to_write(&self) -> Vec<String> {
        let mut patterns: Vec<String> =
            ["state", "otp", "hist", "log"].map(|kind| self.pattern_of_every(kind)).into();
        patterns.push(self.realm_deliveries());
        patterns
    }

    fn pattern_of_every(&self, kind: &str) -> String {
        format!("{}:{{{}}}:{kind}", self.prefix, "?".repeat(32))
    }

    /// Returns the prefix of every key of this realm, and of no other realm.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The sealed record of the realm: policy and providers' credentials.
    #[must_use]
    pub fn realm_record(&self) -> String {
        format!("{}:{{{}}}:rec", self.prefix, self.realm)
    }

    /// Hash: whether the realm is completely published, and the checked nodes (fields `guard:`).
    #[must_use]
    pub fn realm_meta(&self) -> String {
        format!("{}:{{{}}}:meta", self.prefix, self.realm)
    }

    /// Hash: the number of codes that were sent in each minute. Expires an hour after the last one.
    #[must_use]
    pub fn realm_deliveries(&self) -> String {
        format!("{}:{{{}}}:sent", self.prefix, self.realm)
    }

    /// Set: the pseudonyms, as 16 bytes each, of every user who may have keys. Only the publisher
    /// uses it: it adds a user before it writes the first key, and removes the user after the last
    /// one.
    #[must_use]
    pub fn realm_users(&self) -> String {
        format!("{}:{{{}}}:users", self.prefix, self.realm)
    }

    /// In a cluster, the id of the realm's last fill on one node: the node that has the slot of
    /// `tag`, which has five characters.
    #[must_use]
    pub fn node_fill_id(&self, tag: &str) -> String {
        format!("{}:{{{tag}}}:node", self.prefix)
    }

    /// The key that the operator writes while it works, on the node that has the slot of `tag`,
    /// which has five characters. All realms of the installation share it.
    #[must_use]
    pub fn heartbeat(&self, tag: &str) -> String {
        let installation = self.prefix.strip_suffix(self.realm.as_str()).unwrap_or_default();
        format!("{installation}{{{tag}}}:heartbeat")
    }

    /// The same for one realm, where sidecars could write a key that they only read: in Redis
    /// before version 7, and for realms in which the age matters.
    #[must_use]
    pub fn realm_heartbeat(&self) -> String {
        format!("{}:{{{}}}:heartbeat", self.prefix, self.realm)
    }

    /// The mark of the operator that owns the installation's data, among those with the same Lease
    /// (`NAMESPACE/NAME`). Sidecars may not use it.
    #[must_use]
    pub fn owner(&self, lease: &str) -> String {
        let installation = self.prefix.strip_suffix(self.realm.as_str()).unwrap_or_default();
        format!("{installation}{{owner}}:{lease}")
    }

    /// The number of the publisher's last write on one node: the node that has the slot of `tag`,
    /// which is the realm's id if there is only one node.
    #[must_use]
    pub fn write_number(&self, tag: &str) -> String {
        format!("{}:{{{tag}}}:writes", self.prefix)
    }

    /// The realm's id, which is the tag of all keys of the realm as a whole.
    #[must_use]
    pub const fn realm(&self) -> &RealmId {
        &self.realm
    }

    /// Returns the names of a user's keys.
    #[must_use]
    pub fn user(&self, pseudonym: &Pseudonym) -> UserNames {
        let tag = data_encoding::HEXLOWER.encode(&pseudonym.0);
        // Without formatting, because every request needs these names.
        let key = |kind: &str| [&self.prefix, ":{", &tag, "}:", kind].concat();
        UserNames {
            record: key("rec"),
            state: key("state"),
            otp: key("otp"),
            history: key("hist"),
            log: key("log"),
        }
    }

    /// Returns whether a key belongs to the realm as a whole, and not to a user or to a node.
    #[must_use]
    pub fn is_of_the_realm(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix(":{"));
        rest.and_then(|rest| rest.split_once("}:"))
            .is_some_and(|(tag, _)| tag == self.realm.as_str())
    }

    /// Returns the user of a key, or nothing for keys of the realm or other programs.
    #[must_use]
    pub fn user_of(&self, key: &str) -> Option<Pseudonym> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix(":{")?;
        let (tag, _) = rest.split_once("}:")?;
        // A realm's id may look like a pseudonym.
        if tag == self.realm.as_str() { None } else { tag.parse().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> RealmNames {
        RealmNames::new(&"cluster".parse().unwrap(), &"a-realm".parse().unwrap())
    }

    #[test]
    fn all_keys_of_a_user_share_one_hash_tag() {
        let user = names().user(&Pseudonym::from_bytes([0xab; 16]));
        let tag = format!("{{{}}}", "ab".repeat(16));
        for key in [&user.record, &user.state, &user.otp, &user.history, &user.log] {
            assert!(key.starts_with("2fa1:cluster:a-realm:{"), "{key}");
            assert_eq!(key.matches('{').count(), 1);
            assert!(key.contains(&tag));
        }
    }

    #[test]
    fn the_user_of_a_key_is_found_again() {
        let names = names();
        let pseudonym = Pseudonym::from_bytes([7; 16]);
        let user = names.user(&pseudonym);
        assert_eq!(names.user_of(&user.state), Some(pseudonym));
        assert_eq!(names.user_of(&user.history), Some(pseudonym));
        assert_eq!(names.user_of(&names.realm_meta()), None);
        assert_eq!(names.user_of(&names.realm_deliveries()), None);
        assert_eq!(names.user_of(&names.realm_users()), None);
        assert_eq!(names.user_of(&names.write_number("00012")), None);
        assert_eq!(names.user_of(&names.node_fill_id("00012")), None);
        let other = RealmNames::new(&"cluster".parse().unwrap(), &"a-realm-2".parse().unwrap());
        assert_eq!(other.user_of(&user.state), None);
    }

    #[test]
    fn the_realm_of_a_key_is_found_again() {
        let installation = "cluster".parse().unwrap();
        let user = names().user(&Pseudonym::from_bytes([7; 16]));
        // It belongs to no realm.
        assert_eq!(RealmNames::realm_of(&installation, &names().heartbeat("alive")), None);
        assert_eq!(RealmNames::realm_of(&installation, &names().owner("system/operator")), None);
        for key in
            [names().realm_meta(), names().realm_users(), names().realm_heartbeat(), user.state]
        {
            assert_eq!(RealmNames::realm_of(&installation, &key), Some("a-realm".parse().unwrap()));
            assert_eq!(RealmNames::realm_of(&"cluste".parse().unwrap(), &key), None);
        }
        assert_eq!(RealmNames::realm_of(&installation, "2fa1:cluster:"), None);
    }

    #[test]
    fn the_realm_of_a_login_is_found_only_for_the_own_installation() {
        let installation = "cluster".parse().unwrap();
        let login = names().login(&[0xab; 16]);
        assert_eq!(login, format!("2fa1:cluster:a-realm:{}", "ab".repeat(16)));
        assert_eq!(
            RealmNames::realm_of_login(&installation, &login),
            Some("a-realm".parse().unwrap())
        );
        assert_eq!(RealmNames::realm_of_login(&"cluster-2".parse().unwrap(), &login), None);
        for other in
            ["default", "2fa1:cluster:a-realm", "2fa1:cluster:a-realm:ab", "2fa1:cluster::abab"]
        {
            assert_eq!(RealmNames::realm_of_login(&installation, other), None, "{other}");
        }
    }

    #[test]
    fn patterns_match_exactly_the_keys_of_sidecars() {
        let user = names().user(&Pseudonym::from_bytes([0xab; 16]));
        let pattern = |key: &str| key.replace(&"ab".repeat(16), &"?".repeat(32));
        assert_eq!(
            names().keys_to_read(),
            [
                names().realm_record(),
                names().realm_meta(),
                names().node_fill_id("?????"),
                "2fa1:cluster:a-realm:{a-realm}:heartbeat".to_owned(),
                pattern(&user.record)
            ]
        );
        assert_eq!(names().shared_keys_to_read(), ["2fa1:cluster:{?????}:heartbeat"]);
        let mut written =
            [&user.state, &user.otp, &user.history, &user.log].map(|key| pattern(key)).to_vec();
        written.push(names().realm_deliveries());
        assert_eq!(names().keys_to_write(), written);
    }

    #[test]
    fn a_realm_whose_id_looks_like_a_pseudonym_is_no_user() {
        let realm = "ab".repeat(16).parse().unwrap();
        let names = RealmNames::new(&"cluster".parse().unwrap(), &realm);
        assert_eq!(names.user_of(&names.realm_record()), None);
        assert_eq!(names.user_of(&names.realm_meta()), None);
        assert_eq!(names.user_of(&names.realm_deliveries()), None);
        assert_eq!(names.user_of(&names.realm_users()), None);
        assert_eq!(names.user_of(&names.write_number("00012")), None);
        assert_eq!(names.user_of(&names.node_fill_id("00012")), None);
    }

    #[test]
    fn identifiers_cannot_carry_separators() {
        for text in ["", "a:b", "a{b", "a b", "é", &"x".repeat(65)] {
            assert!(text.parse::<RealmId>().is_err(), "{text}");
        }
    }
}
