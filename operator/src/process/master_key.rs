//! Reads the master key from the Secret `twofactor-master-key` in the operator's namespace, or
//! creates it at the first start. The keys of all realms are derived from it, so it is never
//! overwritten.
//!
//! Its fingerprint is kept in the Secret `twofactor-keys`. A master key that is missing although
//! there is a fingerprint, or a Secret that the operator has written, is lost: that is an error,
//! and no reason to create another one.

use std::collections::HashMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, Client};
use rand_core::CryptoRng;
use thiserror::Error;
use twofactor_api::labels;
use twofactor_core::key::{KeyError, MasterKey};
use twofactor_core::names::RealmId;
use twofactor_core::time::UnixMillis;

use crate::k8s::owned_secret::{get_or_create, with_key};
use crate::k8s::request::{self, ApiError};
use crate::realm::key_states::{self, FINGERPRINT};
use crate::state::realm_keys::{KeyRing, KeyState, Phase};
use crate::state::watched_namespaces::WatchedNamespaces;

/// The Secret.
pub const SECRET: &str = "twofactor-master-key";
/// Its key.
pub const KEY: &str = "master-key";
/// Its key with the master key that is being replaced.
pub const PREVIOUS_KEY: &str = "previous-master-key";

/// Why the master key is not available.
#[derive(Debug, Error)]
pub enum MasterKeyError {
    /// A Secret cannot be read or created.
    #[error("the Secret {name} in the namespace {namespace} cannot be read or created: {source}")]
    Api {
        /// The Secret.
        name: &'static str,
        /// Namespace of the Secret.
        namespace: String,
        /// The error.
        source: ApiError,
    },
    /// The Secret holds no valid key.
    #[error("the key {key} of the Secret {SECRET} in the namespace {namespace} {source}")]
    NotAKey {
        /// The key of the Secret.
        key: &'static str,
        /// Namespace of the Secret.
        namespace: String,
        /// The error.
        source: KeyError,
    },
    /// The Secret is missing, although there was one.
    #[error(
        "the Secret {SECRET} in the namespace {namespace} is lost, because {evidence}: restore it from a backup, or \
         create it with a new key if no sidecar needs the old one"
    )]
    Lost {
        /// Namespace of the Secret.
        namespace: String,
        /// What shows that there was one.
        evidence: String,
    },
    /// The generation of a realm's keys cannot be read.
    #[error(
        "the key {name} of the Secret {secret} cannot be read: restore it from a backup",
        secret = key_states::SECRET
    )]
    State {
        /// The key of the Secret.
        name: String,
    },
    /// A key is needed and missing.
    #[error(
        "the Secret {SECRET} in the namespace {namespace} does not hold the master key with the fingerprint {fingerprint}: \
         restore that key, or put it under {PREVIOUS_KEY} so that the new one replaces it; if it is lost, delete the \
         Secret {secret}",
        secret = key_states::SECRET
    )]
    Unknown {
        /// Namespace of the Secret.
        namespace: String,
        /// Fingerprint of the key.
        fingerprint: String,
    },
}

/// Reads the master key, or creates it at the first start. An invalid one is an error and never
/// replaced, because everything in Redis depends on it.
pub async fn load_or_create(
    client: &Client,
    namespace: &str,
    watched: &WatchedNamespaces,
    now: UnixMillis,
    random: &mut impl CryptoRng,
) -> Result<KeyRing, MasterKeyError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let failed = |name| {
        let namespace = namespace.to_owned();
        move |source| MasterKeyError::Api { name, namespace, source }
    };
    let states = request::optional(request::within(secrets.get(key_states::SECRET)).await);
    let states = states.map_err(failed(key_states::SECRET))?;
    let found = request::optional(request::within(secrets.get(SECRET)).await);
    let found = if let Some(found) = found.map_err(failed(SECRET))? {
        found
    } else {
        let evidence = evidence(client, states.as_ref(), watched).await;
        if let Some(evidence) = evidence.map_err(failed(SECRET))? {
            return Err(MasterKeyError::Lost { namespace: namespace.to_owned(), evidence });
        }
        let make = || secret(&MasterKey::generate(random));
        let (created, is_new) =
            get_or_create(&secrets, SECRET, make).await.map_err(failed(SECRET))?;
        if is_new {
            tracing::info!(
                namespace,
                secret = SECRET,
                "created the master key; keep a copy of it with your backups"
            );
        }
        created
    };
    let current = read(&found, KEY, namespace)?
        .ok_or_else(|| not_a_key(KEY, namespace, KeyError::NotAKey))?;
    let previous = read(&found, PREVIOUS_KEY, namespace)?;
    let fingerprint = current.fingerprint();
    let states = if let Some(states) = states {
        states
    } else {
        let make = || with_key(key_states::SECRET, FINGERPRINT, &fingerprint);
        let created = get_or_create(&secrets, key_states::SECRET, make).await;
        created.map_err(failed(key_states::SECRET))?.0
    };
    let (first_master, mut realms) = read_states(&states)?;
    for state in realms.values_mut() {
        // What was announced was derived from the previous master key.
        if state.phase == Phase::Announced && state.master != fingerprint {
            state.since = now.millis();
        }
    }
    let first_master = first_master.unwrap_or(fingerprint);
    KeyRing::new(current, previous, first_master, realms).map_err(|fingerprint| {
        MasterKeyError::Unknown { namespace: namespace.to_owned(), fingerprint }
    })
}

