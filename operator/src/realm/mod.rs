//! Keeps the records of realms current: when a policy changes, it has the record published again,
//! the credentials reconciled, and users requeued whose issuer has changed.

pub mod credentials;
pub mod defaults;
pub mod given;
pub mod key_states;
pub mod keys;
pub mod providers;
pub mod record;
pub mod status;
pub mod token_key;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::record::{issuer, read_secrets};
use crate::k8s::backoff::jittered;
use crate::k8s::request::ApiError;
use crate::state::user_ref::user_ref;
use crate::state::{Context, random};

/// Interval between reads of Secrets with providers. They have no label, so they are not watched.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// Maximum number of Secrets that are read at the same time.
const CONCURRENT: usize = 8;
/// Delay before a Secret is read again after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Runs until `stop`. The lists of users, realms and namespaces must be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut controller = RealmController {
        context,
        failed: HashSet::new(),
        issuers: HashMap::new(),
        reads: JoinSet::new(),
        reading: HashMap::new(),
        slots: Arc::new(Semaphore::new(CONCURRENT)),
    };
    // Changes before this process led are covered, because all realms are updated now.
    let _ = controller.context.realms.policies.take_changes();
    let mut defaults = controller.context.realms.defaults.subscribe();
    controller.update(everything(&controller.context)).await;
    let mut next_look = Instant::now() + READ_AGAIN;
    loop {
        let patience = if controller.failed.is_empty() {
            next_look
        } else {
            next_look.min(Instant::now() + RETRY)
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = controller.context.realms.policies.changed() => {}
            Ok(()) = defaults.changed() => {
                controller.update(everything(&controller.context)).await;
            }
            Some(read) = controller.reads.join_next(), if !controller.reads.is_empty() => controller.secrets_read(read),
            () = tokio::time::sleep_until(patience) => {
                let failed = std::mem::take(&mut controller.failed);
                controller.update(failed).await;
            }
        }
        let changed = controller.context.realms.policies.take_changes();
        controller.update(changed).await;
        if Instant::now() >= next_look {
            controller.read_again();
            next_look = Instant::now() + jittered(READ_AGAIN, &mut random());
        }
    }
}

/// All realms: namespaces with users or with a policy.
fn everything(context: &Context) -> HashSet<String> {
    let with_users = context.users.usernames().namespaces().into_iter();
    with_users.chain(context.realms.policies.namespaces_with_policy()).collect()
}

struct RealmController {
    context: Arc<Context>,
    /// Realms whose Secrets could not be read.
    failed: HashSet<String>,
    /// The issuers with which users' Secrets were written last.
    issuers: HashMap<String, String>,
    /// Reads of Secrets. They run in the background, so that a namespace that is no longer allowed
    /// is removed without waiting for them.
    reads: JoinSet<Read>,
    /// Realms whose Secrets are being read, and whether they have to be read again.
    reading: HashMap<String, bool>,
    slots: Arc<Semaphore>,
}

/// The realm whose Secrets were read, and whether the result has changed.
type Read = (String, Result<bool, ApiError>);

impl RealmController {
    /// Updates realms that have changed.
    async fn update(&mut self, realms: HashSet<String>) {
        let context = self.context.clone();
        // Allowed namespaces come first, because they matter most and need no Secret.
        for realm in realms.iter().filter(|realm| context.runtime.watched.includes(realm)) {
            if context.realms.policies.has_policy(realm)
                && context.realms.policies.namespace(realm).is_some()
            {
                // Allowed services need the realm before it has a user.
                let _ = context.realms.registry.get_or_create(realm).await;
            }
            context.services.credentials_queue.realm_changed(realm.clone());
            // A withdrawn namespace costs a generation.
            context.realms.registry.keys.note(realm);
            context.realms.policy_changed(realm);
            self.renew_issuer(realm);
        }
        for realm in realms.into_iter().filter(|realm| context.runtime.watched.includes(realm)) {
            self.read(realm);
        }
    }

    /// Starts reading the Secrets of a realm.
    fn read(&mut self, realm: String) {
        if let Some(again) = self.reading.get_mut(&realm) {
            // The realm may refer to another Secret now.
            *again = true;
            return;
        }
        self.reading.insert(realm.clone(), false);
        let (context, slots) = (self.context.clone(), self.slots.clone());
        self.reads.spawn(async move {
            let _slot = slots.acquire().await;
            let result = read_secrets(&context.runtime, &context.realms, &realm).await;
            (realm, result)
        });
    }

    fn secrets_read(&mut self, read: Result<Read, JoinError>) {
        let (realm, result) = match read {
            Ok(read) => read,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return,
        };
        match result {
            Ok(true) => self.context.realms.policy_changed(&realm),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(namespace = realm, %error, "failed to read the providers of a realm; trying again");
                self.failed.insert(realm.clone());
            }
        }
        if self.reading.remove(&realm) == Some(true) {
            self.read(realm);
        }
    }

    fn read_again(&mut self) {
        let policies = &self.context.realms.policies;
        let has_secret = |realm: &String| {
            policies
                .policy(realm)
                .is_some_and(|policy| policy.delivery_secret.is_some() || policy.tokens.is_some())
        };
        let realms = policies.namespaces_with_policy().into_iter();
        let realms: Vec<String> = realms
            .filter(|realm| has_secret(realm) && self.context.runtime.watched.includes(realm))
            .collect();
        for realm in realms {
            self.read(realm);
        }
    }

    /// Requeues the users of a realm whose issuer has changed, because their Secrets contain it.
    fn renew_issuer(&mut self, realm: &str) {
        let issuer = issuer(&self.context.realms, realm);
        let old = self.issuers.insert(realm.to_owned(), issuer.clone());
        // Before the policy of a realm was known, its users were reconciled with the default
        // issuer.
        if old.unwrap_or_else(|| self.context.realms.defaults.borrow().issuer.clone()) != issuer {
            for user in self.context.users.usernames().names(realm) {
                self.context.users.queue.push(user_ref(realm, &user));
            }
        }
    }
}
