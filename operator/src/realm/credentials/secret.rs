//! Builds the Secret with credentials, and the patch for one that differs. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use serde_json::{Value, json};
use twofactor_api::labels;
use twofactor_core::names::Installation;
use twofactor_core::secret::SecretText;
use twofactor_store::redis::RedisAccess;

use crate::state::realm_keys::KeyRing;
use crate::state::realms::Realm;

/// Returns the URL of Redis in a Secret with credentials.
pub(super) fn url_in(secret: &Secret) -> Option<SecretText> {
    let bytes = secret.data.as_ref()?.get(labels::CREDENTIALS_KEY_REDIS_URL)?;
    let text = std::str::from_utf8(&bytes.0).ok().filter(|text| !text.is_empty())?;
    Some(SecretText::new(text.to_owned()))
}

/// Whether the Secret holds credentials of the realm of `namespace`. A label says so, because an
/// owner in another namespace is not possible.
pub(super) fn is_ours(secret: &Secret, namespace: &str) -> bool {
    let label = |name: &str| secret.labels().get(name).map(String::as_str);
    label(labels::MANAGED_BY_LABEL) == Some(labels::MANAGED_BY)
        && label(labels::CREDENTIALS_LABEL) == Some(namespace)
}

/// Builds the credentials of `realm` for the services of the namespace `caller`.
pub(super) fn secret(
    realm: &Realm,
    keys: &KeyRing,
    installation: &Installation,
    redis: &RedisAccess,
    caller: &str,
) -> Secret {
    let keys_text = keys.realm_keys(&realm.id).to_text();
    let first_key = keys.first_key(&realm.id).map(|key| key.to_text());
    let data = [
        (labels::CREDENTIALS_KEY_REDIS_URL, redis.url.expose_secret()),
        (labels::CREDENTIALS_KEY_REALM_KEYS, keys_text.expose_secret()),
        (labels::CREDENTIALS_KEY_INSTALLATION, installation.as_str()),
        (labels::CREDENTIALS_KEY_REALM, realm.id.as_str()),
        (labels::CREDENTIALS_KEY_CALLER, caller),
        (labels::CREDENTIALS_KEY_SCRIPTS, labels::SCRIPTS_OF_OPERATOR),
    ];
    let first_key =
        first_key.as_ref().map(|key| (labels::CREDENTIALS_KEY_REALM_KEY, key.expose_secret()));
    let authority =
        redis.authority.as_deref().map(|authority| (labels::CREDENTIALS_KEY_REDIS_CA, authority));
    let identity = redis.identity.iter().flat_map(|identity| {
        [
            (labels::CREDENTIALS_KEY_REDIS_CLIENT_CERTIFICATE, identity.certificate.as_str()),
            (labels::CREDENTIALS_KEY_REDIS_CLIENT_KEY, identity.key.expose_secret()),
        ]
    });
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(labels::credentials_name(&realm.namespace)),
            namespace: Some(caller.to_owned()),
            labels: Some(BTreeMap::from([
                (labels::MANAGED_BY_LABEL.to_owned(), labels::MANAGED_BY.to_owned()),
                (labels::CREDENTIALS_LABEL.to_owned(), realm.namespace.clone()),
            ])),
            ..ObjectMeta::default()
        },
        data: Some(
            data.into_iter()
                .chain(first_key)
                .chain(authority)
                .chain(identity)
                .map(|(key, value)| (key.to_owned(), bytes(value)))
                .collect(),
        ),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// Returns the merge patch that makes `found` equal to `wanted`. Additional keys are removed, so
/// that they are not mounted.
pub(super) fn difference(found: &Secret, wanted: &Secret) -> Option<Value> {
    if found.data == wanted.data {
        return None;
    }
    let wanted_data = wanted.data.clone().unwrap_or_default();
    let mut data: serde_json::Map<String, Value> =
        wanted_data.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    for key in
        found.data.iter().flat_map(BTreeMap::keys).filter(|key| !wanted_data.contains_key(*key))
    {
        data.insert(key.clone(), Value::Null);
    }
    Some(json!({
        "metadata": { "uid": found.uid(), "resourceVersion": found.resource_version() },
        "data": data,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(entries: &[(&str, &str)]) -> Secret {
        let data = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn a_foreign_change_is_reverted_and_an_added_key_removed() {
        let wanted = with(&[("realm", "a"), ("caller", "b")]);
        assert_eq!(difference(&wanted, &wanted), None);
        let patch = difference(&with(&[("realm", "x"), ("more", "y")]), &wanted).unwrap();
        assert_eq!(patch["data"], json!({ "realm": "YQ==", "caller": "Yg==", "more": null }));
    }

    #[test]
    fn a_secret_without_our_labels_is_not_ours() {
        let mut secret = with(&[]);
        assert!(!is_ours(&secret, "people"));
        secret
            .labels_mut()
            .insert(labels::MANAGED_BY_LABEL.to_owned(), labels::MANAGED_BY.to_owned());
        assert!(!is_ours(&secret, "people"));
        secret.labels_mut().insert(labels::CREDENTIALS_LABEL.to_owned(), "people".to_owned());
        assert!(is_ours(&secret, "people"));
        assert!(!is_ours(&secret, "others"));
    }
}
