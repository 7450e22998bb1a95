//! Reads the password of a Redis that was installed with the operator, or creates it. Redis reads
//! the same Secret, so it is never overwritten.

use data_encoding::HEXLOWER;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use rand_core::CryptoRng;
use thiserror::Error;
use twofactor_core::secret::SecretText;
use twofactor_store::acl;

use crate::k8s::owned_secret::{get_or_create, with_key};
use crate::k8s::request::{self, ApiError};

/// The key of the Secret.
pub const KEY: &str = "password";

/// Why the password is not available.
#[derive(Debug, Error)]
pub enum RedisPasswordError {
    /// The Secret cannot be read or created.
    #[error("the Secret {secret} in the namespace {namespace} cannot be read or created: {source}")]
    Api {
        /// The Secret.
        secret: String,
        /// Namespace of the Secret.
        namespace: String,
        /// The error.
        source: ApiError,
    },
    /// The Secret holds no valid password.
    #[error(
        "the key {KEY} of the Secret {secret} in the namespace {namespace} is missing, empty or not text"
    )]
    NotAPassword {
        /// The Secret.
        secret: String,
        /// Namespace of the Secret.
        namespace: String,
    },
    /// The URL contains a password too.
    #[error(
        "--redis-url must not hold a password when --redis-password-secret is given, and must be like redis://host:6379"
    )]
    Url,
}

/// Reads the password in the Secret `name`, or creates it.
pub async fn load_or_create(
    client: &Client,
    namespace: &str,
    name: &str,
    random: &mut impl CryptoRng,
) -> Result<SecretText, RedisPasswordError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let failed = |source| RedisPasswordError::Api {
        secret: name.to_owned(),
        namespace: namespace.to_owned(),
        source,
    };
    let wrong = || RedisPasswordError::NotAPassword {
        secret: name.to_owned(),
        namespace: namespace.to_owned(),
    };
    let make = || with_key(name, KEY, generate(random).expose_secret());
    let (secret, is_new) = get_or_create(&secrets, name, make).await.map_err(failed)?;
    if is_new {
        tracing::info!(namespace, secret = name, "created the password of Redis");
    }
    read(&secret).ok_or_else(wrong)
}

/// Reads the password in the Secret `name`, which the operator has made before.
pub async fn read_again(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<SecretText, RedisPasswordError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let (secret, namespace) = (name.to_owned(), namespace.to_owned());
    match request::within(secrets.get(name)).await {
        Ok(found) => read(&found).ok_or(RedisPasswordError::NotAPassword { secret, namespace }),
        Err(source) => Err(RedisPasswordError::Api { secret, namespace, source }),
    }
}

/// Returns the URL with the password.
pub fn put_into(url: &SecretText, password: &SecretText) -> Result<SecretText, RedisPasswordError> {
    if acl::has_login(url.expose_secret()) {
        return Err(RedisPasswordError::Url);
    }
    acl::with_login(url.expose_secret(), "", password).ok_or(RedisPasswordError::Url)
}

fn generate(random: &mut impl CryptoRng) -> SecretText {
    let mut bytes = [0; 32];
    random.fill_bytes(&mut bytes);
    SecretText::new(HEXLOWER.encode(&bytes))
}

fn read(secret: &Secret) -> Option<SecretText> {
    let bytes = secret.data.as_ref()?.get(KEY)?;
    let text = std::str::from_utf8(&bytes.0).ok()?.trim_end_matches(['\r', '\n']);
    (!text.is_empty()).then(|| SecretText::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    #[test]
    fn the_password_comes_back_from_its_secret_and_goes_into_the_url() {
        let password = generate(&mut UnwrapErr(SysRng));
        assert_eq!(
            read(&with_key("twofactor-redis", KEY, password.expose_secret())).unwrap(),
            password
        );
        assert!(read(&Secret::default()).is_none());
        let text = |text: &str| SecretText::new(text.to_owned());
        let url = put_into(&text("redis://redis:6379/1"), &text("p/w")).unwrap();
        assert_eq!(url.expose_secret(), "redis://:p%2Fw@redis:6379/1");
        assert!(put_into(&text("redis://:other@redis:6379"), &password).is_err());
    }
}
