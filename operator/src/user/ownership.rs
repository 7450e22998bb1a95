//! Decides to which user a Secret belongs: to the present one, to an earlier one of the same name,
//! to another owner, or to no living owner, in which case it has to prove itself. No I/O.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::proof::{ProofError, ProofKeys};
use twofactor_core::seed::Seed;
use twofactor_core::user::Username;

use super::secret;
use super::seed_decision::{Doubt, SecretState};

/// Returns who owns the Secret, from the point of view of `user` with this username.
pub fn ownership(
    found: &Secret,
    user: &TwoFactorUser,
    username: &Username,
    proofs: &ProofKeys,
) -> SecretState {
    let rotated = secret::rotated_in(found).map(str::to_owned);
    if secret::is_owned(found, user) {
        // A Secret that is being deleted still holds the seed, and is restored afterwards.
        let seed = secret::read_seed(found, labels::SECRET_KEY_SEED);
        return SecretState::Ours { seed, rotated };
    }
    let owner = secret::controller(found);
    // Two living users of a namespace cannot have the same name.
    let is_predecessors =
        owner.map(|owner| secret::is_user(owner) && owner.name == user.name_any());
    if is_predecessors == Some(false) {
        return SecretState::NotOurs;
    }
    let is_labelled = secret::is_labelled(found);
    let is_marked = is_labelled || found.annotations().contains_key(labels::PROOF_ANNOTATION);
    if owner.is_none() && !is_marked {
        return SecretState::NotOurs;
    }
    if found.metadata.deletion_timestamp.is_some() {
        return SecretState::Predecessors;
    }
    match proven(found, user, username, proofs) {
        Ok(_) if owner.is_none() && !is_labelled => SecretState::NotProven(Doubt::NotLabelled),
        Ok(seed) => SecretState::Proven { seed, rotated },
        // The garbage collector deletes it.
        Err(_) if owner.is_some() => SecretState::Predecessors,
        Err(doubt) => SecretState::NotProven(doubt),
    }
}

/// Whether the Secret has a proof of the operator's that does not fit its content, because another
/// client has edited it.
pub fn is_edited(found: &Secret, user: &TwoFactorUser, proofs: &ProofKeys) -> bool {
    let Ok(seed) = secret::read_seed(found, labels::SECRET_KEY_SEED) else { return false };
    checked(found, user, &seed, proofs) == Err(Doubt::Wrong)
}

/// Returns the seed of a Secret that proves itself.
fn proven(
    found: &Secret,
    user: &TwoFactorUser,
    username: &Username,
    proofs: &ProofKeys,
) -> Result<Seed, Doubt> {
    if found.type_.as_deref().is_some_and(|kind| kind != "Opaque") {
        return Err(Doubt::NotOpaque);
    }
    let seed = secret::read_seed(found, labels::SECRET_KEY_SEED).map_err(|_| Doubt::Wrong)?;
    checked(found, user, &seed, proofs)?;
    // The seed of a user of another name is not that of this one.
    if username_in(found) != Some(username.as_str()) {
        return Err(Doubt::Wrong);
    }
    Ok(seed)
}

/// Checks the proof against what the Secret holds.
fn checked(
    found: &Secret,
    user: &TwoFactorUser,
    seed: &Seed,
    proofs: &ProofKeys,
) -> Result<(), Doubt> {
    let proof = found.annotations().get(labels::PROOF_ANNOTATION).ok_or(Doubt::NoProof)?;
    let username = username_in(found).ok_or(Doubt::Wrong)?;
    let statement = secret::statement(user, username, seed, secret::rotated_in(found));
    proofs.check(proof, &statement).map(drop).map_err(|error| match error {
        ProofError::NotAProof => Doubt::NoProof,
        ProofError::OtherKey => Doubt::OtherKey,
        ProofError::Wrong => Doubt::Wrong,
    })
}

