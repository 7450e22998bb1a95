//! What the sealed record of each realm should say. Enters: the operator's own settings, the
//! realm's `TwoFactorRealm`, and the Secret with its providers. Leaves: the record, for whoever
//! publishes it; and everybody woken who has to act on a change.

pub mod credentials;
pub mod providers;
pub mod status;
pub mod token_key;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twofactor_api::validate::realm::RealmPolicy;
use twofactor_api::validate::tokens::TokenPolicy;
use twofactor_core::realm::RealmRecord;
use twofactor_core::token::{SigningKey, TokenSettings};

use self::credentials::Request;
use self::providers::Delivery;
use self::token_key::TokenKey;
use crate::k8s::backoff::jittered;
use crate::k8s::request::ApiError;
use crate::state::Context;
use crate::state::queue::user_ref;

/// How often to read Secrets with providers: they are not watched, since nothing marks them.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// Secrets that are read at the same time.
const CONCURRENT: usize = 8;
/// How soon to read one again that the API server did not give.
const RETRY: Duration = Duration::from_secs(2);

/// What is known of the realms' providers, and of the keys of their tokens.
#[derive(Debug, Default)]
pub struct Records {
    deliveries: Mutex<HashMap<String, Delivery>>,
    token_keys: Mutex<HashMap<String, TokenKey>>,
}

impl Records {
    /// What became of the Secret that a realm refers to, if it was read.
    #[must_use]
    pub fn delivery(&self, realm: &str, secret: &str) -> Option<Delivery> {
        self.deliveries().get(realm).filter(|delivery| delivery.secret == secret).cloned()
    }

    /// What became of the key of a realm's tokens, if it was read as `policy` asks for it.
    #[must_use]
    pub fn token_key(&self, realm: &str, policy: &TokenPolicy) -> Option<TokenKey> {
        locked(&self.token_keys).get(realm).filter(|key| key.is_of(policy)).cloned()
    }

