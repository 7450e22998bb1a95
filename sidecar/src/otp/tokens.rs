//! Signs tokens that a service can show to others after a success (RFC 7519), and collects the
//! public keys that they can be checked with.
//!
//! Nothing in this program reads a token, so there is no checking here: a token is two short JSON
//! texts and a signature over them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use rand_core::CryptoRng;
use ring::digest::{SHA256, digest};
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::Serialize;
use twofactor_core::context::Context;
use twofactor_core::names::RealmId;
use twofactor_core::realm::RealmRecord;
use twofactor_core::time::UnixMillis;
use twofactor_core::token::{Audience, Ed25519Key, SigningKey, TokenAlgorithm, TokenLifetime};
use twofactor_core::user::{DeliveryMethod, Username};

use crate::refusal::Refusal;

/// The issuer of every token. The claim `realm` says which users it is about, because each realm of
/// each cluster has its own id.
pub const ISSUER: &str = "fountainai-2fa";
/// The type of every token, so that no program takes another JWT for one, or one for another (RFC
/// 8725 §3.11).
const TYPE: &str = "2fa+jwt";
/// Time for which a public key is published after it was replaced: the lifetime of the last token,
/// and a margin for clocks.
const PUBLISHED_AFTERWARDS: Duration = Duration::from_secs(TokenLifetime::MAXIMUM.as_secs() + 10);

/// What a token says.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub username: &'a Username,
    pub realm: &'a RealmId,
    pub audience: &'a Audience,
    /// How the user got the code.
    pub channel: DeliveryMethod,
    /// The context that the code was asked for with.
    pub context: Option<&'a Context>,
    pub now: UnixMillis,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    typ: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'static str,
    sub: &'a str,
    realm: &'a str,
    aud: &'a str,
    amr: &'static [&'static str],
    otp_channel: &'static str,
    auth_time: u64,
    iat: u64,
    exp: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_hash: Option<String>,
}

/// Signs tokens of one realm.
pub enum Signer {
    /// With the key that the services that check tokens have as well.
    Shared(hmac::Key),
    /// With the private key of this realm.
    Own { pair: Box<Ed25519KeyPair>, id: String },
}

impl Signer {
    /// Prepares signing. Fails with [`Refusal::Internal`] if the key is not a key, which the types
    /// exclude.
    pub fn new(key: &SigningKey) -> Result<Self, Refusal> {
        match key {
            SigningKey::Hs256(text) => {
                Ok(Self::Shared(hmac::Key::new(hmac::HMAC_SHA256, text.expose_secret().as_bytes())))
            }
            SigningKey::EdDsa(key) => {
                let pair = Box::new(pair(key)?);
                let id = PublicKey::of(&pair).kid;
                Ok(Self::Own { pair, id })
            }
        }
    }

    /// Returns a token that is valid from now on for `lifetime`.
    pub fn token(
        &self,
        subject: &Subject<'_>,
        lifetime: TokenLifetime,
        random: &mut impl CryptoRng,
    ) -> String {
        let (algorithm, kid) = match self {
            Self::Shared(_) => (TokenAlgorithm::Hs256, None),
            Self::Own { id, .. } => (TokenAlgorithm::EdDsa, Some(id.as_str())),
        };
        let mut number = [0; 16];
        random.fill_bytes(&mut number);
        let issued = subject.now.seconds();
        let claims = Claims {
            iss: ISSUER,
            sub: subject.username.as_str(),
            realm: subject.realm.as_str(),
            aud: subject.audience.as_str(),
            amr: methods(subject.channel),
            otp_channel: subject.channel.name(),
            auth_time: issued,
            iat: issued,
            exp: issued + lifetime.duration().as_secs(),
            jti: BASE64URL_NOPAD.encode(&number),
            context_hash: subject.context.map(context_hash),
        };
        let header = Header { alg: algorithm.name(), typ: TYPE, kid };
        let mut token = format!("{}.{}", part(&header), part(&claims));
        let signature = match self {
            Self::Shared(key) => BASE64URL_NOPAD.encode(hmac::sign(key, token.as_bytes()).as_ref()),
            Self::Own { pair, .. } => BASE64URL_NOPAD.encode(pair.sign(token.as_bytes()).as_ref()),
        };
        token.push('.');
        token.push_str(&signature);
        token
    }
}

