//! Replaces the keys of realms: announces the next generation when it is requested, has it seal
//! when every sidecar can know it, seals the records again, and forgets the old generation.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kube::ResourceExt;
use thiserror::Error;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;
use twofactor_store::StoreError;

use super::credentials;
use super::key_states;
use super::record::read_secrets;
use crate::k8s::request::ApiError;
use crate::state::realm_keys::Phase;
use crate::state::realms::{Readiness, Realm, RealmError};
use crate::state::{Context, random};

/// Interval between passes.
const PERIOD: Duration = Duration::from_secs(1);
/// Number of users whose records are sealed again at a time.
const BATCH: usize = 200;
/// Number of overlaps after which a generation seals although a namespace lacks it, or has pods
/// with a sidecar of another version: a namespace must not keep the old keys for all.
const MOST_OVERLAPS: u32 = 10;
/// Maximum number of characters of a request that are stored: an annotation can hold 256 KiB.
const REQUEST_CHARACTERS: usize = 128;

#[derive(Debug, Error)]
enum KeysError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Replaces keys until `stop`. The lists must be complete. `overlap` is the time in which every
/// sidecar gets what was written to its credentials.
pub async fn run(context: Arc<Context>, overlap: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = HashSet::new();
    let work = async {
        loop {
            ticks.tick().await;
            let requests = requests(&context);
            let realms = context.realms.registry.all();
            let is_replacing = |realm: &&Arc<Realm>| {
                context.realms.registry.keys.of(&realm.id).phase != Phase::Steady
            };
            let replacing = realms.iter().filter(is_replacing).count();
            context.runtime.metrics.show_replacing_keys(replacing);
            for realm in realms {
                let request = requests.get(&realm.namespace);
                match step(&context, &realm, request, overlap).await {
                    Ok(()) => {
                        failed.remove(&realm.namespace);
                    }
                    Err(error) => {
                        if failed.insert(realm.namespace.clone()) {
                            tracing::warn!(namespace = realm.namespace, %error, "failed to replace the keys of a realm; trying again");
                        }
                    }
                }
            }
            forget_previous_master(&context).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// The requests of administrators, by namespace.
fn requests(context: &Context) -> HashMap<String, String> {
    let realms = context.realms.policies.realms().into_iter();
    let request = |realm: &crate::state::realm_policies::KnownRealm| {
        realm.policy.as_ref().ok()?;
        let request = realm.object.annotations().get(labels::ROTATE_KEYS_ANNOTATION)?;
        let request = request.chars().take(REQUEST_CHARACTERS).collect();
        Some((realm.object.namespace()?, request))
    };
    realms.filter_map(|realm| request(&realm)).collect()
}

/// Takes a realm one step further, if it is due.
async fn step(
    context: &Context,
    realm: &Arc<Realm>,
    request: Option<&String>,
    overlap: Duration,
) -> Result<(), KeysError> {
    let keys = &context.realms.registry.keys;
    let state = keys.of(&realm.id);
    let now = context.runtime.clock.now().millis();
    if request.is_some() && state.request.as_ref() != request {
        let requested = key_states::update(context, realm, |_, state| {
            state.request = request.cloned();
            state.raise(now);
        });
        return Ok(requested.await?);
    }
    match state.phase {
        Phase::Steady if keys.is_of_previous_master(&state) => {
            key_states::update(context, realm, |_, state| state.raise(now)).await?;
        }
        Phase::Steady => {}
        Phase::Announced => {
            let past = |since: u64| Duration::from_millis(now.saturating_sub(since));
            // The credentials that were written last need the overlap as well.
            let age = past(state.since).min(realm.credentials_unchanged_for());
            let is_overdue = past(state.announced) >= overlap * MOST_OVERLAPS;
            if !is_overdue && (age < overlap || has_outdated_sidecars(context, realm)) {
                return Ok(());
            }
            if !is_overdue && !credentials::are_written(context, &realm.namespace).await? {
                realm.credentials_changed();
                return Ok(());
            }
            let resealing = key_states::update(context, realm, |_, state| {
                if keys.is_of_previous_master(state) && state.names.is_none() {
                    state.names = Some(keys.name_keys(&realm.id, state).to_text());
                }
                state.reseal(now, keys.fingerprint());
            });
            resealing.await?;
            // The key of tokens is another one too. The realm's record is sealed again also if its
            // Secrets cannot be read, because nothing else notices the new generation.
            let read = read_secrets(&context.runtime, &context.realms, &realm.namespace).await;
            context.realms.policy_changed(&realm.namespace);
            read?;
        }
        Phase::Resealing => {
            if realm.readiness() != Readiness::Ready || !realm.is_policy_published() {
                return Ok(());
            }
            if reseal(context, realm).await? == 0 {
                key_states::update(context, realm, |_, state| state.complete(now)).await?;
            }
        }
    }
    Ok(())
}

/// Whether a pod has a sidecar of another version, which may not know of generations.
fn has_outdated_sidecars(context: &Context, realm: &Realm) -> bool {
    let outdated = context.services.outdated_pods.lock().unwrap_or_else(PoisonError::into_inner);
    outdated.get(&realm.namespace).copied().unwrap_or_default() > 0
}

/// Seals records again, and returns how many there were.
async fn reseal(context: &Context, realm: &Realm) -> Result<usize, StoreError> {
    let mut resealed = 0;
    for part in realm.publisher.store().users().await?.chunks(BATCH) {
        // No reconciliation publishes a user between the read and the write.
        let _alone = realm.publish_lock.write().await;
        let _kept = realm.removal_lock.read().await;
        let now = context.runtime.clock.now();
        resealed += realm.publisher.reseal(part, now, &mut random()).await?;
    }
    Ok(resealed)
}

/// Notes that no realm needs the previous master key any more, once that is so. Forgets the states
/// that need it of realms without users and policy, because the next start would ask for it.
async fn forget_previous_master(context: &Context) {
    let registry = &context.realms.registry;
    let keys = &registry.keys;
    if keys.first_master() == keys.fingerprint() || !has_all_realms(context).await {
        return;
    }
    // No state changes in between.
    let _alone = keys.updates.lock().await;
    let needs_it = |realm: &Arc<Realm>| {
        let state = keys.of(&realm.id);
        state.phase != Phase::Steady || keys.needs_previous_master(&state)
    };
    if registry.all().iter().any(needs_it) {
        return;
    }
    registry.forget_keys(|state| keys.needs_previous_master(state));
    let fingerprint = keys.fingerprint().as_bytes().to_vec();
    if let Err(error) = key_states::remove_forgotten(context, Some(fingerprint)).await {
        tracing::debug!(%error, "failed to store the fingerprint of the master key; trying again");
        return;
    }
    keys.forget_previous_master();
    tracing::info!("the previous master key is no longer needed: remove it from its Secret");
}

/// Makes the realms of all users and policies known. Returns whether that succeeded.
async fn has_all_realms(context: &Context) -> bool {
    let mut namespaces = context.realms.policies.namespaces_with_policy();
    namespaces.extend(context.users.usernames().namespaces());
    for namespace in namespaces {
        match context.realms.registry.get_or_create(&namespace).await {
            Ok(_) | Err(RealmError::Gone) => {}
            Err(_) => return false,
        }
    }
    true
}