fn username_in(found: &Secret) -> Option<&str> {
    let value = found.data.as_ref()?.get(labels::SECRET_KEY_USERNAME)?;
    std::str::from_utf8(&value.0).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
    use serde_json::json;
    use twofactor_api::validate::validate;
    use twofactor_core::key::MasterKey;

    use super::super::secret::SecretInputs;
    use super::*;

    fn user(name: &str, username: &str) -> TwoFactorUser {
        serde_json::from_value(json!({
            "apiVersion": labels::API_VERSION,
            "kind": "TwoFactorUser",
            "metadata": { "name": name, "namespace": "people", "uid": "uid-1" },
            "spec": { "username": username, "deliveryMethod": "app" },
        }))
        .unwrap()
    }

    fn proofs(byte: u8) -> ProofKeys {
        let key = MasterKey::from_base64(&data_encoding::BASE64.encode(&[byte; 32])).unwrap();
        ProofKeys::new(key.proof_key(), None)
    }

    fn seed() -> Seed {
        Seed::from_bytes(vec![7; 20]).unwrap()
    }

    /// The Secret of a user, after a change.
    fn secret_of(user: &TwoFactorUser, change: impl FnOnce(&mut Secret)) -> Secret {
        let mut made = secret::secret(&SecretInputs {
            user,
            definition: &validate(user).unwrap(),
            issuer: "FountainAI",
            seed: &seed(),
            rotated: Some("1"),
            proofs: &proofs(1),
        });
        change(&mut made);
        made
    }

    fn owner(metadata: &mut ObjectMeta) -> &mut OwnerReference {
        &mut metadata.owner_references.as_mut().unwrap()[0]
    }

    /// What the user alice makes of her Secret after a change.
    fn after(change: impl FnOnce(&mut Secret)) -> SecretState {
        let alice = user("alice", "alice@example.org");
        let found = secret_of(&alice, change);
        ownership(&found, &alice, &validate(&alice).unwrap().username, &proofs(1))
    }

    /// What she makes of it without an owner, after a change.
    fn orphaned(change: impl FnOnce(&mut Secret)) -> SecretState {
        after(|secret| {
            secret.metadata.owner_references = None;
            change(secret);
        })
    }

    fn proven() -> SecretState {
        SecretState::Proven { seed: seed(), rotated: Some("1".to_owned()) }
    }

    fn put(secret: &mut Secret, key: &str, value: &str) {
        secret.data.as_mut().unwrap().insert(key.to_owned(), ByteString(value.into()));
    }

    #[test]
    fn a_secret_is_classified_by_its_controller_first() {
        let ours = SecretState::Ours { seed: Ok(seed()), rotated: Some("1".to_owned()) };
        assert_eq!(after(|_| {}), ours);
        assert_eq!(after(|it| owner(&mut it.metadata).uid = "uid-0".to_owned()), proven());
        assert_eq!(orphaned(|_| {}), proven());
        assert_eq!(after(|it| owner(&mut it.metadata).controller = None), proven());
        // Another owner may live, so the best proof is worth nothing.
        let of_bob = after(|it| {
            let owner = owner(&mut it.metadata);
            (owner.uid, owner.name) = ("uid-9".to_owned(), "bob".to_owned());
        });
        assert_eq!(of_bob, SecretState::NotOurs);
        let of_a_pod = after(|it| {
            let owner = owner(&mut it.metadata);
            (owner.uid, owner.kind) = ("uid-9".to_owned(), "Pod".to_owned());
        });
        assert_eq!(of_a_pod, SecretState::NotOurs);
    }

    #[test]
    fn a_secret_without_an_owner_that_was_edited_does_not_prove_itself() {
        let doubts = |change: fn(&mut Secret)| orphaned(change);
        let wrong = SecretState::NotProven(Doubt::Wrong);
        let other_seed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
        assert_eq!(orphaned(|it| put(it, "secret", other_seed)), wrong);
        assert_eq!(doubts(|it| put(it, "secret", "no seed")), wrong);
        assert_eq!(doubts(|it| put(it, "username", "bob")), wrong);
        assert_eq!(doubts(|it| drop(it.data.as_mut().unwrap().remove("username"))), wrong);
        let annotation = |name: &'static str, value: String| {
            orphaned(move |it| drop(it.annotations_mut().insert(name.to_owned(), value)))
        };
        assert_eq!(annotation(labels::ROTATED_ANNOTATION, "2".to_owned()), wrong);
        let none = SecretState::NotProven(Doubt::NoProof);
        assert_eq!(annotation(labels::PROOF_ANNOTATION, "x".repeat(250_000)), none);
        assert_eq!(doubts(|it| it.metadata.annotations = None), none);
        assert_eq!(
            doubts(|it| it.type_ = Some("kubernetes.io/basic-auth".to_owned())),
            SecretState::NotProven(Doubt::NotOpaque)
        );
        let unlabelled = SecretState::NotProven(Doubt::NotLabelled);
        assert_eq!(doubts(|it| it.metadata.labels = None), unlabelled);
        // What nothing marks as the operator's may be any program's.
        let unmarked =
            |it: &mut Secret| (it.metadata.annotations, it.metadata.labels) = (None, None);
        assert_eq!(orphaned(unmarked), SecretState::NotOurs);
    }

    #[test]
    fn a_secret_that_was_written_otherwise_proves_itself_as_long_as_it_means_the_same() {
        let lower = seed().to_base32().expose_secret().to_ascii_lowercase();
        assert_eq!(orphaned(|it| put(it, "secret", &lower)), proven());
        assert_eq!(orphaned(|it| drop(it.data.as_mut().unwrap().remove("qr.png"))), proven());
        assert_eq!(orphaned(|it| it.immutable = Some(true)), proven());
    }

    #[test]
    fn the_secret_of_another_user_name_or_master_key_does_not_prove_itself() {
        let alice = user("alice", "alice@example.org");
        let found = secret_of(&alice, |it| it.metadata.owner_references = None);
        let state = |user: &TwoFactorUser, key| {
            ownership(&found, user, &validate(user).unwrap().username, &proofs(key))
        };
        let wrong = SecretState::NotProven(Doubt::Wrong);
        assert_eq!(state(&user("bob", "alice@example.org"), 1), wrong);
        assert_eq!(state(&user("alice", "bob"), 1), wrong, "the user has another username now");
        let mut elsewhere = alice.clone();
        elsewhere.metadata.namespace = Some("others".to_owned());
        assert_eq!(state(&elsewhere, 1), wrong);
        assert_eq!(state(&alice, 2), SecretState::NotProven(Doubt::OtherKey));
    }

    #[test]
    fn what_is_being_deleted_or_belongs_to_a_predecessor_without_a_proof_is_awaited() {
        let deleted = |it: &mut Secret| {
            it.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        };
        assert_eq!(orphaned(deleted), SecretState::Predecessors);
        let edited = after(|it| {
            owner(&mut it.metadata).uid = "uid-0".to_owned();
            put(it, "username", "bob");
        });
        assert_eq!(edited, SecretState::Predecessors);
    }

    #[test]
    fn an_edit_of_a_proven_secret_is_noticed() {
        let alice = user("alice", "alice@example.org");
        let edited =
            |change: fn(&mut Secret)| is_edited(&secret_of(&alice, change), &alice, &proofs(1));
        assert!(!edited(|_| {}));
        assert!(edited(|it| put(it, "secret", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")));
        assert!(!edited(|it| it.metadata.annotations = None), "an earlier version has written it");
    }
}
