//! Reads the key that signs a realm's tokens, or says what is wrong with the Secret that should
//! hold it. No message contains a value of the Secret.

use data_encoding::BASE64;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use rand_core::CryptoRng;
use twofactor_api::validate::tokens::TokenPolicy;
use twofactor_core::secret::SecretText;
use twofactor_core::settings::tokens::{ED25519_PRIVATE_KEY, SECRET_KEY};
use twofactor_core::token::{Ed25519Key, SigningKey, TokenAlgorithm, TokenKeyError};

use crate::k8s::conditions::ConditionState;
use crate::k8s::owned_secret::{get_or_create, with_key};
use crate::k8s::request::{self, ApiError};
use crate::state::realm_secrets::{SharedKey, TokenKey};
use crate::state::{RealmsState, Runtime, random};

/// Reads or derives the key of a realm. Returns an error only if it may succeed later.
pub async fn read(
    runtime: &Runtime,
    realms: &RealmsState,
    realm: &str,
    policy: &TokenPolicy,
) -> Result<TokenKey, ApiError> {
    let algorithm = policy.algorithm;
    let found = match (&policy.secret, algorithm) {
        (Some(name), _) => named(&runtime.client, realm, name, algorithm).await,
        (None, TokenAlgorithm::Hs256) if !realms.shared_key.realms.contains(realm) => {
            Err(KeyProblem::Condition(not_shared()))
        }
        (None, TokenAlgorithm::Hs256) => {
            shared(&runtime.client, &realms.shared_key, &mut random()).await
        }
        (None, TokenAlgorithm::EdDsa) => derived(realms, realm).await,
    };
    let (key, condition) = match found {
        Ok((key, message)) => (Some(key), ConditionState::met("Available", message)),
        Err(KeyProblem::Api(error)) if error.is_temporary() => return Err(error),
        Err(KeyProblem::Api(error)) => (
            None,
            ConditionState::unmet("SecretNotReadable", format!("The key cannot be read: {error}")),
        ),
        Err(KeyProblem::Condition(condition)) => (None, condition),
    };
    Ok(TokenKey { algorithm, secret: policy.secret.clone(), key, condition })
}

fn not_shared() -> ConditionState {
    let message = "HS256 without secretRef signs with the ecosystem's shared key, which the operator may not give to this \
                   namespace (--secret-key-namespace): name a Secret with a key of this realm's own, or use EdDSA";
    ConditionState::unmet("SharedKeyNotGiven", message)
}

enum KeyProblem {
    Api(ApiError),
    Condition(ConditionState),
}

type KeyResult = Result<(SigningKey, String), KeyProblem>;

async fn named(
    client: &Client,
    namespace: &str,
    name: &str,
    algorithm: TokenAlgorithm,
) -> KeyResult {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let found =
        request::optional(request::within(secrets.get(name)).await).map_err(KeyProblem::Api)?;
    let missing = || {
        ConditionState::unmet(
            "SecretNotFound",
            format!("There is no Secret {name} in this namespace"),
        )
    };
    let secret = found.ok_or_else(|| KeyProblem::Condition(missing()))?;
    let key = key_in(&secret, name, algorithm).map_err(KeyProblem::Condition)?;
    Ok((key, format!("Tokens are signed with the key in the Secret {name}")))
}

/// Reads or creates the ecosystem's shared key, which is never overwritten.
async fn shared(client: &Client, place: &SharedKey, random: &mut impl CryptoRng) -> KeyResult {
    let SharedKey { namespace, secret: name, .. } = place;
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let make = || with_key(name, SECRET_KEY, generate(random).expose_secret());
    let (secret, is_new) = get_or_create(&secrets, name, make).await.map_err(KeyProblem::Api)?;
    if is_new {
        tracing::info!(namespace, secret = name, "created the shared key of tokens");
    }
    let key = key_in(&secret, name, TokenAlgorithm::Hs256).map_err(KeyProblem::Condition)?;
    Ok((key, format!("Tokens are signed with the key in the operator's Secret {name}")))
}

