//! Stores the generations of realms' keys in the Secret `twofactor-keys` of the operator's
//! namespace, before they are used, because a generation that was given out must never be another
//! key later.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use twofactor_core::names::RealmId;

use crate::k8s::owned_secret::owned_secret;
use crate::k8s::request::{self, ApiError};
use crate::state::Context;
use crate::state::realm_keys::KeyState;
use crate::state::realms::Realm;

/// The Secret.
pub const SECRET: &str = "twofactor-keys";
/// Its key with the fingerprint of the master key. All other keys are the UIDs of realms.
pub const FINGERPRINT: &str = "master-key-fingerprint";

/// Changes the state of a realm's keys: stores it, and uses it from now on.
pub async fn update(
    context: &Context,
    realm: &Arc<Realm>,
    change: impl FnMut(&Realm, &mut KeyState),
) -> Result<(), ApiError> {
    update_all(context, std::slice::from_ref(realm), change).await
}

/// Changes the states of several realms' keys in one write.
pub async fn update_all(
    context: &Context,
    realms: &[Arc<Realm>],
    mut change: impl FnMut(&Realm, &mut KeyState),
) -> Result<(), ApiError> {
    let keys = &context.realms.registry.keys;
    // A withdrawal and the task that replaces keys change the same state.
    let _alone = keys.updates.lock().await;
    let mut changed = Vec::new();
    for realm in realms {
        let before = keys.of(&realm.id);
        let mut state = before.clone();
        change(realm, &mut state);
        if state != before {
            changed.push((realm, before, state));
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    let text = |state| Some(serde_json::to_vec(state).unwrap_or_default());
    let values = changed.iter().map(|(realm, _, state)| (realm.id.as_str(), text(state)));
    store(context, values.collect()).await?;
    for (realm, before, state) in changed {
        keys.set(&realm.id, state.clone());
        if (before.generation, before.phase) != (state.generation, state.phase) {
            tracing::info!(
                namespace = realm.namespace,
                generation = state.generation,
                phase = ?state.phase,
                "keys of a realm changed"
            );
            realm.publisher.use_keys(keys.realm_keys(&realm.id));
            context.services.credentials_queue.realm_changed(realm.namespace.clone());
        }
    }
    Ok(())
}

/// Forgets the keys of realms whose namespaces are gone. Their UIDs are never used again.
pub async fn forget(context: &Context, realms: &[RealmId]) -> Result<(), ApiError> {
    let keys = &context.realms.registry.keys;
    let _alone = keys.updates.lock().await;
    for realm in realms {
        keys.forget(realm);
    }
    remove_forgotten(context, None).await
}

/// Removes the states that were forgotten, and stores another fingerprint of the master key if
/// there is one. `KeyRing::updates` must be held, so that no state is stored in between for a
/// realm that exists again.
pub async fn remove_forgotten(
    context: &Context,
    fingerprint: Option<Vec<u8>>,
) -> Result<(), ApiError> {
    let keys = &context.realms.registry.keys;
    let forgotten = keys.forgotten();
    let mut changes: BTreeMap<&str, Option<Vec<u8>>> =
        forgotten.iter().map(|id| (id.as_str(), None)).collect();
    changes.extend(fingerprint.map(|fingerprint| (FINGERPRINT, Some(fingerprint))));
    if !changes.is_empty() {
        store(context, changes).await?;
        keys.removed(&forgotten);
    }
    Ok(())
}

/// Stores values, and removes those that are absent. A Secret that was deleted is created again.
async fn store(
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
