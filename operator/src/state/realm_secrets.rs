//! Holds what was read of the Secrets that realms refer to: providers, and keys of tokens.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use twofactor_api::validate::tokens::TokenPolicy;
use twofactor_core::provider::Providers;
use twofactor_core::token::{SigningKey, TokenAlgorithm};
use twofactor_core::user::DeliveryMethod;

use crate::k8s::conditions::ConditionState;

/// The providers of realms and the keys of their tokens, as last read.
#[derive(Debug, Default)]
pub struct Records {
    deliveries: Mutex<HashMap<String, Delivery>>,
    token_keys: Mutex<HashMap<String, TokenKey>>,
}

impl Records {
    /// The result of reading the Secret that a realm refers to, if it was read.
    pub fn delivery(&self, realm: &str, secret: &str) -> Option<Delivery> {
        self.deliveries().get(realm).filter(|delivery| delivery.secret == secret).cloned()
    }

    /// The result of reading the key of tokens, if it was read for `policy`.
    pub fn token_key(&self, realm: &str, policy: &TokenPolicy) -> Option<TokenKey> {
        locked(&self.token_keys).get(realm).filter(|key| key.is_of(policy)).cloned()
    }

    fn deliveries(&self) -> MutexGuard<'_, HashMap<String, Delivery>> {
        locked(&self.deliveries)
    }

    /// Remembers the providers of a realm. Returns whether they have changed.
    pub fn remember_delivery(&self, realm: &str, read: Option<Delivery>) -> bool {
        remember(&self.deliveries, realm, read)
    }

    /// Remembers the key of a realm. Returns whether it has changed.
    pub fn remember_token_key(&self, realm: &str, read: Option<TokenKey>) -> bool {
        remember(&self.token_keys, realm, read)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers a value of a realm. Returns whether it has changed.
fn remember<T: PartialEq>(known: &Mutex<HashMap<String, T>>, realm: &str, read: Option<T>) -> bool {
    let mut known = locked(known);
    let same = known.get(realm) == read.as_ref();
    match read {
        Some(read) => known.insert(realm.to_owned(), read),
        None => known.remove(realm),
    };
    !same
}

/// The providers in the Secret of a realm.
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

/// The location of the ecosystem's shared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKey {
    /// The operator's namespace.
    pub namespace: String,
    /// The Secret. It is made when there is none.
    pub secret: String,
    /// The namespaces whose realms may sign with the key. A caller that can read the credentials of
    /// a realm gets its signing key, so only namespaces listed here receive this one.
    pub realms: BTreeSet<String>,
}

/// The key of a realm's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenKey {
    /// The algorithm that uses it.
    pub algorithm: TokenAlgorithm,
    /// The Secret that the realm names.
    pub secret: Option<String>,
    /// The key; absent when there is none to sign with.
    pub key: Option<SigningKey>,
    /// The condition `TokensReady`.
    pub condition: ConditionState,
}

impl TokenKey {
    /// Whether the key is the one that `policy` asks for.
    pub fn is_of(&self, policy: &TokenPolicy) -> bool {
        self.algorithm == policy.algorithm && self.secret == policy.secret
    }
}
