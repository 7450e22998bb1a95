//! What there is. Enters: a user. Leaves: their Secret and the seed that they import, as they are
//! at this moment. Both are read, not cached: no Secret stays in memory longer than it is needed.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::seed::Seed;

use crate::k8s::request::{self, ApiError};
use crate::state::Context;
use crate::state::queue::reference;
use crate::user::secret;
use crate::user::seed_decision::{SecretState, UnusableSeed};

/// Why nothing could be read.
#[derive(Debug, Error)]
#[error("cannot read the Secret {secret}: {source}")]
pub struct FetchError {
    /// Which one.
    pub secret: String,
    /// Why.
    pub source: ApiError,
}

/// What was read.
#[derive(Debug)]
pub struct Fetched {
    /// The user's Secret and whose it is; absent when nobody looked, because there cannot be one
    /// yet.
    pub own: Option<Own>,
    /// The seed that the user imports, if they do.
    pub import: Option<Result<Seed, UnusableSeed>>,
    /// Whether the user has had a Secret before.
    pub had_secret: bool,
}

/// A user's Secret, as it was found.
#[derive(Debug)]
pub struct Own {
    /// Whose it is, and what is in it.
    pub found: SecretState,
    /// The object, if there is one.
    pub secret: Option<Secret>,
}

/// Whether the user has had a Secret before. The status goes with the object, so this is about this
/// very user, and not about one of the same name.
pub fn had_secret(user: &TwoFactorUser) -> bool {
    user.status.as_ref().is_some_and(|status| status.secret_name.is_some())
}

/// Reads what there is of `user`. A new user has no Secret, so none is looked for: creating it
/// tells.
pub async fn fetch(context: &Context, user: &TwoFactorUser) -> Result<Fetched, FetchError> {
    // The status may be late, or have failed to be written, although this process knows better.
    let had_secret = had_secret(user) || context.own_writes.has_seed(&reference(user));
    let client = &context.client;
    let own = if had_secret { Some(own(client, user).await?) } else { None };
    Ok(Fetched { own, import: import(client, user).await?, had_secret })
}

/// Reads the user's own Secret.
pub async fn own(client: &Client, user: &TwoFactorUser) -> Result<Own, FetchError> {
    let secret = get(client, user, &labels::secret_name(&user.name_any())).await?;
    let found =
        secret.as_ref().map_or(SecretState::Absent, |secret| secret::ownership(secret, user));
    Ok(Own { found, secret })
}

/// Reads the seed that the user imports.
pub async fn import(
    client: &Client,
    user: &TwoFactorUser,
) -> Result<Option<Result<Seed, UnusableSeed>>, FetchError> {
    let Some(reference) = &user.spec.secret_ref else { return Ok(None) };
    Ok(Some(match get(client, user, &reference.name).await? {
        Some(secret) => secret::read_seed(&secret, &reference.key),
        None => Err(UnusableSeed::NoSecret {
            secret: reference.name.clone(),
            key: reference.key.clone(),
        }),
    }))
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