/// Returns the authentication methods of RFC 8176. Mail and webhooks have none of their own.
const fn methods(channel: DeliveryMethod) -> &'static [&'static str] {
    match channel {
        DeliveryMethod::Email | DeliveryMethod::Webhook => &["otp"],
        DeliveryMethod::Sms => &["otp", "sms"],
        DeliveryMethod::App => &["otp", "swk"],
    }
}

/// Returns what a token contains of a context: a service that knows the context can compare it, and
/// no other one can read it.
fn context_hash(context: &Context) -> String {
    BASE64URL_NOPAD.encode(digest(&SHA256, context.as_str().as_bytes()).as_ref())
}

fn part(content: &impl Serialize) -> String {
    // Texts and numbers under constant names can always be written.
    BASE64URL_NOPAD.encode(&serde_json::to_vec(content).unwrap_or_default())
}

fn pair(key: &Ed25519Key) -> Result<Ed25519KeyPair, Refusal> {
    Ed25519KeyPair::from_seed_unchecked(key.expose_secret()).map_err(|_| Refusal::Internal)
}

/// A public key in the format of RFC 8037.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublicKey {
    kty: &'static str,
    crv: &'static str,
    #[serde(rename = "use")]
    purpose: &'static str,
    alg: &'static str,
    /// The thumbprint of RFC 7638, so that the same key has the same id everywhere.
    kid: String,
    x: String,
}

impl PublicKey {
    fn of(pair: &Ed25519KeyPair) -> Self {
        Self::new(BASE64URL_NOPAD.encode(pair.public_key().as_ref()))
    }

    fn new(x: String) -> Self {
        let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
        let kid = BASE64URL_NOPAD.encode(digest(&SHA256, members.as_bytes()).as_ref());
        Self {
            kty: "OKP",
            crv: "Ed25519",
            purpose: "sig",
            alg: TokenAlgorithm::EdDsa.name(),
            kid,
            x,
        }
    }
}

/// The public keys of a realm: the current one, and earlier ones whose tokens may still be valid.
#[derive(Debug, Default)]
pub struct PublicKeys(Mutex<Vec<(PublicKey, Instant)>>);

