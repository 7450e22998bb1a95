//! The master key, from which the keys of all realms are derived. Enters: the operator's namespace. Leaves: the key in the Secret
//! `twofactor-master-key` there, made at the very first start and never written over.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use rand_core::CryptoRng;
use thiserror::Error;
use twofactor_api::labels;
use twofactor_core::key::{KeyError, MasterKey};

use crate::api::{self, ApiError};

/// The Secret.
pub const SECRET: &str = "twofactor-master-key";
/// Its key.
pub const KEY: &str = "master-key";

/// Why there is no master key.
#[derive(Debug, Error)]
pub enum MasterKeyError {
    /// The API server does not give it.
    #[error("the Secret {SECRET} in the namespace {namespace} cannot be read or created: {source}")]
    Api {
        /// Where it should be.
        namespace: String,
        /// Why.
        source: ApiError,
    },
    /// What is there is no key.
    #[error("the key {KEY} of the Secret {SECRET} in the namespace {namespace} {source}")]
    NotAKey {
        /// Where it is.
        namespace: String,
        /// Why.
        source: KeyError,
    },
}

/// Reads the master key, or makes it when there is none.
///
/// # Errors
/// When the API server does not give it, or it is no key. It is never replaced: everything in Redis depends on it.
pub async fn load_or_create(
    client: &Client,
    namespace: &str,
    random: &mut impl CryptoRng,
) -> Result<MasterKey, MasterKeyError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let failed = |source| MasterKeyError::Api { namespace: namespace.to_owned(), source };
    if let Some(found) = api::optional(api::within(secrets.get(SECRET)).await).map_err(failed)? {
        return read(&found, namespace);
    }
    let key = MasterKey::generate(random);
    match api::within(secrets.create(&PostParams::default(), &secret(&key))).await {
        Ok(_) => {
            tracing::info!(
                namespace,
                secret = SECRET,
                "made the master key; keep a copy of it with your backups"
            );
            Ok(key)
        }
        // Another process was quicker; its key is the key.
        Err(ApiError::AlreadyExists(_)) => {
            read(&api::within(secrets.get(SECRET)).await.map_err(failed)?, namespace)
        }
        Err(error) => Err(failed(error)),
    }
}

fn read(secret: &Secret, namespace: &str) -> Result<MasterKey, MasterKeyError> {
    let wrong = |source| MasterKeyError::NotAKey { namespace: namespace.to_owned(), source };
    let bytes = secret.data.as_ref().and_then(|data| data.get(KEY)).ok_or(wrong(KeyError::NotAKey))?;
    let text = std::str::from_utf8(&bytes.0).map_err(|_| wrong(KeyError::NotAKey))?;
    MasterKey::from_base64(text).map_err(wrong)
}

/// Without the label of what the operator watches: nobody has to be woken by it.
fn secret(key: &MasterKey) -> Secret {
    let value = ByteString(key.to_base64().expose_secret().as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
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
    fn the_key_comes_back_from_its_secret_and_anything_else_is_refused() {
        let key = MasterKey::generate(&mut UnwrapErr(SysRng));
        let again = read(&secret(&key), "system").unwrap();
        assert_eq!(again.to_base64(), key.to_base64());
        let mut spoilt = secret(&key);
        spoilt.data.as_mut().unwrap().insert(KEY.to_owned(), ByteString(b"short".to_vec()));
        let message = read(&spoilt, "system").unwrap_err().to_string();
        assert!(message.contains("32 bytes") && !message.contains("short"), "{message}");
        assert!(read(&Secret::default(), "system").is_err());
    }
}
