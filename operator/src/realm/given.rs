//! Records which namespaces are given a realm's keys before they get them, and announces the next
//! generation when a realm withdraws a namespace that may have the newest one.
//!
//! The record is in the operator's own Secret. The credentials of a namespace are no proof of what
//! it has, because its editors can delete and forge them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::credentials::{allowed_uids, given};
use super::key_states;
use crate::k8s::request::ApiError;
use crate::state::Context;
use crate::state::credentials::Target;
use crate::state::realms::{Realm, RealmError};

/// Delay before a record is written again after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the record of all realms until `stop`. The lists of realms and namespaces must be
/// complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let keys = &context.realms.registry.keys;
    let mut has_failed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = keys.is_noted.notified(), if !has_failed => {}
            () = tokio::time::sleep(RETRY), if has_failed => {}
        }
        // What is noted during a write is written together afterwards.
        let noted = keys.take_noted();
        let Some(recorded) = stop.run_until_cancelled(record(&context, &noted)).await else {
            return;
        };
        if let Err(error) = &recorded {
            if !has_failed {
                tracing::warn!(%error, "failed to record which namespaces are given keys; trying again");
            }
            for realm in noted {
                keys.note(&realm);
            }
        }
        has_failed = recorded.is_err();
    }
}

/// Writes the records of some realms.
async fn record(
    context: &Context,
    namespaces: impl IntoIterator<Item = &String>,
) -> Result<(), ApiError> {
    let mut realms = Vec::new();
    for namespace in namespaces {
        realms.extend(with_keys(context, namespace).await?);
    }
    let now = context.runtime.clock.now().millis();
    let policies = &context.realms.policies;
    let mut targets = Vec::new();
    key_states::update_all(context, &realms, |realm, state| {
        let allowed = allowed_uids(context, &realm.namespace);
        state.withdraw(&allowed, |uid| policies.has_namespace(uid), now);
        for (namespace, uid) in given(context, &realm.namespace) {
            if !state.has_given(&uid) {
                state.give(uid);
                targets.push(Target { realm: realm.namespace.clone(), namespace });
            }
        }
    })
    .await?;
    for target in targets {
        context.services.credentials_queue.secret_changed(target);
    }
    Ok(())
}

/// Returns a realm that was requested, or whose keys other namespaces have. After a start, the
/// latter may have lost its policy before any task has requested it.
async fn with_keys(context: &Context, namespace: &str) -> Result<Option<Arc<Realm>>, ApiError> {
    let registry = &context.realms.registry;
    if let Some(realm) = registry.get(namespace) {
        return Ok(Some(realm));
    }
    let uid = context.realms.policies.namespace(namespace).and_then(|(uid, _)| uid.parse().ok());
    if uid.is_none_or(|id| registry.keys.of(&id).given.is_empty()) {
        return Ok(None);
    }
    match registry.get_or_create(namespace).await {
        Ok(realm) => Ok(Some(realm)),
        Err(RealmError::Api(error)) => Err(error),
        Err(RealmError::Gone | RealmError::Identifier) => Ok(None),
    }
}
