//! Stores the generations of realms' keys in the Secret `twofactor-keys` of the operator's
//! namespace, before they are used, because a generation that was given out must never be another
//! key later.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use thiserror::Error;
use twofactor_core::names::RealmId;

use crate::k8s::owned_secret::owned_secret;
use crate::k8s::request::{self, ApiError};
use crate::state::Context;
use crate::state::realm_keys::KeyState;
use crate::state::realms::{Realm, RealmError};

/// The Secret.
pub const SECRET: &str = "twofactor-keys";
/// Its key with the fingerprint of the master key. All other keys are the UIDs of realms.
pub const FINGERPRINT: &str = "master-key-fingerprint";

/// Why the keys of a realm could not be replaced.
#[derive(Debug, Error)]
pub enum KeyStateError {
    /// The namespace has no realm.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The Secret cannot be written.
    #[error("the Secret {SECRET} cannot be written: {0}")]
    Api(#[from] ApiError),
}

/// Announces the next generation of a realm's keys to its services, unless they are given a newer
/// one than `known` already, or `known` was never given: the Secret that holds it is then not the
/// operator's.
pub async fn raise(context: &Context, namespace: &str, known: u32) -> Result<(), KeyStateError> {
    let realm = context.realms.registry.get_or_create(namespace).await?;
    let now = context.runtime.clock.now().millis();
    update(context, &realm, |state| {
        if state.newest() == known {
            state.raise(now);
        }
    })
    .await
}

/// Changes the state of a realm's keys: stores it, and uses it from now on.
pub async fn update(
    context: &Context,
    realm: &Realm,
    change: impl FnOnce(&mut KeyState),
) -> Result<(), KeyStateError> {
    let keys = &context.realms.registry.keys;
    // A withdrawal and the task that replaces keys change the same state.
    let _alone = keys.updates.lock().await;
    let mut state = keys.of(&realm.id);
    let before = state.clone();
    change(&mut state);
    if state == before {
        return Ok(());
    }
    let text = serde_json::to_vec(&state).unwrap_or_default();
    store(context, BTreeMap::from([(realm.id.as_str(), Some(text))])).await?;
    tracing::info!(
        namespace = realm.namespace,
        generation = state.generation,
        phase = ?state.phase,
        "keys of a realm changed"
    );
    keys.set(&realm.id, state);
    realm.publisher.use_keys(keys.realm_keys(&realm.id));
    context.services.credentials_queue.realm_changed(realm.namespace.clone());
    Ok(())
}

/// Forgets the keys of a realm whose namespace is gone. Its UID is never used again.
pub async fn forget(context: &Context, realm: &RealmId) -> Result<(), ApiError> {
    let keys = &context.realms.registry.keys;
    let _alone = keys.updates.lock().await;
    if keys.all().iter().any(|(id, _)| id == realm) {
        store(context, BTreeMap::from([(realm.as_str(), None)])).await?;
        keys.forget(realm);
    }
    Ok(())
}

/// Stores values, and removes those that are absent. A Secret that was deleted is created again.
pub async fn store(
    context: &Context,
    changes: BTreeMap<&str, Option<Vec<u8>>>,
) -> Result<(), ApiError> {
    let namespace = &context.realms.shared_key.namespace;
    let secrets = Api::<Secret>::namespaced(context.runtime.client.clone(), namespace);
    let changes: BTreeMap<&str, Option<ByteString>> =
        changes.into_iter().map(|(key, value)| (key, value.map(ByteString))).collect();
    let patch = Patch::Merge(json!({ "data": &changes }));
    let parameters = PatchParams::default();
    let patched = request::within(async { secrets.patch(SECRET, &parameters, &patch).await });
    if request::optional(patched.await)?.is_some() {
        return Ok(());
    }
    let keys = &context.realms.registry.keys;
    let mut data = BTreeMap::new();
    data.insert(FINGERPRINT.to_owned(), ByteString(keys.first_master().into_bytes()));
    for (realm, state) in keys.all() {
        let text = serde_json::to_vec(&state).unwrap_or_default();
        data.insert(realm.to_string(), ByteString(text));
    }
    for (key, value) in changes {
        match value {
            Some(value) => drop(data.insert(key.to_owned(), value)),
            None => drop(data.remove(key)),
        }
    }
    let secret = owned_secret(SECRET, data);
    request::within(secrets.create(&PostParams::default(), &secret)).await?;
    Ok(())
}
