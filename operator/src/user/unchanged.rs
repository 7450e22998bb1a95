//! Recognizes a user whose Secret has not changed since its record was published, so that a new
//! leader does not read the Secret.
//!
//! The record holds the version of the Secret that it was made from, and the watch reports the
//! current version. Both are compared, and not a copy in the status, because the record is what the
//! sidecars use: if Redis holds an older one, the versions differ.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::proof::ProofKeys;
use twofactor_core::record::{Provenance, UserRecord};

use super::apply::{Applied, SeedOutcome};
use super::fetch::had_secret;
use super::secret::{self, SecretInputs};
use super::subject::Subject;
use crate::state::own_writes::OwnWrites;

/// Version of what the operator writes into a user's Secret. A higher one has every Secret read and
/// repaired once.
const LAYOUT: u32 = 2;

/// Describes what a record was made from: the layout of the Secret and the key of its proof, its
/// version, and the issuer that it was written with. The rest is in the record itself.
pub fn source(secret_version: &str, issuer: &str, proofs: &ProofKeys) -> String {
    format!("{LAYOUT}-{} {secret_version} {issuer}", proofs.id())
}

/// What the source of a record says about the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    /// It has not changed.
    Current,
    /// It has not changed, and another version of the operator or another master key has written
    /// it.
    Outdated,
    /// It has changed.
    Changed,
}

fn compare(source: &str, expected: &str) -> Comparison {
    let rest = |text: &str| text.split_once(' ').map(|(_, rest)| rest.to_owned());
    if source == expected {
        Comparison::Current
    } else if rest(source) == rest(expected) {
        Comparison::Outdated
    } else {
        Comparison::Changed
    }
}

/// Describes what `record` was made from, if `secret` needs no repair. The picture is not drawn
/// again for that, because it shows the same URI.
pub fn source_of(
    secret: &Secret,
    user: &TwoFactorUser,
    record: &UserRecord,
    realm_issuer: &str,
    proofs: &ProofKeys,
) -> Option<String> {
    let rotated = record.provenance.as_ref()?.rotation.as_deref();
    let issuer = record.definition.issuer.as_deref().unwrap_or(realm_issuer);
    let wanted = SecretInputs {
        user,
        definition: &record.definition,
        issuer,
        seed: record.seed.as_ref()?,
        rotated,
        proofs,
    };
    let version = secret.resource_version().filter(|_| secret::is_current(secret, &wanted))?;
    Some(source(&version, issuer, proofs))
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
    let expected = source(&version, issuer, &subject.realm.proofs);
    let written = record.source.filter(|_| record.definition == subject.definition)?;
    let outdated = match compare(&written, &expected) {
        Comparison::Current => None,
        Comparison::Outdated => Some(written),
        Comparison::Changed => return None,
    };
    let rotated = rotated.map(str::to_owned);
    let outcome = SeedOutcome::Seed { seed: record.seed?, fresh: false, rotated };
    Some(Applied::unchanged(outcome, version, outdated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_another_version_or_master_key_has_written_is_not_read_at_once() {
        let expected = "2-0011223344556677 17 FountainAI AG";
        for (source, comparison) in [
            (expected, Comparison::Current),
            ("1 17 FountainAI AG", Comparison::Outdated),
            ("2-8899aabbccddeeff 17 FountainAI AG", Comparison::Outdated),
            ("2-0011223344556677 18 FountainAI AG", Comparison::Changed),
            ("2-0011223344556677 17 FountainAI", Comparison::Changed),
            ("1 18 FountainAI AG", Comparison::Changed),
            ("", Comparison::Changed),
        ] {
            assert_eq!(compare(source, expected), comparison, "{source}");
        }
    }
}
