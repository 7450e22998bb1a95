//! Recognizes a user whose Secret has not changed since its record was published, so that a new
//! leader does not read the Secret.
//!
//! The record holds the version of the Secret that it was made from, and the watch reports the
//! current version. Both are compared, and not a copy in the status, because the record is what the
//! sidecars use: if Redis holds an older one, the versions differ.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::record::{Provenance, UserRecord};

use super::apply::{Applied, SeedOutcome};
use super::fetch::had_secret;
use super::secret::{self, SecretInputs};
use super::subject::Subject;
use crate::state::own_writes::OwnWrites;

/// Version of what the operator writes into a user's Secret. A higher one has every Secret read and
/// repaired once.
const LAYOUT: u32 = 1;

/// Describes what a record was made from: the version of the Secret, and the issuer that the Secret
/// was written with. The rest is in the record itself.
pub fn source(secret_version: &str, issuer: &str) -> String {
    format!("{LAYOUT} {secret_version} {issuer}")
}

/// Describes what `record` was made from, if `secret` needs no repair. The picture is not drawn
/// again for that, because it shows the same URI.
pub fn source_of(
    secret: &Secret,
    user: &TwoFactorUser,
    record: &UserRecord,
    realm_issuer: &str,
) -> Option<String> {
    let rotated = record.provenance.as_ref()?.rotation.as_deref();
    let issuer = record.definition.issuer.as_deref().unwrap_or(realm_issuer);
    let wanted = SecretInputs {
        user,
        definition: &record.definition,
        issuer,
        seed: record.seed.as_ref()?,
        rotated,
    };
    let version = secret.resource_version().filter(|_| secret::is_current(secret, &wanted))?;
    Some(source(&version, issuer))
}

/// Returns what applying the user's Secret would return, without reading it, if this process has
/// not read it yet and nothing has changed since its record was published.
pub async fn applied(
    own_writes: &OwnWrites,
    subject: &Subject<'_>,
    issuer: &str,
) -> Option<Applied> {
    let user = subject.user;
    let rotated = user.status.as_ref().and_then(|status| status.rotated.as_deref());
    let rotate = subject.annotation(labels::ROTATE_ANNOTATION);
    let is_answered = rotate.is_none() || rotate == rotated;
    if user.spec.secret_ref.is_some() || !had_secret(user) || !is_answered {
        return None;
    }
    let version = own_writes.unread_version(&subject.reference)?;
    let record = subject.realm.publisher.current(subject.pseudonym()).await.ok()??;
    // The seed answers no request for a new one, or the last one, and belongs to this object.
    let is_provenance = |rotated| record.provenance == Some(Provenance::new(&subject.uid, rotated));
    let rotated = [None, rotated].into_iter().find(|rotated| is_provenance(*rotated))?;
    let is_current = record.definition == subject.definition
        && record.source.as_ref() == Some(&source(&version, issuer));
    let seed = record.seed.filter(|_| is_current)?;
    let rotated = rotated.map(str::to_owned);
    Some(Applied::unchanged(SeedOutcome::Seed { seed, fresh: false, rotated }, version))
}
