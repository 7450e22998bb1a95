//! The password of a Redis that came with the operator. Enters: the operator's namespace and the name of a Secret. Leaves: the
//! password in it, made when there is no such Secret, and never written over: Redis reads the same Secret.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use rand_core::CryptoRng;
use thiserror::Error;
use twofactor_api::labels;
use twofactor_core::secret::SecretText;
use twofactor_store::acl;

use crate::api::{self, ApiError};

/// The key of the Secret.
pub const KEY: &str = "password";

/// Why there is no password.
#[derive(Debug, Error)]
pub enum RedisPasswordError {
    /// The API server does not give it.
    #[error("the Secret {secret} in the namespace {namespace} cannot be read or created: {source}")]
    Api {
        /// The Secret.
        secret: String,
        /// Where it should be.
        namespace: String,
        /// Why.
        source: ApiError,
    },
    /// What is there is no password.
    #[error(
        "the key {KEY} of the Secret {secret} in the namespace {namespace} is missing, empty or not text"
    )]
    NotAPassword {
        /// The Secret.
        secret: String,
        /// Where it is.
        namespace: String,
    },
    /// The URL says something else.
    #[error(
        "--redis-url must not hold a password when --redis-password-secret is given, and must be like redis://host:6379"
    )]
    Url,
}

impl RedisPasswordError {
    /// Whether the API server may give it later.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Api { source, .. } if source.is_temporary())
    }
}

/// Reads the password in the Secret `name`, or makes it when there is none.
///
/// # Errors
/// When the API server does not give it, or it is no password.
pub async fn load_or_create(
    client: &Client,
    namespace: &str,
    name: &str,
    random: &mut impl CryptoRng,
) -> Result<SecretText, RedisPasswordError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let failed =
        |source| RedisPasswordError::Api { secret: name.to_owned(), namespace: namespace.to_owned(), source };
    let wrong =
        || RedisPasswordError::NotAPassword { secret: name.to_owned(), namespace: namespace.to_owned() };
    if let Some(found) = api::optional(api::within(secrets.get(name)).await).map_err(failed)? {
        return read(&found).ok_or_else(wrong);
    }
    let password = generate(random);
    match api::within(secrets.create(&PostParams::default(), &secret(name, &password))).await {
        Ok(_) => {
            tracing::info!(namespace, secret = name, "made the password of Redis");
            Ok(password)
        }
        // Another process was quicker; its password is the password.
        Err(ApiError::AlreadyExists(_)) => {
            read(&api::within(secrets.get(name)).await.map_err(failed)?).ok_or_else(wrong)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The URL with the password in it.
///
/// # Errors
/// When it has a login already, or no place for one.
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

/// Without the label of what the operator watches: nobody has to be woken by it.
fn secret(name: &str, password: &SecretText) -> Secret {
    let value = ByteString(password.expose_secret().as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/part-of".to_owned(),
                labels::MANAGED_BY.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), value)])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    #[test]
    fn the_password_comes_back_from_its_secret_and_goes_into_the_url() {
        let password = generate(&mut UnwrapErr(SysRng));
        assert_eq!(read(&secret("twofactor-redis", &password)).unwrap(), password);
        assert!(read(&Secret::default()).is_none());
        let text = |text: &str| SecretText::new(text.to_owned());
        let url = put_into(&text("redis://redis:6379/1"), &text("p/w")).unwrap();
        assert_eq!(url.expose_secret(), "redis://:p%2Fw@redis:6379/1");
        assert!(put_into(&text("redis://:other@redis:6379"), &password).is_err());
    }
}
