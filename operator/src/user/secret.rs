//! Builds the user's Secret, and the patch for one that differs or has another owner. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::import::{self, ImportError};
use twofactor_core::otpauth;
use twofactor_core::proof::{ProofKeys, ProvenBy, Statement};
use twofactor_core::qr::QrPicture;
use twofactor_core::secret::SecretText;
use twofactor_core::seed::Seed;
use twofactor_core::user::UserDefinition;

use crate::user::seed_decision::UnusableSeed;

/// Everything that the user's Secret depends on.
#[derive(Clone, Debug)]
pub struct SecretInputs<'a> {
    /// The object.
    pub user: &'a TwoFactorUser,
    /// The valid definition in the object.
    pub definition: &'a UserDefinition,
    /// The realm's issuer.
    pub issuer: &'a str,
    /// The seed.
    pub seed: &'a Seed,
    /// The request for a new seed that this one answers.
    pub rotated: Option<&'a str>,
    /// The keys that prove Secrets.
    pub proofs: &'a ProofKeys,
}

impl<'a> SecretInputs<'a> {
    /// What the Secret proves.
    fn statement(&self) -> Statement<'a> {
        statement(self.user, self.definition.username.as_str(), self.seed, self.rotated)
    }
}

/// Returns what a Secret of `user` with this content proves.
pub fn statement<'a>(
    user: &'a TwoFactorUser,
    username: &'a str,
    seed: &'a Seed,
    rotation: Option<&'a str>,
) -> Statement<'a> {
    let text = |field: &'a Option<String>| field.as_deref().unwrap_or_default();
    let (namespace, name) = (text(&user.metadata.namespace), text(&user.metadata.name));
    Statement { namespace, user: name, username, seed, rotation }
}

/// Reads the seed from a key of the user's own Secret.
pub fn read_seed(secret: &Secret, key: &str) -> Result<Seed, UnusableSeed> {
    read(secret, key, |text| Ok(Seed::from_base32(text)?))
}

/// Whether seeds may be imported from a Secret: it says so itself, and the operator did not make
/// it.
pub fn is_importable(secret: &Secret) -> bool {
    let label = |name: &str| secret.labels().get(name).map(String::as_str);
    label(labels::IMPORT_LABEL) == Some(labels::IMPORT_ALLOWED)
        && label(labels::MANAGED_BY_LABEL) != Some(labels::MANAGED_BY)
}

/// Reads the seed that a user imports from a key of another Secret.
pub fn import_seed(
    secret: &Secret,
    key: &str,
    user: &UserDefinition,
) -> Result<Seed, UnusableSeed> {
    read(secret, key, |text| import::seed(text, &user.username, &user.totp))
}

fn read(
    secret: &Secret,
    key: &str,
    parse: impl FnOnce(&str) -> Result<Seed, ImportError>,
) -> Result<Seed, UnusableSeed> {
    let name = secret.name_any();
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    let Some(ByteString(bytes)) = value else {
        return Err(UnusableSeed::NoKey { secret: name, key: key.to_owned() });
    };
    // What is not UTF-8 is not base32 either.
    parse(std::str::from_utf8(bytes).unwrap_or("\u{fffd}"))
        .map_err(|error| UnusableSeed::NotASeed { secret: name, key: key.to_owned(), error })
}

/// The owner that controls the Secret.
pub fn controller(secret: &Secret) -> Option<&OwnerReference> {
    let mut owners = secret.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}

/// Whether this user, and not an earlier one of the same name, owns the Secret.
pub fn is_owned(secret: &Secret, user: &TwoFactorUser) -> bool {
    controller(secret).is_some_and(|owner| Some(&owner.uid) == user.metadata.uid.as_ref())
}

/// Whether the owner is a user.
pub fn is_user(owner: &OwnerReference) -> bool {
    owner.kind == TwoFactorUser::kind(&())
        && owner.api_version.split('/').next() == Some(labels::GROUP)
}

