//! Makes a realm's content in the store anew. Enters: a realm of which the store has lost
//! something, or is new. Leaves: every user published, nobody else, and a stamp that says so to the
//! sidecars.
//!
//! The Secrets are listed in pages, and each page is published before the next is read, so that the
//! memory this takes does not depend on the number of users.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::core::ObjectList;
use kube::{Api, ResourceExt};
use thiserror::Error;
use twofactor_api::validate::validate;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::record::{Provenance, UserRecord};
use twofactor_core::seed::Seed;
use twofactor_store::StoreError;
use twofactor_store::publisher::DesiredUser;

use crate::k8s::request::{self, ApiError};
use crate::realm::record;
use crate::redis::cleanup;
use crate::state::queue::user_ref;
use crate::state::realms::Realm;
use crate::state::{Context, random};
use crate::user::failures;
use crate::user::fetch::{self, FetchError};
use crate::user::secret;
use crate::user::seed_decision::SecretState;

/// Secrets in a page.
const PAGE: u32 = 500;

/// Why a realm could not be filled.
#[derive(Debug, Error)]
pub enum RefillError {
    /// The API server does not tell what is in the Secrets.
    #[error("cannot list the Secrets: {0}")]
    List(#[from] ApiError),
    /// The API server does not tell what the realm's providers are.
    #[error("cannot read the providers: {0}")]
    Providers(#[source] ApiError),
    /// The API server does not tell what is imported.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The store does not do what it is asked for.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Fills `realm`. Tells how many users were published.
pub async fn refill(context: &Context, realm: &Realm) -> Result<usize, RefillError> {
    let now = context.clock.now();
    // Who the node is comes first: what is true of another one does not count, and the stamp will
    // tell.
    let inspection = realm.publisher.begin_fill(&mut random()).await?;
    if inspection.ready {
        return Ok(0);
    }
    let version = realm.policy_version();
    let record = record::read(context, &realm.namespace).await.map_err(RefillError::Providers)?;
    realm.publisher.publish_realm(&record, now, &mut random()).await?;
    realm.policy_published(version);

    let mut done = HashSet::new();
    if has_published_users(context, realm) {
        fill_from_secrets(context, realm, &mut done).await?;
    }
    let others = fill_others(context, realm, &done).await?;
    cleanup::sweep(context, realm).await?;
    realm.publisher.store().complete_fill(&inspection).await?;
    Ok(done.len() + others)
}

/// Publishes users page by page of their Secrets, and adds them to `done`.
async fn fill_from_secrets(
    context: &Context,
    realm: &Realm,
    done: &mut HashSet<String>,
) -> Result<(), RefillError> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &realm.namespace);
    let selector = format!("{}={}", labels::MANAGED_BY_LABEL, labels::MANAGED_BY);
    let mut parameters = ListParams::default().labels(&selector).limit(PAGE);
    loop {
        // Held from the reading to the writing, so that nothing newer is overwritten.
        let _alone = realm.publish_lock.write().await;
        let page = request::within(secrets.list(&parameters)).await?;
        parameters.continue_token =
            page.metadata.continue_.clone().filter(|token| !token.is_empty());
        let mut desired = Vec::new();
        for (user, seed) in owners_of(context, &page) {
            if user.spec.secret_ref.is_none()
                && let Some(record) = record(context, realm, &user, seed)
            {
                done.insert(user.uid().unwrap_or_default());
                let reset = failures::request(realm, &user);
                desired.push(DesiredUser { record, fresh: false, reset });
            }
        }
        publish(context, realm, &desired).await?;
        if parameters.continue_token.is_none() {
            return Ok(());
        }
    }
}

/// Whether there is anybody whose Secret is worth a look: in a new realm there is not.
fn has_published_users(context: &Context, realm: &Realm) -> bool {
    let usernames = context.usernames();
    usernames.names(&realm.namespace).iter().any(|name| {
        context
            .users
            .get(&user_ref(&realm.namespace, name))
            .is_some_and(|user| was_published_before(realm, &user))
    })
}

/// Whether the user has been published before. One who has not is being reconciled for the first
/// time, and gets their place in the store there, as somebody whose seed is fresh.
fn was_published_before(realm: &Realm, user: &TwoFactorUser) -> bool {
    fetch::had_secret(user) || realm.was_published(user.metadata.uid.as_deref().unwrap_or_default())
}

/// What a Secret, or an import, gives a user.
struct UserSeed {
    seed: Option<Seed>,
    rotated: Option<String>,
}

/// The users of a page of Secrets, with the seeds.
fn owners_of(context: &Context, page: &ObjectList<Secret>) -> Vec<(Arc<TwoFactorUser>, UserSeed)> {
    let owner = |secret: &Secret| {
        let (namespace, name) = (secret.namespace()?, secret.name_any());
        let user =
            context.users.get(&user_ref(&namespace, name.strip_suffix(labels::SECRET_SUFFIX)?))?;
        match secret::ownership(secret, &user) {
            SecretState::Ours { seed, rotated } => {
                Some((user, UserSeed { seed: seed.ok(), rotated }))
            }
            _ => None,
        }
    };
    page.items.iter().filter_map(owner).collect()
}

/// The record of a user who is valid, owns their username, and has been published before.
fn record(
    context: &Context,
    realm: &Realm,
    user: &TwoFactorUser,
    own: UserSeed,
) -> Option<UserRecord> {
    let definition = validate(user).ok()?;
    let uid = user.metadata.uid.as_deref()?;
    let wanted = was_published_before(realm, user)
        && context.owns(&realm.namespace, &definition.username, uid);
    // As a reconcile tells it: without a seed there is nothing that was rotated.
    let rotated = own.rotated.filter(|_| own.seed.is_some());
    let provenance = Some(Provenance::new(uid, rotated.as_deref()));
    wanted.then_some(UserRecord { definition, seed: own.seed, provenance })
}

async fn publish(
    context: &Context,
    realm: &Realm,
    desired: &[DesiredUser],
) -> Result<(), StoreError> {
    realm.publisher.renew_with_retry(desired, &context.clock, &mut random()).await
}

/// Users who import their seed, and those whose Secret is gone.
async fn fill_others(
    context: &Context,
    realm: &Realm,
    done: &HashSet<String>,
) -> Result<usize, RefillError> {
    let names = context.usernames().names(&realm.namespace);
    let mut count = 0;
    for name in names {
        let Some(user) = context.users.get(&user_ref(&realm.namespace, &name)) else { continue };
        if done.contains(user.metadata.uid.as_deref().unwrap_or_default())
            || !was_published_before(realm, &user)
        {
            continue;
        }
        let _alone = realm.publish_lock.write().await;
        let imported = fetch::import(&context.client, &user).await?;
        let own = UserSeed {
            seed: imported.clone().and_then(Result::ok),
            rotated: user.annotations().get(labels::ROTATE_ANNOTATION).cloned(),
        };
        let Some(record) = record(context, realm, &user, own) else { continue };
        let pseudonym = realm.publisher.keys().pseudonym(&record.definition.username);
        // A record may be all that is left of a seed whose Secret is gone: it is not overwritten,
        // and the user is looked at.
        let is_known = realm.publisher.current(pseudonym).await?.is_some();
        if imported.is_some() || !is_known {
            let reset = failures::request(realm, &user);
            publish(context, realm, &[DesiredUser { record, fresh: false, reset }]).await?;
            count += 1;
        }
        context.queue.push(user_ref(&realm.namespace, &name));
    }
    Ok(count)
}