/// Returns what shows that there was a master key before.
async fn evidence(
    client: &Client,
    states: Option<&Secret>,
    watched: &WatchedNamespaces,
) -> Result<Option<String>, ApiError> {
    if states.is_some() {
        return Ok(Some(format!("the Secret {} has its fingerprint", key_states::SECRET)));
    }
    let ours = format!("{}={}", labels::MANAGED_BY_LABEL, labels::MANAGED_BY);
    // Credentials of other realms are those of another installation.
    let selectors = if watched.0.is_empty() {
        vec![ours]
    } else {
        let credentials = labels::CREDENTIALS_LABEL;
        let realms = watched.0.join(",");
        vec![format!("{ours},!{credentials}"), format!("{ours},{credentials} in ({realms})")]
    };
    let everywhere = watched.0.is_empty().then(|| Api::<Secret>::all(client.clone()));
    let named = watched.0.iter().map(|name| Api::namespaced(client.clone(), name));
    for secrets in everywhere.into_iter().chain(named) {
        for selector in &selectors {
            let parameters = ListParams::default().labels(selector).limit(1);
            let found = request::within(secrets.list_metadata(&parameters)).await?;
            let Some(secret) = found.items.first() else { continue };
            let metadata = &secret.metadata;
            let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
            return Ok(Some(format!(
                "the operator has written the Secret {} in the namespace {}",
                name.unwrap_or_default(),
                namespace.unwrap_or_default()
            )));
        }
    }
    Ok(None)
}

fn not_a_key(key: &'static str, namespace: &str, source: KeyError) -> MasterKeyError {
    MasterKeyError::NotAKey { key, namespace: namespace.to_owned(), source }
}

fn read(
    secret: &Secret,
    key: &'static str,
    namespace: &str,
) -> Result<Option<MasterKey>, MasterKeyError> {
    let Some(ByteString(bytes)) = secret.data.as_ref().and_then(|data| data.get(key)) else {
        return Ok(None);
    };
    let wrong = |source| not_a_key(key, namespace, source);
    let text = std::str::from_utf8(bytes).map_err(|_| wrong(KeyError::NotAKey))?;
    MasterKey::from_base64(text).map(Some).map_err(wrong)
}

/// Returns the fingerprint of the master key, and the states of realms that have one.
fn read_states(
    secret: &Secret,
) -> Result<(Option<String>, HashMap<RealmId, KeyState>), MasterKeyError> {
    let (mut fingerprint, mut realms) = (None, HashMap::new());
    for (name, ByteString(bytes)) in secret.data.iter().flatten() {
        // A realm whose state is lost would get keys that were revoked.
        let unreadable = || MasterKeyError::State { name: name.clone() };
        if name == FINGERPRINT {
            fingerprint = Some(String::from_utf8(bytes.clone()).map_err(|_| unreadable())?);
        } else {
            let realm = name.parse().map_err(|_| unreadable())?;
            realms.insert(realm, serde_json::from_slice(bytes).map_err(|_| unreadable())?);
        }
    }
    Ok((fingerprint, realms))
}

fn secret(key: &MasterKey) -> Secret {
    with_key(SECRET, KEY, key.to_base64().expose_secret())
}

#[cfg(test)]
mod tests {
    use rand::rngs::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    #[test]
    fn the_key_comes_back_from_its_secret_and_anything_else_is_refused() {
        let key = MasterKey::generate(&mut UnwrapErr(SysRng));
        let again = read(&secret(&key), KEY, "system").unwrap().unwrap();
        assert_eq!(again.to_base64(), key.to_base64());
        assert!(read(&secret(&key), PREVIOUS_KEY, "system").unwrap().is_none());
        let mut invalid = secret(&key);
        invalid.data.as_mut().unwrap().insert(KEY.to_owned(), ByteString(b"short".to_vec()));
        let message = read(&invalid, KEY, "system").unwrap_err().to_string();
        assert!(message.contains("32 bytes") && !message.contains("short"), "{message}");
    }

    #[test]
    fn the_states_of_realms_are_read_beside_the_fingerprint() {
        let mut secret = with_key(key_states::SECRET, FINGERPRINT, "ab");
        let text = serde_json::to_vec(&KeyState::first("ab")).unwrap();
        let data = secret.data.as_mut().unwrap();
        data.insert("people".to_owned(), ByteString(text));
        let (fingerprint, realms) = read_states(&secret).unwrap();
        assert_eq!((fingerprint.as_deref(), realms.len()), (Some("ab"), 1));
        // A realm that fell back to its first generation would get keys that were revoked.
        secret.data.as_mut().unwrap().insert("others".to_owned(), ByteString(b"{}".to_vec()));
        assert!(read_states(&secret).unwrap_err().to_string().contains("others"));
    }
}