impl PublicKeys {
    /// Records what a realm signs with at the moment `now`, which is `time` by the clock, and
    /// returns the keys that its tokens can be checked with. A shared key is not among them.
    pub fn current(
        &self,
        realm: &RealmRecord,
        now: Instant,
        time: UnixMillis,
    ) -> Result<Vec<PublicKey>, Refusal> {
        let tokens = realm.tokens.as_ref();
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|(_, seen)| now.saturating_duration_since(*seen) <= PUBLISHED_AFTERWARDS);
        if let Some(SigningKey::EdDsa(key)) = tokens.map(|tokens| &tokens.key) {
            let key = PublicKey::of(&pair(key)?);
            keys.retain(|(known, _)| *known != key);
            keys.insert(0, (key, now));
        }
        let mut all: Vec<PublicKey> = keys.iter().map(|(key, _)| key.clone()).collect();
        // A sidecar that has started since has not seen the key before.
        let retired = realm.retired_keys.iter().filter(|key| key.until > time);
        for key in retired.map(|key| PublicKey::new(key.x.clone())) {
            if !all.contains(&key) {
                all.push(key);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;
    use ring::signature::{ED25519, UnparsedPublicKey};
    use serde_json::{Value, json};
    use twofactor_core::secret::SecretText;
    use twofactor_core::token::{RetiredKey, TokenSettings};

    use super::*;

    fn key(number: u8) -> SigningKey {
        SigningKey::EdDsa(Ed25519Key::from_bytes(&[number; 32]))
    }

    fn settings(key: SigningKey) -> TokenSettings {
        TokenSettings {
            key,
            audiences: ["kms".parse().unwrap()].into(),
            lifetime: TokenLifetime::try_from(60).unwrap(),
        }
    }

    fn realm(key: Option<SigningKey>) -> RealmRecord {
        RealmRecord { tokens: key.map(settings), ..RealmRecord::default() }
    }

    fn current(keys: &PublicKeys, realm: &RealmRecord, now: Instant) -> Vec<PublicKey> {
        keys.current(realm, now, UnixMillis::new(1000)).unwrap()
    }

    fn token(key: &SigningKey, context: Option<&Context>) -> String {
        let subject = Subject {
            username: &"alice".parse().unwrap(),
            realm: &"people".parse().unwrap(),
            audience: &"kms".parse().unwrap(),
            channel: DeliveryMethod::Email,
            context,
            now: UnixMillis::new(1_798_000_020_999),
        };
        let lifetime = TokenLifetime::try_from(60).unwrap();
        Signer::new(key).unwrap().token(&subject, lifetime, &mut UnwrapErr(SysRng))
    }

    fn decoded(part: &str) -> Value {
        serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_token_names_the_user_the_audience_and_its_expiry() {
        let key = SigningKey::shared(SecretText::new("k".repeat(32))).unwrap();
        let context = "to X".parse().unwrap();
        let token = token(&key, Some(&context));
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(decoded(parts[0]), json!({ "alg": "HS256", "typ": "2fa+jwt" }));
        let mut claims = decoded(parts[1]);
        let number = claims["jti"].take();
        assert_eq!(number.as_str().unwrap().len(), 22);
        let expected = json!({
            "iss": "fountainai-2fa", "sub": "alice", "realm": "people", "aud": "kms", "amr": ["otp"],
            "otp_channel": "email", "auth_time": 1_798_000_020,
            "iat": 1_798_000_020, "exp": 1_798_000_080, "jti": null, "context_hash": context_hash(&context),
        });
        assert_eq!(claims, expected);
        let signed = [parts[0], parts[1]].join(".");
        let signature = BASE64URL_NOPAD.decode(parts[2].as_bytes()).unwrap();
        let shared = hmac::Key::new(hmac::HMAC_SHA256, "k".repeat(32).as_bytes());
        hmac::verify(&shared, signed.as_bytes(), &signature).unwrap();
    }

    #[test]
    fn every_channel_is_an_otp_and_only_an_app_is_a_key_of_the_user() {
        for channel in DeliveryMethod::ALL {
            let methods = methods(channel);
            assert_eq!(methods[0], "otp");
            assert_eq!(methods.contains(&"swk"), channel == DeliveryMethod::App);
            assert_eq!(methods.contains(&"sms"), channel == DeliveryMethod::Sms);
        }
    }

    #[test]
    fn a_token_of_the_realms_own_key_is_checked_with_the_public_key() {
        let token = token(&key(1), None);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let keys = current(&PublicKeys::default(), &realm(Some(key(1))), Instant::now());
        assert_eq!(decoded(signed.split('.').next().unwrap())["kid"], json!(keys[0].kid));
        let public =
            UnparsedPublicKey::new(&ED25519, BASE64URL_NOPAD.decode(keys[0].x.as_bytes()).unwrap());
        public
            .verify(signed.as_bytes(), &BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap())
            .unwrap();
    }

    #[test]
    fn a_sidecar_that_has_just_started_publishes_the_keys_that_the_record_names() {
        let old = current(&PublicKeys::default(), &realm(Some(key(1))), Instant::now());
        let retired = |until| RetiredKey { x: old[0].x.clone(), until: UnixMillis::new(until) };
        let published = |until, new| {
            let record = RealmRecord { retired_keys: vec![retired(until)], ..realm(new) };
            current(&PublicKeys::default(), &record, Instant::now())
        };
        assert_eq!(published(1001, Some(key(2)))[1..], old);
        assert_eq!(published(1001, None), old);
        assert_eq!(published(1001, Some(key(1))), old);
        assert_eq!(published(1000, Some(key(2))).len(), 1);
    }

    #[test]
    fn a_replaced_key_is_published_until_its_last_token_expires() {
        let (keys, began) = (PublicKeys::default(), Instant::now());
        let published = |tokens: Option<SigningKey>, seconds: u64| {
            current(&keys, &realm(tokens), began + Duration::from_secs(seconds)).len()
        };
        assert_eq!(published(Some(key(1)), 0), 1);
        assert_eq!(published(Some(key(1)), 5), 1);
        assert_eq!(published(Some(key(2)), 10), 2);
        assert_eq!(published(Some(key(2)), 5 + 310), 2);
        assert_eq!(published(Some(key(2)), 5 + 311), 1);
        let shared = SigningKey::shared(SecretText::new("k".repeat(32))).unwrap();
        assert_eq!(published(Some(shared), 320), 1);
        assert_eq!(published(None, 1000), 0);
    }
}