    fn deliveries(&self) -> MutexGuard<'_, HashMap<String, Delivery>> {
        locked(&self.deliveries)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers what was read of a realm. Tells whether it is something else than before.
fn remember<T: PartialEq>(known: &Mutex<HashMap<String, T>>, realm: &str, read: Option<T>) -> bool {
    let mut known = locked(known);
    let same = known.get(realm) == read.as_ref();
    match read {
        Some(read) => known.insert(realm.to_owned(), read),
        None => known.remove(realm),
    };
    !same
}

/// The record of a realm; nothing while its providers are not known yet.
#[must_use]
pub fn known(context: &Context, realm: &str) -> Option<RealmRecord> {
    let policy = context.policies.policy(realm).unwrap_or_default();
    let delivery = match &policy.delivery_secret {
        Some(secret) => Some(context.records.delivery(realm, secret)?),
        None => None,
    };
    let key = match &policy.tokens {
        Some(tokens) => context.records.token_key(realm, tokens)?.key,
        None => None,
    };
    let callers = context.policies.namespaces_of(realm);
    let record = build(&context.defaults, &policy, delivery.as_ref(), callers);
    Some(RealmRecord { tokens: tokens(&context.defaults, &policy, key), ..record })
}

/// A realm that says something about tokens signs them with its own key, or gives none while there
/// is no key.
fn tokens(
    defaults: &RealmRecord,
    policy: &RealmPolicy,
    key: Option<SigningKey>,
) -> Option<TokenSettings> {
    let Some(TokenPolicy { audiences, lifetime, .. }) = &policy.tokens else {
        return defaults.tokens.clone();
    };
    Some(TokenSettings { key: key?, audiences: audiences.clone(), lifetime: *lifetime })
}

/// The record of a realm, for which its providers are read when they are not known yet.
///
/// # Errors
/// When the API server does not give the Secret.
pub async fn read(context: &Context, realm: &str) -> Result<RealmRecord, ApiError> {
    loop {
        if let Some(record) = known(context, realm) {
            return Ok(record);
        }
        read_secrets(context, realm).await?;
    }
}

/// The issuer of a realm's users who have none of their own.
#[must_use]
pub fn issuer(context: &Context, realm: &str) -> String {
    let policy = context.policies.policy(realm);
    policy.and_then(|policy| policy.issuer).unwrap_or_else(|| context.defaults.issuer.clone())
}

/// A realm that refers to a Secret has the providers of that Secret, and no others.
fn build(
    defaults: &RealmRecord,
    policy: &RealmPolicy,
    delivery: Option<&Delivery>,
    callers: BTreeSet<String>,
) -> RealmRecord {
    RealmRecord {
        issuer: policy.issuer.clone().unwrap_or_else(|| defaults.issuer.clone()),
        otp_lifetime: policy.otp_lifetime.unwrap_or(defaults.otp_lifetime),
        providers: match delivery {
            Some(delivery) => delivery.providers.clone(),
            None => defaults.providers.clone(),
        },
        // As a whole: a text of the realm's beside HTML of the operator's would be two messages in
        // one.
        message: policy.message.clone().unwrap_or_else(|| defaults.message.clone()),
        callers: Some(callers),
        limits: policy.limits.over(defaults.limits),
        audit: policy.audit.over(defaults.audit),
        tokens: defaults.tokens.clone(),
        uniform_answers: policy.uniform_answers.unwrap_or(defaults.uniform_answers),
        redis_wait: defaults.redis_wait,
    }
}

/// Reads the Secrets that a realm refers to. Tells whether something else came of them than before.
async fn read_secrets(context: &Context, realm: &str) -> Result<bool, ApiError> {
    let delivery = read_delivery(context, realm).await?;
    Ok(read_token_key(context, realm).await? || delivery)
}

async fn read_token_key(context: &Context, realm: &str) -> Result<bool, ApiError> {
    let policy = context.policies.policy(realm).and_then(|policy| policy.tokens);
    let key = match &policy {
        Some(policy) => Some(token_key::read(context, realm, policy).await?),
        None => None,
    };
    let changed = remember(&context.records.token_keys, realm, key.clone());
    if let Some(bad) = key.filter(|key| changed && !key.told.good) {
        let reason = bad.told.reason;
        tracing::warn!(
            namespace = realm,
            reason,
            "this realm gives no tokens: {}",
            bad.told.message
        );
    }
    Ok(changed)
}

/// Reads the Secret with providers that a realm refers to. Tells whether it is something else than
/// before.
async fn read_delivery(context: &Context, realm: &str) -> Result<bool, ApiError> {
    let secret = context.policies.policy(realm).and_then(|policy| policy.delivery_secret);
    let delivery = match secret {
        Some(secret) => Some(providers::read(&context.client, realm, &secret).await?),
        None => None,
    };
    if let Some(bad) = delivery.as_ref().filter(|delivery| !delivery.told.good)
        && context.records.delivery(realm, &bad.secret).as_ref() != Some(bad)
    {
        tracing::warn!(
            namespace = realm,
            reason = bad.told.reason,
            "codes of this realm cannot be delivered: {}",
            bad.told.message
        );
    }
    Ok(remember(&context.records.deliveries, realm, delivery))
}

/// Follows the realms until it is told to stop. Begins when the lists are complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut following = Following {
        context,
        failed: HashSet::new(),
        issuers: HashMap::new(),
        reads: JoinSet::new(),
        reading: HashMap::new(),
        slots: Arc::new(Semaphore::new(CONCURRENT)),
    };
    // What has changed before this process led: everything may have.
    let _ = following.context.policies.take_changes();
    let everything: HashSet<String> = following
        .context
        .index()
        .namespaces()
        .into_iter()
        .chain(following.context.policies.namespaces_with_policy())
        .collect();
    following.follow(everything).await;
    let mut next_look = Instant::now() + READ_AGAIN;
    loop {
        let patience = if following.failed.is_empty() {
            next_look
        } else {
            next_look.min(Instant::now() + RETRY)
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = following.context.policies.changed() => {}
            Some(read) = following.reads.join_next(), if !following.reads.is_empty() => following.was_read(read),
            () = tokio::time::sleep_until(patience) => {
                let failed = std::mem::take(&mut following.failed);
                following.follow(failed).await;
            }
        }
        let changed = following.context.policies.take_changes();
        following.follow(changed).await;
        if Instant::now() >= next_look {
            following.read_again();
            next_look = Instant::now() + jittered(READ_AGAIN, &mut following.context.random());
        }
    }
}

