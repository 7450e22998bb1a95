//! Reads the master key from the Secret `twofactor-master-key` in the operator's namespace, or
//! creates it at the first start. The keys of all realms are derived from it, so it is never
//! overwritten.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use rand_core::CryptoRng;
use thiserror::Error;
use twofactor_core::key::{KeyError, MasterKey};

use crate::k8s::owned_secret::{get_or_create, with_key};
use crate::k8s::request::ApiError;

/// The Secret.
pub const SECRET: &str = "twofactor-master-key";
/// Its key.
pub const KEY: &str = "master-key";

/// Why the master key is not available.
#[derive(Debug, Error)]
pub enum MasterKeyError {
    /// The Secret cannot be read or created.
    #[error("the Secret {SECRET} in the namespace {namespace} cannot be read or created: {source}")]
    Api {
        /// Namespace of the Secret.
        namespace: String,
        /// The error.
        source: ApiError,
    },
    /// The Secret holds no valid key.
    #[error("the key {KEY} of the Secret {SECRET} in the namespace {namespace} {source}")]
    NotAKey {
        /// Namespace of the Secret.
        namespace: String,
        /// The error.
        source: KeyError,
    },
}

/// Reads the master key, or creates it. An invalid one is an error and never replaced, because
/// everything in Redis depends on it.
pub async fn load_or_create(
    client: &Client,
    namespace: &str,
    random: &mut impl CryptoRng,
) -> Result<MasterKey, MasterKeyError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let failed = |source| MasterKeyError::Api { namespace: namespace.to_owned(), source };
    let make = || secret(&MasterKey::generate(random));
    let (found, is_new) = get_or_create(&secrets, SECRET, make).await.map_err(failed)?;
    if is_new {
        tracing::info!(
            namespace,
            secret = SECRET,
            "created the master key; keep a copy of it with your backups"
        );
    }
    read(&found, namespace)
}

fn read(secret: &Secret, namespace: &str) -> Result<MasterKey, MasterKeyError> {
    let wrong = |source| MasterKeyError::NotAKey { namespace: namespace.to_owned(), source };
    let bytes =
        secret.data.as_ref().and_then(|data| data.get(KEY)).ok_or(wrong(KeyError::NotAKey))?;
    let text = std::str::from_utf8(&bytes.0).map_err(|_| wrong(KeyError::NotAKey))?;
    MasterKey::from_base64(text).map_err(wrong)
}

fn secret(key: &MasterKey) -> Secret {
    with_key(SECRET, KEY, key.to_base64().expose_secret())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    #[test]
    fn the_key_comes_back_from_its_secret_and_anything_else_is_refused() {
        let key = MasterKey::generate(&mut UnwrapErr(SysRng));
        let again = read(&secret(&key), "system").unwrap();
        assert_eq!(again.to_base64(), key.to_base64());
        let mut invalid = secret(&key);
        invalid.data.as_mut().unwrap().insert(KEY.to_owned(), ByteString(b"short".to_vec()));
        let message = read(&invalid, "system").unwrap_err().to_string();
        assert!(message.contains("32 bytes") && !message.contains("short"), "{message}");
        assert!(read(&Secret::default(), "system").is_err());
    }
}
