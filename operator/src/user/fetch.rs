//! Reads the user's Secret and, for imported seeds, the referenced Secret.
//!
//! Both are read for each reconciliation and not cached, so that no seed stays in memory longer
//! than necessary.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use twofactor_api::user::SecretReference;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::seed::Seed;
use twofactor_core::user::UserDefinition;

use super::ownership::ownership;
use super::secret;
use super::seed_decision::{ImportRefused, SecretState, UnusableSeed};
use super::subject::Subject;
use crate::k8s::request::{self, ApiError};
use crate::state::Runtime;
use crate::state::imports::Imports;

/// A Secret could not be read.
#[derive(Debug, Error)]
#[error("cannot read the Secret {secret}: {source}")]
pub struct FetchError {
    pub secret: String,
    pub source: ApiError,
}

/// What was read.
#[derive(Debug)]
pub struct Fetched {
    /// The user's Secret; absent if it was not looked up, because creating it shows
    /// whether it exists.
    pub own: Option<Own>,
    /// The seed that the user imports, if the user imports one.
    pub import: Option<Result<Seed, ImportRefused>>,
    /// Whether the user has had a Secret before.
    pub had_secret: bool,
}

/// The user's Secret.
#[derive(Debug)]
pub struct Own {
    pub found: SecretState,
    /// The object, if it exists.
    pub secret: Option<Secret>,
}

/// Whether this user object has had a Secret before. If the user was deleted and created again,
/// the new object starts with an empty status.
pub fn had_secret(user: &TwoFactorUser) -> bool {
    user.status.as_ref().is_some_and(|status| status.secret_name.is_some())
}

/// Reads the Secrets of the user. The Secret of a new user is not looked up, because an attempt to
/// create it shows whether it exists, unless none is created while new seeds are held.
/// `known_to_have_seed` is what this process remembers, because the status write may have failed,
/// or the watch may not have delivered it yet.
pub async fn fetch(
    runtime: &Runtime,
    imports: &Imports,
    subject: &Subject<'_>,
    known_to_have_seed: bool,
) -> Result<Fetched, FetchError> {
    let client = &runtime.client;
    let had_secret = had_secret(subject.user) || known_to_have_seed;
    let own =
        if had_secret || runtime.hold_new_seeds { Some(own(client, subject).await?) } else { None };
    Ok(Fetched {
        own,
        import: import(client, imports, subject.user, &subject.definition).await?,
        had_secret,
    })
}

/// Reads the user's own Secret.
pub async fn own(client: &Client, subject: &Subject<'_>) -> Result<Own, FetchError> {
    let secret = get(client, subject.user, &subject.secret_name).await?;
    let state = |secret| {
        ownership(secret, subject.user, &subject.definition.username, &subject.realm.proofs)
    };
    let found = secret.as_ref().map_or(SecretState::Absent, state);
    Ok(Own { found, secret })
}

/// Reads the seed that the user imports.
pub async fn import(
    client: &Client,
    imports: &Imports,
    user: &TwoFactorUser,
    definition: &UserDefinition,
) -> Result<Option<Result<Seed, ImportRefused>>, FetchError> {
    let Some(SecretReference { name, key }) = &user.spec.secret_ref else { return Ok(None) };
    // A Secret that does not offer itself is not even read.
    let offered = imports.is_offered(&user.namespace().unwrap_or_default(), name)
        && !name.ends_with(labels::SECRET_SUFFIX);
    let secret = if offered { get(client, user, name).await? } else { None };
    let seed = secret
        .filter(secret::is_importable)
        .and_then(|secret| secret::import_seed(&secret, key, definition).inspect_err(log).ok());
    Ok(Some(seed.ok_or_else(|| ImportRefused { secret: name.clone(), key: key.clone() })))
}

/// Tells the administrator of the operator what the condition does not say.
fn log(unusable: &UnusableSeed) {
    tracing::info!(reason = %unusable, "seed not imported");
}

async fn get(
    client: &Client,
    user: &TwoFactorUser,
    name: &str,
) -> Result<Option<Secret>, FetchError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), &user.namespace().unwrap_or_default());
    request::optional(request::within(secrets.get(name)).await)
        .map_err(|source| FetchError { secret: name.to_owned(), source })
}
