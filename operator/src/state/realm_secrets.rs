//! Holds what was read of the Secrets that realms refer to: providers, and keys of tokens.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use twofactor_api::validate::tokens::TokenPolicy;
use twofactor_core::provider::Providers;
use twofactor_core::token::{SigningKey, TokenAlgorithm};
use twofactor_core::user::DeliveryMethod;

use crate::k8s::conditions::ConditionState;

/// What is known of the realms' providers, and of the keys of their tokens.
#[derive(Debug, Default)]
pub struct Records {
    deliveries: Mutex<HashMap<String, Delivery>>,
    token_keys: Mutex<HashMap<String, TokenKey>>,
}

impl Records {
    /// What became of the Secret that a realm refers to, if it was read.
    pub fn delivery(&self, realm: &str, secret: &str) -> Option<Delivery> {
        self.deliveries().get(realm).filter(|delivery| delivery.secret == secret).cloned()
    }

    /// What became of the key of a realm's tokens, if it was read as `policy` asks for it.
    pub fn token_key(&self, realm: &str, policy: &TokenPolicy) -> Option<TokenKey> {
        locked(&self.token_keys).get(realm).filter(|key| key.is_of(policy)).cloned()
    }

    fn deliveries(&self) -> MutexGuard<'_, HashMap<String, Delivery>> {
        locked(&self.deliveries)
    }

    /// Remembers what was read of a realm's Secret. Tells whether it is something else than before.
    pub fn remember_delivery(&self, realm: &str, read: Option<Delivery>) -> bool {
        remember(&self.deliveries, realm, read)
    }

    /// Remembers what was read of a realm's key. Tells whether it is something else than before.
    pub fn remember_token_key(&self, realm: &str, read: Option<TokenKey>) -> bool {
        remember(&self.token_keys, realm, read)
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

/// What a realm's Secret came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The Secret's name.
    pub secret: String,
    /// The providers that can be used.
    pub providers: Providers,
    /// The condition `DeliveryReady`: the sum of the others.
    pub condition: ConditionState,
    /// The conditions of the providers that the Secret says something about.
    pub channels: Vec<(DeliveryMethod, ConditionState)>,
}

/// Where the ecosystem's shared key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKey {
    /// The operator's namespace.
    pub namespace: String,
    /// The Secret. It is made when there is none.
    pub secret: String,
    /// The namespaces of users whose realms may sign with it. Whoever may read the credentials of a
    /// realm has the key that it signs with, so nobody has this one who was not given it.
    pub realms: BTreeSet<String>,
}

/// What a realm's key came to.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenKey {
    /// How it is used.
    pub algorithm: TokenAlgorithm,
    /// The Secret that the realm names.
    pub secret: Option<String>,
    /// The key; absent when there is none to sign with.
    pub key: Option<SigningKey>,
    /// The condition `TokensReady`.
    pub condition: ConditionState,
}

impl TokenKey {
    /// Whether it is what this policy asks for.
    pub fn is_of(&self, policy: &TokenPolicy) -> bool {
        self.algorithm == policy.algorithm && self.secret == policy.secret
    }
}
