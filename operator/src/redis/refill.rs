//! Fills a realm in Redis again: publishes every user, removes orphaned ones, and then records
//! in Redis that the realm is complete on this node, which the sidecars check.
//!
//! The Secrets are listed in pages, and each page is published before the next is read, so that the
//! memory does not depend on the number of users.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use thiserror::Error;
use twofactor_api::validate::validate;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::names::Pseudonym;
use twofactor_core::record::{Provenance, UserRecord};
use twofactor_core::seed::Seed;
use twofactor_store::StoreError;
use twofactor_store::publisher::DesiredUser;

use crate::k8s::request::ApiError;
use crate::realm::record;
use crate::redis::secret_pages::SecretPages;
use crate::redis::{comparison, removals};
use crate::state::realms::Realm;
use crate::state::user_ref::user_ref;
use crate::state::{Context, random};
use crate::user::failures;
use crate::user::fetch::{self, FetchError};
use crate::user::secret;
use crate::user::unchanged;

/// Why a realm could not be filled.
#[derive(Debug, Error)]
pub enum RefillError {
    /// The Secrets cannot be listed.
    #[error("cannot list the Secrets: {0}")]
    List(#[from] ApiError),
    /// The Secrets of the realm cannot be read.
    #[error("cannot read the providers: {0}")]
    Providers(#[source] ApiError),
    /// An imported seed cannot be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Redis does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Fills `realm`, and returns the number of published users. After an error it has to be repeated.
pub async fn refill(context: &Context, realm: &Realm) -> Result<usize, RefillError> {
    let now = context.runtime.clock.now();
    // The node is identified first. If another node answers later, completing the fill fails,
    // because what was written to this one does not count there.
    let users = users_of(context, realm);
    let inspection = realm.publisher.begin_fill(users.as_deref(), &mut random()).await?;
    if inspection.ready {
        return Ok(0);
    }
    let version = realm.policy_version();
    let record = record::read(&context.runtime, &context.realms, &realm.namespace)
        .await
        .map_err(RefillError::Providers)?;
    record::publish(realm, &record, now).await?;
    realm.policy_published(version);

    let mut done = HashSet::new();
    if has_published_users(context, realm) {
        fill_from_secrets(context, realm, &mut done).await?;
    }
    let others = fill_others(context, realm, &done).await?;
    comparison::schedule_removals(context, realm).await?;
    removals::remove_pending(realm).await?;
    realm.publisher.store().complete_fill(&inspection).await?;
    Ok(done.len() + others)
}

/// Publishes users page by page of their Secrets, and adds them to `done`.
async fn fill_from_secrets(
    context: &Context,
    realm: &Realm,
    done: &mut HashSet<String>,
) -> Result<(), RefillError> {
    let users = context.users.usernames().names(&realm.namespace);
    let mut pages = SecretPages::new(&context.runtime.client, &realm.namespace, &users);
    let issuer = record::issuer(&context.realms, &realm.namespace);
    loop {
        // The lock is held from reading to writing, so that nothing newer is overwritten.
        let _alone = realm.publish_lock.write().await;
        let Some(page) = pages.next().await? else { return Ok(()) };
        let mut desired = Vec::new();
        for secret in &page {
            let Some((user, seed)) = owner_of(context, secret) else { continue };
            if user.spec.secret_ref.is_none()
                && let Some(mut record) = record(context, realm, &user, seed)
            {
                record.source =
                    unchanged::source_of(secret, &user, &record, &issuer, &realm.proofs);
                done.insert(user.uid().unwrap_or_default());
                let reset = failures::request(realm, &user);
                let disabled = failures::had_disabled(&user);
                desired.push(DesiredUser { record, fresh: false, reset, disabled });
            }
        }
        publish(context, realm, &desired).await?;
    }
}

/// Whether the realm has users whose Secrets have to be read. A new realm has none.
fn has_published_users(context: &Context, realm: &Realm) -> bool {
    let usernames = context.users.usernames();
    usernames.names(&realm.namespace).iter().any(|name| {
        context
            .users
            .objects
            .get(&user_ref(&realm.namespace, name))
            .is_some_and(|user| was_published_before(realm, &user))
    })
}

/// Whether the user has been published before. A new user is published by its first reconciliation,
/// as one whose seed is fresh.
fn was_published_before(realm: &Realm, user: &TwoFactorUser) -> bool {
    fetch::had_secret(user) || realm.was_published(user.metadata.uid.as_deref().unwrap_or_default())
}

/// The seed in a Secret or of an import.
struct UserSeed {
    seed: Option<Seed>,
    rotated: Option<String>,
}

/// Returns the user that a Secret belongs to, with its seed.
fn owner_of(context: &Context, secret: &Secret) -> Option<(TwoFactorUser, UserSeed)> {
    let (namespace, name) = (secret.namespace()?, secret.name_any());
    let reference = user_ref(&namespace, name.strip_suffix(labels::SECRET_SUFFIX)?);
    let user = context.users.objects.get(&reference)?;
    let seed = secret::read_seed(secret, labels::SECRET_KEY_SEED).ok();
    let rotated = secret::rotated_in(secret).map(str::to_owned);
    // One without an owner is adopted by the user's reconciliation.
    secret::is_owned(secret, &user).then_some((user, UserSeed { seed, rotated }))
}

/// Returns the record of a user that is valid, owns its username, and has been published before.
fn record(
    context: &Context,
    realm: &Realm,
    user: &TwoFactorUser,
    own: UserSeed,
) -> Option<UserRecord> {
    let definition = validate(user).ok()?;
    let uid = user.metadata.uid.as_deref()?;
    let wanted = was_published_before(realm, user)
        && context.users.owns(&realm.namespace, &definition.username, uid);
    // A reconciliation does the same: without a seed nothing was rotated.
    let rotated = own.rotated.filter(|_| own.seed.is_some());
    let provenance = Some(Provenance::new(uid, rotated.as_deref()));
    wanted.then_some(UserRecord { definition, seed: own.seed, provenance, source: None })
}

/// Returns all users of the realm, or nothing if one cannot be read.
fn users_of(context: &Context, realm: &Realm) -> Option<Vec<Pseudonym>> {
    let usernames = context.users.usernames();
    let owners = usernames.owners(&realm.namespace)?.into_iter();
    Some(owners.map(|(username, _)| realm.publisher.keys().pseudonym(username)).collect())
}

/// Publishes users of a list. Those that were deleted since it was read are removed again.
async fn publish(
    context: &Context,
    realm: &Realm,
    desired: &[DesiredUser],
) -> Result<(), StoreError> {
    let _kept = realm.removal_lock.read().await;
    realm.publisher.renew_with_retry(desired, &context.runtime.clock, &mut random()).await?;
    for DesiredUser { record, .. } in desired {
        let username = &record.definition.username;
        let uid = record.provenance.as_ref().map(|provenance| provenance.owner.as_str());
        if !context.users.owns(&realm.namespace, username, uid.unwrap_or_default()) {
            realm.schedule_removal(realm.publisher.keys().pseudonym(username));
            context.runtime.removals.notify_one();
            if let Some(owner) = context.users.owner(&realm.namespace, username) {
                context.users.queue.push(user_ref(&realm.namespace, &owner));
            }
        }
    }
    Ok(())
}

/// Publishes users that import their seed, and users whose Secret does not exist.
async fn fill_others(
    context: &Context,
    realm: &Realm,
    done: &HashSet<String>,
) -> Result<usize, RefillError> {
    let names = context.users.usernames().names(&realm.namespace);
    let mut count = 0;
    for name in names {
        let Some(user) = context.users.objects.get(&user_ref(&realm.namespace, &name)) else {
            continue;
        };
        if done.contains(user.metadata.uid.as_deref().unwrap_or_default())
            || !was_published_before(realm, &user)
        {
            continue;
        }
        let _alone = realm.publish_lock.write().await;
        let Ok(definition) = validate(&user) else { continue };
        let imported =
            fetch::import(&context.runtime.client, &context.users.imports, &user, &definition)
                .await?;
        let own = UserSeed {
            seed: imported.clone().and_then(Result::ok),
            rotated: user.status.as_ref().and_then(|status| status.rotated.clone()),
        };
        let Some(record) = record(context, realm, &user, own) else { continue };
        let pseudonym = realm.publisher.keys().pseudonym(&record.definition.username);
        // The record may hold the only copy of a seed whose Secret was deleted, so it is not
        // overwritten, and the user is requeued.
        let is_known = realm.publisher.current(pseudonym).await?.is_some();
        if imported.is_some() || !is_known {
            let reset = failures::request(realm, &user);
            let disabled = failures::had_disabled(&user);
            let desired = [DesiredUser { record, fresh: false, reset, disabled }];
            publish(context, realm, &desired).await?;
            count += 1;
        }
        context.users.queue.push(user_ref(&realm.namespace, &name));
    }
    Ok(count)
}
