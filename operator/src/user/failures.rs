//! Users whom failed attempts have disabled. Enters: an administrator's request to forget the
//! failures, and what the store knows. Leaves: the request on its way to the store, and everybody
//! looked at whose status says otherwise than the store.
//!
//! The store alone decides who is disabled. The request is part of what is published, as often as
//! it has to be: the store carries each value out once, also when it comes again with a refill.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio_util::sync::CancellationToken;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::names::Pseudonym;
use twofactor_core::user::UserDefinition;
use twofactor_store::StoreError;

use crate::k8s::backoff::jittered;
use crate::k8s::events::Notice;
use crate::state::queue::user_ref;
use crate::state::realms::{Readiness, Realm};
use crate::state::{Context, random};
use crate::user::publish::PublishError;
use crate::user::status;

/// How often to look whom failures have disabled: nobody tells. One small question for each user.
const PERIOD: Duration = Duration::from_secs(30);

/// The request to forget the user's failures, as the store knows it.
pub fn request(realm: &Realm, user: &TwoFactorUser) -> Option<String> {
    let request = user.annotations().get(labels::RESET_FAILURES_ANNOTATION)?;
    Some(realm.publisher.keys().request_tag(request))
}

/// Whether failures have disabled the user.
pub async fn have_disabled(
    realm: &Realm,
    definition: &UserDefinition,
) -> Result<bool, PublishError> {
    let pseudonym = realm.publisher.keys().pseudonym(&definition.username);
    Ok(realm.publisher.store().disabled(&[pseudonym]).await? == [true])
}

/// What there is to tell once the user is published: a request that is carried out now. A new user
/// has nothing to forget.
pub fn notice(user: &TwoFactorUser, newcomer: bool) -> Option<Notice> {
    let request = user.annotations().get(labels::RESET_FAILURES_ANNOTATION)?;
    let answered = user.status.as_ref().and_then(|status| status.failures_reset.as_ref());
    (!newcomer && answered != Some(request)).then(|| {
        Notice::normal(
            "FailuresReset",
            "Failed attempts were forgotten, as asked for: nobody is blocked, and the user is not disabled by them",
        )
    })
}

/// Looks until it is told to stop. Begins when the lists are complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let pause = || tokio::time::sleep(jittered(PERIOD, &mut random()));
    // By realm; of one that does not answer now, what it answered last.
    let mut counts: HashMap<String, usize> = HashMap::new();
    while stop.run_until_cancelled(pause()).await.is_some() {
        let realms = context.realms.all();
        counts.retain(|namespace, _| realms.iter().any(|realm| realm.namespace == *namespace));
        for realm in realms {
            if realm.readiness() != Readiness::Ready {
                continue;
            }
            match check_realm(&context, &realm).await {
                Ok(count) => drop(counts.insert(realm.namespace.clone(), count)),
                Err(error) => {
                    tracing::debug!(namespace = realm.namespace, %error, "nobody knows whom failures have disabled");
                }
            }
        }
        let all: usize = counts.values().sum();
        context.metrics.disabled_by_failures.set(i64::try_from(all).unwrap_or(i64::MAX));
    }
}

/// Has everybody looked at whose status says otherwise than the store. Tells how many are disabled.
async fn check_realm(context: &Context, realm: &Realm) -> Result<usize, StoreError> {
    let owners: Vec<(Pseudonym, String)> = {
        let usernames = context.usernames();
        let owners = usernames.owners(&realm.namespace).unwrap_or_default();
        let keys = realm.publisher.keys();
        owners
            .into_iter()
            .map(|(username, claim)| (keys.pseudonym(username), claim.name.clone()))
            .collect()
    };
    let (pseudonyms, names): (Vec<Pseudonym>, Vec<String>) = owners.into_iter().unzip();
    let disabled = realm.publisher.store().disabled(&pseudonyms).await?;
    let count = disabled.iter().filter(|disabled| **disabled).count();
    for (name, disabled) in names.into_iter().zip(disabled) {
        let reference = user_ref(&realm.namespace, &name);
        let Some(user) = context.users.get(&reference) else { continue };
        // Of somebody who is not ready for another reason, the status says that one.
        let is_news = if disabled {
            status::says_ready(&user)
        } else {
            status::says_disabled_by_failures(&user)
        };
        if is_news {
            context.queue.push(reference);
        }
    }
    Ok(count)
}