struct Following {
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

impl Following {
    /// Something about these realms has changed.
    async fn follow(&mut self, realms: HashSet<String>) {
        let context = self.context.clone();
        // At first what is quick, and matters most: who is let in.
        for realm in realms.iter().filter(|realm| context.scopes.cover(realm)) {
            if context.policies.has_policy(realm) && context.policies.namespace(realm).is_some() {
                // Services that are let in wait for it, also when there is no user yet.
                let _ = context.realms.of(realm).await;
            }
            let _ = context.credentials.send(Request::Realm(realm.clone()));
            context.outdate(realm);
            self.renew_issuer(realm);
        }
        for realm in realms.into_iter().filter(|realm| context.scopes.cover(realm)) {
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

    fn was_read(&mut self, read: Result<Read, JoinError>) {
        let (realm, result) = match read {
            Ok(read) => read,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return,
        };
        match result {
            Ok(true) => self.context.outdate(&realm),
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
        let realms: Vec<String> =
            realms.filter(|realm| has_secret(realm) && self.context.scopes.cover(realm)).collect();
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
            for user in self.context.index().names(realm) {
                self.context.queue.push(user_ref(realm, &user));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use twofactor_core::message::{MessageTemplates, Part};
    use twofactor_core::provider::{Providers, SmtpSecurity, SmtpSettings};
    use twofactor_core::realm::OtpLifetime;

    use super::*;
    use crate::user::status::Told;

    fn mail(server: &str) -> Providers {
        let smtp = SmtpSettings {
            server: server.to_owned(),
            port: 25,
            security: SmtpSecurity::Starttls,
            username: None,
            password: None,
            from: "a@b".to_owned(),
            ca_certificates: None,
        };
        Providers { smtp: Some(smtp), ..Providers::default() }
    }

    fn message(part: Part) -> MessageTemplates {
        let mut message = MessageTemplates::default();
        message.set(part, Some(part.parse("{{code}}").unwrap()));
        message
    }

    #[test]
    fn what_a_realm_says_comes_before_the_operators_settings() {
        let defaults = RealmRecord {
            providers: mail("operators"),
            message: message(Part::Html),
            ..RealmRecord::default()
        };
        let callers: BTreeSet<String> = ["people".to_owned()].into();
        let plain = build(&defaults, &RealmPolicy::default(), None, callers.clone());
        assert_eq!(plain, RealmRecord { callers: Some(callers.clone()), ..defaults.clone() });
        let policy = RealmPolicy {
            issuer: Some("A".to_owned()),
            otp_lifetime: OtpLifetime::try_from(2).ok(),
            message: Some(message(Part::Text)),
            ..RealmPolicy::default()
        };
        let delivery = Delivery {
            secret: "providers".to_owned(),
            providers: mail("realms"),
            told: Told::yes("Available", ""),
            channels: Vec::new(),
        };
        let record = build(&defaults, &policy, Some(&delivery), callers.clone());
        assert_eq!((record.issuer.as_str(), u8::from(record.otp_lifetime)), ("A", 2));
        assert_eq!((record.providers, record.message), (mail("realms"), message(Part::Text)));
        let none = Providers::default();
        let broken =
            Delivery { providers: none.clone(), told: Told::no("SecretNotFound", ""), ..delivery };
        assert_eq!(
            build(&defaults, &policy, Some(&broken), callers).providers,
            none,
            "never the operator's"
        );
    }
}