async fn derived(realms: &RealmsState, realm: &str) -> KeyResult {
    let missing = || ConditionState::unmet("NamespaceNotFound", "The namespace does not exist");
    let realm = realms.registry.get_or_create(realm).await.map_err(|error| match error {
        crate::state::realms::RealmError::Api(error) => KeyProblem::Api(error),
        _ => KeyProblem::Condition(missing()),
    })?;
    let key = SigningKey::EdDsa(realms.registry.keys.token_key(&realm.id));
    Ok((
        key,
        "Tokens are signed with a key that the operator has derived for this realm".to_owned(),
    ))
}

fn key_in(
    secret: &Secret,
    name: &str,
    algorithm: TokenAlgorithm,
) -> Result<SigningKey, ConditionState> {
    let key = match algorithm {
        TokenAlgorithm::Hs256 => SECRET_KEY,
        TokenAlgorithm::EdDsa => ED25519_PRIVATE_KEY,
    };
    let value =
        secret.data.as_ref().and_then(|data| data.get(key)).filter(|value| !value.0.is_empty());
    let missing =
        || ConditionState::unmet("SecretKeyMissing", format!("The Secret {name} has no key {key}"));
    let text = std::str::from_utf8(&value.ok_or_else(missing)?.0).map_err(|_| {
        ConditionState::unmet(
            "SecretKeyInvalid",
            format!("The key {key} of the Secret {name} is not text"),
        )
    })?;
    // A Secret that was created from a file ends with a newline.
    let text = SecretText::new(text.trim_end_matches(['\r', '\n']).to_owned());
    let wrong = |error: TokenKeyError| {
        ConditionState::unmet(
            "SecretKeyInvalid",
            format!("The key {key} of the Secret {name} {error}"),
        )
    };
    match algorithm {
        TokenAlgorithm::Hs256 => SigningKey::shared(text).map_err(wrong),
        TokenAlgorithm::EdDsa => Ed25519Key::try_from(text).map(SigningKey::EdDsa).map_err(wrong),
    }
}

fn generate(random: &mut impl CryptoRng) -> SecretText {
    let mut bytes = [0; 48];
    random.fill_bytes(&mut bytes);
    SecretText::new(BASE64.encode(&bytes))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    const OWN: &str = "1O5y2/kTWErVttjx92n4rTr+fCjL8dT74Jeoj0R1WEI=\n";

    #[test]
    fn a_key_comes_back_from_its_secret() {
        let key = generate(&mut UnwrapErr(SysRng));
        let secret = with_key("s", SECRET_KEY, key.expose_secret());
        assert_eq!(key_in(&secret, "s", TokenAlgorithm::Hs256).unwrap(), SigningKey::Hs256(key));
        let own = with_key("s", ED25519_PRIVATE_KEY, OWN);
        assert_eq!(
            key_in(&own, "s", TokenAlgorithm::EdDsa).unwrap().algorithm(),
            TokenAlgorithm::EdDsa
        );
    }

    #[test]
    fn an_error_names_the_secret_and_never_the_value() {
        use TokenAlgorithm::{EdDsa, Hs256};
        for (key, value, algorithm, reason) in [
            (SECRET_KEY, "secret-value", Hs256, "SecretKeyInvalid"),
            (SECRET_KEY, "", Hs256, "SecretKeyMissing"),
            (SECRET_KEY, OWN, EdDsa, "SecretKeyMissing"),
            (ED25519_PRIVATE_KEY, "secret-value", EdDsa, "SecretKeyInvalid"),
        ] {
            let state = key_in(&with_key("signing", key, value), "signing", algorithm).unwrap_err();
            assert_eq!(state.reason, reason);
            assert!(
                state.message.contains("signing") && !state.message.contains("secret-value"),
                "{state:?}"
            );
        }
    }
}
