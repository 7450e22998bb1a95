//! What the sealed record of each realm should say. Enters: the operator's own settings, the
//! realm's `TwoFactorRealm`, and the Secret with its providers. Leaves: the record, for whoever
//! publishes it; and everybody woken who has to act on a change.

pub mod credentials;
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
use crate::state::queue::user_ref;
use crate::state::{Context, random};

/// How often to read Secrets with providers: they are not watched, since nothing marks them.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// Secrets that are read at the same time.
const CONCURRENT: usize = 8;
/// How soon to read one again that the API server did not give.
const RETRY: Duration = Duration::from_secs(2);

/// Follows the realms until it is told to stop. Begins when the lists are complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut controller = RealmController {
        context,
        failed: HashSet::new(),
        issuers: HashMap::new(),
        reads: JoinSet::new(),
        reading: HashMap::new(),
        slots: Arc::new(Semaphore::new(CONCURRENT)),
    };
    // What has changed before this process led: everything may have.
    let _ = controller.context.policies.take_changes();
    let everything: HashSet<String> = controller
        .context
        .usernames()
        .namespaces()
        .into_iter()
        .chain(controller.context.policies.namespaces_with_policy())
        .collect();
    controller.update(everything).await;
    let mut next_look = Instant::now() + READ_AGAIN;
    loop {
        let patience = if controller.failed.is_empty() {
            next_look
        } else {
            next_look.min(Instant::now() + RETRY)
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = controller.context.policies.changed() => {}
            Some(read) = controller.reads.join_next(), if !controller.reads.is_empty() => controller.secrets_read(read),
            () = tokio::time::sleep_until(patience) => {
                let failed = std::mem::take(&mut controller.failed);
                controller.update(failed).await;
            }
        }
        let changed = controller.context.policies.take_changes();
        controller.update(changed).await;
        if Instant::now() >= next_look {
            controller.read_again();
            next_look = Instant::now() + jittered(READ_AGAIN, &mut random());
        }
    }
}

struct RealmController {
    context: Arc<Context>,
    /// Realms whose providers could not be read.
    failed: HashSet<String>,
    /// The issuers that users' Secrets were last made with.
    issuers: HashMap<String, String>,
    /// Reads of providers, each beside the rest: whoever is not let in any more does not wait for a
    /// Secret.
    reads: JoinSet<Read>,
    /// The realms of these, and whether to read once more when they are over.
    reading: HashMap<String, bool>,
    slots: Arc<Semaphore>,
}

/// The realm whose providers were read, and whether they are others than before.
type Read = (String, Result<bool, ApiError>);

impl RealmController {
    /// Something about these realms has changed.
    async fn update(&mut self, realms: HashSet<String>) {
        let context = self.context.clone();
        // At first what is quick, and matters most: who is let in.
        for realm in realms.iter().filter(|realm| context.watched.includes(realm)) {
            if context.policies.has_policy(realm) && context.policies.namespace(realm).is_some() {
                // Services that are let in wait for it, also when there is no user yet.
                let _ = context.realms.get_or_create(realm).await;
            }
            context.credentials_queue.realm_changed(realm.clone());
            context.policy_changed(realm);
            self.renew_issuer(realm);
        }
        for realm in realms.into_iter().filter(|realm| context.watched.includes(realm)) {
            self.read(realm);
        }
    }

    /// Begins to read the providers of a realm.
    fn read(&mut self, realm: String) {
        if let Some(again) = self.reading.get_mut(&realm) {
            // The realm may refer to another Secret by now.
            *again = true;
            return;
        }
        self.reading.insert(realm.clone(), false);
        let (context, slots) = (self.context.clone(), self.slots.clone());
        self.reads.spawn(async move {
            let _slot = slots.acquire().await;
            let result = read_secrets(&context, &realm).await;
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
            Ok(true) => self.context.policy_changed(&realm),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(namespace = realm, %error, "the providers of a realm cannot be read; trying again");
                self.failed.insert(realm.clone());
            }
        }
        if self.reading.remove(&realm) == Some(true) {
            self.read(realm);
        }
    }

    fn read_again(&mut self) {
        let policies = &self.context.policies;
        let has_secret = |realm: &String| {
            policies
                .policy(realm)
                .is_some_and(|policy| policy.delivery_secret.is_some() || policy.tokens.is_some())
        };
        let realms = policies.namespaces_with_policy().into_iter();
        let realms: Vec<String> = realms
            .filter(|realm| has_secret(realm) && self.context.watched.includes(realm))
            .collect();
        for realm in realms {
            self.read(realm);
        }
    }

    /// The issuer is part of what the users' Secrets hold.
    fn renew_issuer(&mut self, realm: &str) {
        let issuer = issuer(&self.context, realm);
        let old = self.issuers.insert(realm.to_owned(), issuer.clone());
        // Before anything was known of a realm, its users were looked at as those of a realm that
        // says nothing.
        if old.unwrap_or_else(|| self.context.defaults.issuer.clone()) != issuer {
            for user in self.context.usernames().names(realm) {
                self.context.queue.push(user_ref(realm, &user));
            }
        }
    }
}