/// Builds the Secret.
pub fn secret(wanted: &SecretInputs<'_>) -> Secret {
    let user = wanted.user;
    let data = values(wanted)
        .into_iter()
        .map(|(key, value)| (key.to_owned(), ByteString(value)))
        .collect();
    Secret {
        metadata: ObjectMeta {
            name: Some(labels::secret_name(&user.name_any())),
            namespace: user.namespace(),
            labels: Some(BTreeMap::from([(
                labels::MANAGED_BY_LABEL.to_owned(),
                labels::MANAGED_BY.to_owned(),
            )])),
            annotations: Some(annotations(wanted)),
            owner_references: Some(vec![owner_reference(user)]),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn annotations(wanted: &SecretInputs<'_>) -> BTreeMap<String, String> {
    let proof = (labels::PROOF_ANNOTATION.to_owned(), wanted.proofs.prove(&wanted.statement()));
    let rotated =
        wanted.rotated.map(|value| (labels::ROTATED_ANNOTATION.to_owned(), value.to_owned()));
    [proof].into_iter().chain(rotated).collect()
}

/// The owners of a Secret that `user` takes over. Users that owned it before are deleted, and with
/// their references the garbage collector would look for them.
fn owners(found: &Secret, user: &TwoFactorUser) -> Vec<OwnerReference> {
    let others = found.owner_references().iter().filter(|owner| !is_user(owner)).cloned();
    [owner_reference(user)].into_iter().chain(others).collect()
}

/// `blockOwnerDeletion` is not set, because it would need an additional permission.
fn owner_reference(user: &TwoFactorUser) -> OwnerReference {
    OwnerReference {
        api_version: labels::API_VERSION.to_owned(),
        block_owner_deletion: None,
        controller: Some(true),
        kind: TwoFactorUser::kind(&()).into_owned(),
        name: user.name_any(),
        uid: user.uid().unwrap_or_default(),
    }
}

/// Returns the keys of the Secret. A URI that is too long for a QR code has none.
fn values(wanted: &SecretInputs<'_>) -> Vec<(&'static str, Vec<u8>)> {
    let uri = uri(wanted);
    let mut values = texts(wanted, &uri);
    if let Ok(picture) = QrPicture::encode(&uri) {
        values.push((labels::SECRET_KEY_QR, picture.png()));
    }
    values
}

fn uri(wanted: &SecretInputs<'_>) -> SecretText {
    let SecretInputs { definition, seed, .. } = wanted;
    let issuer = definition.issuer.as_deref().unwrap_or(wanted.issuer);
    otpauth::uri(&definition.username, issuer, seed, &definition.totp)
}

/// Returns the keys of the Secret that are texts.
fn texts(wanted: &SecretInputs<'_>, uri: &SecretText) -> Vec<(&'static str, Vec<u8>)> {
    let SecretInputs { definition, seed, .. } = wanted;
    vec![
        (labels::SECRET_KEY_SEED, seed.to_base32().expose_secret().as_bytes().to_vec()),
        (labels::SECRET_KEY_OTPAUTH_URI, uri.expose_secret().as_bytes().to_vec()),
        (labels::SECRET_KEY_USERNAME, definition.username.as_str().as_bytes().to_vec()),
    ]
}

/// Whether `found` needs no repair, without a comparison of its picture.
pub fn is_current(found: &Secret, wanted: &SecretInputs<'_>) -> bool {
    let data = found.data.as_ref();
    let value = |key: &str| data.and_then(|data| data.get(key)).map(|value| value.0.as_slice());
    texts(wanted, &uri(wanted)).iter().all(|(key, text)| value(key) == Some(text))
        && value(labels::SECRET_KEY_QR).is_some_and(|picture| !picture.is_empty())
        && is_labelled(found)
        && rotated_in(found) == wanted.rotated
        && is_proven(found, wanted)
}

/// Whether the Secret has the proof that the operator would write now.
fn is_proven(found: &Secret, wanted: &SecretInputs<'_>) -> bool {
    let proof = found.annotations().get(labels::PROOF_ANNOTATION);
    let check = |proof: &String| wanted.proofs.check(proof, &wanted.statement());
    proof.map(check) == Some(Ok(ProvenBy::Current))
}

/// Whether the Secret has the label of what the operator manages.
pub fn is_labelled(found: &Secret) -> bool {
    found.labels().get(labels::MANAGED_BY_LABEL).map(String::as_str) == Some(labels::MANAGED_BY)
}

/// The request for a new seed that the one in the Secret answers.
pub fn rotated_in(found: &Secret) -> Option<&str> {
    found.annotations().get(labels::ROTATED_ANNOTATION).map(String::as_str)
}

/// Returns the merge patch that repairs `found`, or nothing if it is right. It applies only to the
/// version that was read, so that it never reverts a change of another client.
pub fn patch(found: &Secret, wanted: &SecretInputs<'_>) -> Option<Value> {
    let should = secret(wanted);
    let mut data = serde_json::Map::new();
    let present = found.data.as_ref();
    for (key, value) in should.data.iter().flatten() {
        let known = present.and_then(|data| data.get(key));
        // A seed can be written in several ways. The one in the Secret is kept.
        let same = if key == labels::SECRET_KEY_SEED {
            read_seed(found, key).is_ok_and(|seed| seed == *wanted.seed)
        } else {
            known == Some(value)
        };
        if !same {
            data.insert(key.clone(), json!(value));
        }
    }
    let mut metadata = serde_json::Map::new();
    if !is_labelled(found) {
        metadata.insert("labels".to_owned(), json!(should.metadata.labels));
    }
    let mut annotations = serde_json::Map::new();
    if rotated_in(found) != wanted.rotated {
        annotations.insert(labels::ROTATED_ANNOTATION.to_owned(), json!(wanted.rotated));
    }
    if !is_proven(found, wanted) {
        let proof = should.annotations().get(labels::PROOF_ANNOTATION);
        annotations.insert(labels::PROOF_ANNOTATION.to_owned(), json!(proof));
    }
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
    }
    if !is_owned(found, wanted.user) {
        metadata.insert("ownerReferences".to_owned(), json!(owners(found, wanted.user)));
    }
    if data.is_empty() && metadata.is_empty() {
        return None;
    }
    metadata.insert("resourceVersion".to_owned(), json!(found.resource_version()));
    metadata.insert("uid".to_owned(), json!(found.uid()));
    let mut patch = serde_json::Map::from_iter([("metadata".to_owned(), Value::Object(metadata))]);
    if !data.is_empty() {
        patch.insert("data".to_owned(), Value::Object(data));
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use twofactor_api::validate::validate;
    use twofactor_core::key::MasterKey;

    use super::*;

    fn alice() -> TwoFactorUser {
        serde_json::from_value(json!({
            "apiVersion": labels::API_VERSION,
            "kind": "TwoFactorUser",
            "metadata": { "name": "alice", "namespace": "people", "uid": "uid-1" },
            "spec": { "username": "alice@example.org", "deliveryMethod": "app" },
        }))
        .unwrap()
    }

    fn proofs(byte: u8) -> ProofKeys {
        let key = MasterKey::from_base64(&data_encoding::BASE64.encode(&[byte; 32])).unwrap();
        ProofKeys::new(key.proof_key(), None)
    }

    fn with<T>(rotated: Option<&str>, work: impl FnOnce(&SecretInputs<'_>) -> T) -> T {
        let user = alice();
        let definition = validate(&user).unwrap();
        let seed = Seed::from_bytes(vec![7; 20]).unwrap();
        work(&SecretInputs {
            user: &user,
            definition: &definition,
            issuer: "FountainAI",
            seed: &seed,
            rotated,
            proofs: &proofs(1),
        })
    }

    #[test]
    fn the_secret_holds_everything_that_the_contract_promises_and_proves_itself() {
        let secret = with(Some("1"), secret);
        assert_eq!(secret.metadata.name.as_deref(), Some("alice-totp"));
        let data = secret.data.as_ref().unwrap();
        assert_eq!(data["username"].0, b"alice@example.org");
        assert!(data["qr.png"].0.starts_with(b"\x89PNG"));
        assert!(
            data["otpauth-uri"]
                .0
                .starts_with(b"otpauth://totp/FountainAI:alice%40example.org?secret=")
        );
        assert!(is_owned(&secret, &alice()));
        let statement = |proof: &str| with(Some("1"), |it| it.proofs.check(proof, &it.statement()));
        assert_eq!(
            statement(&secret.annotations()[labels::PROOF_ANNOTATION]),
            Ok(ProvenBy::Current)
        );
    }

    #[test]
    fn a_secret_as_it_should_be_needs_no_repair() {
        assert_eq!(with(None, |wanted| patch(&secret(wanted), wanted)), None);
    }

    #[test]
    fn a_seed_written_in_another_way_stays_as_it_is() {
        with(None, |wanted| {
            let mut found = secret(wanted);
            let seed = found.data.as_mut().unwrap().get_mut("secret").unwrap();
            seed.0.make_ascii_lowercase();
            assert_eq!(patch(&found, wanted), None);
        });
    }

    #[test]
    fn only_what_is_wrong_is_repaired_and_only_in_the_version_that_was_seen() {
        with(None, |wanted| {
            let mut found = secret(wanted);
            found.metadata.resource_version = Some("7".to_owned());
            found.data.as_mut().unwrap().remove("qr.png");
            found.metadata.labels = None;
            let patch = patch(&found, wanted).unwrap();
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            assert_eq!(patch["data"].as_object().unwrap().keys().collect::<Vec<_>>(), ["qr.png"]);
            assert_eq!(patch["metadata"]["labels"][labels::MANAGED_BY_LABEL], labels::MANAGED_BY);
        });
        let patch = with(None, |before| {
            let found = secret(before);
            with(Some("2"), |wanted| patch(&found, wanted)).unwrap()
        });
        assert_eq!(patch["metadata"]["annotations"][labels::ROTATED_ANNOTATION], "2");
    }

    #[test]
    fn a_secret_without_the_current_proof_gets_it_and_nothing_else_is_written() {
        for proof in [None, Some("1:damaged".to_owned())] {
            with(None, |wanted| {
                let mut found = secret(wanted);
                let annotations = found.annotations_mut();
                let right = annotations.remove(labels::PROOF_ANNOTATION).unwrap();
                annotations.extend(
                    proof.clone().map(|proof| (labels::PROOF_ANNOTATION.to_owned(), proof)),
                );
                assert!(!is_current(&found, wanted));
                let patch = patch(&found, wanted).unwrap();
                assert_eq!(patch["metadata"]["annotations"][labels::PROOF_ANNOTATION], right);
                let fields: Vec<_> = patch["metadata"].as_object().unwrap().keys().collect();
                assert_eq!(fields, ["annotations", "resourceVersion", "uid"]);
                assert!(patch.get("data").is_none());
            });
        }
    }

    #[test]
    fn a_secret_that_is_taken_over_gets_this_owner_and_keeps_those_that_are_no_users() {
        with(None, |wanted| {
            let mut found = secret(wanted);
            let owners = found.owner_references_mut();
            owners[0].uid = "uid-0".to_owned();
            let other =
                OwnerReference { kind: "Backup".to_owned(), controller: None, ..owners[0].clone() };
            owners.push(other.clone());
            let patch = patch(&found, wanted).unwrap();
            let expected = json!([owner_reference(wanted.user), other]);
            assert_eq!(patch["metadata"]["ownerReferences"], expected);
            assert!(patch.get("data").is_none() && patch["metadata"].get("annotations").is_none());
        });
    }

    #[test]
    fn an_unusable_value_is_named_and_not_shown() {
        let mut secret = with(None, secret);
        let put = |secret: &mut Secret, bytes: &[u8]| {
            secret.data.as_mut().unwrap().insert("secret".to_owned(), ByteString(bytes.to_vec()));
        };
        for (bytes, expected) in [
            (&b"not base32!"[..], "the key secret of the Secret alice-totp is not base32"),
            (b"\xff\xfe", "the key secret of the Secret alice-totp is not base32"),
            (
                b"GEZDGNBVGY3TQOJQ",
                "the key secret of the Secret alice-totp has 80 bits, at least 160 are needed",
            ),
        ] {
            put(&mut secret, bytes);
            let message = read_seed(&secret, "secret").unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
        let message = read_seed(&secret, "seed").unwrap_err().to_string();
        assert_eq!(message, "the Secret alice-totp has no key seed");
    }
}
