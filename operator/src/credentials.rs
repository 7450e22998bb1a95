//! Lets the services of a namespace in. Enters: namespaces that got their first user, lost their last, or whose credentials somebody
//! touched. Leaves: the Secret `twofactor-<namespace>` there, with all that a sidecar needs, and with nothing else; or none.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;
use twofactor_core::names::Installation;
use twofactor_core::secret::SecretText;

use crate::api::{self, ApiError};
use crate::context::Context;
use crate::realms::{Realm, RealmError};

/// How soon to try again.
const RETRY: Duration = Duration::from_secs(5);

/// Why a namespace's credentials are not as they should be.
#[derive(Debug, Error)]
enum CredentialsError {
    #[error(transparent)]
    Realm(#[from] RealmError),
    #[error("the Secret {0} is there, and not ours")]
    NotOurs(String),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Looks after credentials until it is told to stop. Begins when the lists are complete.
pub async fn run(context: Arc<Context>, mut requests: UnboundedReceiver<String>, stop: CancellationToken) {
    let mut failed: HashSet<String> = HashSet::new();
    loop {
        let mut namespaces = HashSet::new();
        tokio::select! {
            () = stop.cancelled() => return,
            request = requests.recv() => match request {
                Some(namespace) => { namespaces.insert(namespace); }
                None => return,
            },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => namespaces = std::mem::take(&mut failed),
        }
        while let Ok(namespace) = requests.try_recv() {
            namespaces.insert(namespace);
        }
        for namespace in namespaces {
            match ensure(&context, &namespace).await {
                Ok(()) | Err(CredentialsError::Realm(RealmError::Gone)) => {
                    failed.remove(&namespace);
                }
                Err(error) => {
                    // A namespace that is being deleted takes nothing new.
                    if failed.insert(namespace.clone()) {
                        tracing::warn!(namespace, %error, "the credentials for services could not be written; trying again");
                    }
                }
            }
        }
    }
}

async fn ensure(context: &Context, namespace: &str) -> Result<(), CredentialsError> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let name = labels::credentials_name(namespace);
    let found = api::optional(api::within(secrets.get(&name)).await)?;
    if !context.index().has_users(namespace) {
        return match found.filter(|found| is_ours(found, namespace)) {
            Some(found) => remove(&secrets, &found).await,
            None => Ok(()),
        };
    }
    let realm = context.realms.of(namespace).await?;
    let wanted = secret(&realm, &context.realms.installation, &context.redis_url, namespace);
    match found {
        None => {
            api::within(secrets.create(&PostParams::default(), &wanted)).await?;
            tracing::info!(namespace, secret = name, "wrote the credentials for the services of a namespace");
        }
        Some(found) if !is_ours(&found, namespace) => return Err(CredentialsError::NotOurs(name)),
        Some(found) => {
            if let Some(patch) = difference(&found, &wanted) {
                let parameters = PatchParams::default();
                let request = async { secrets.patch(&name, &parameters, &Patch::Merge(&patch)).await };
                api::within(request).await?;
                tracing::info!(
                    namespace,
                    secret = name,
                    "repaired the credentials for the services of a namespace"
                );
            }
        }
    }
    Ok(())
}

async fn remove(secrets: &Api<Secret>, found: &Secret) -> Result<(), CredentialsError> {
    let parameters = DeleteParams {
        preconditions: Some(Preconditions { uid: found.uid(), resource_version: found.resource_version() }),
        ..DeleteParams::default()
    };
    let name = found.name_any();
    let request = async { secrets.delete(&name, &parameters).await };
    api::optional(api::within(request).await)?;
    Ok(())
}

/// Whether a Secret holds credentials of the realm of `namespace`. They are found by label: an owner in another namespace is not
/// possible, and a namespace that is let in is one.
fn is_ours(secret: &Secret, namespace: &str) -> bool {
    let label = |name: &str| secret.labels().get(name).map(String::as_str);
    label(labels::MANAGED_BY_LABEL) == Some(labels::MANAGED_BY)
        && label(labels::CREDENTIALS_LABEL) == Some(namespace)
}

/// The credentials of `realm` for the services of the namespace `caller`.
fn secret(realm: &Realm, installation: &Installation, redis_url: &SecretText, caller: &str) -> Secret {
    let key = realm.key.to_text();
    let data = [
        (labels::CREDENTIALS_KEY_REDIS_URL, redis_url.expose_secret()),
        (labels::CREDENTIALS_KEY_REALM_KEY, key.expose_secret()),
        (labels::CREDENTIALS_KEY_INSTALLATION, installation.as_str()),
        (labels::CREDENTIALS_KEY_REALM, realm.id.as_str()),
        (labels::CREDENTIALS_KEY_CALLER, caller),
    ];
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
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), bytes(value))).collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// The merge patch that makes `found` what it should be; keys that nobody asked for go, so that none is mounted.
fn difference(found: &Secret, wanted: &Secret) -> Option<Value> {
    if found.data == wanted.data {
        return None;
    }
    let wanted_data = wanted.data.clone().unwrap_or_default();
    let mut data: serde_json::Map<String, Value> =
        wanted_data.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    for key in found.data.iter().flat_map(BTreeMap::keys).filter(|key| !wanted_data.contains_key(*key)) {
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
        let data =
            entries.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn a_change_is_undone_and_what_was_added_goes() {
        let wanted = with(&[("realm", "a"), ("caller", "b")]);
        assert_eq!(difference(&wanted, &wanted), None);
        let patch = difference(&with(&[("realm", "x"), ("more", "y")]), &wanted).unwrap();
        assert_eq!(patch["data"], json!({ "realm": "YQ==", "caller": "Yg==", "more": null }));
    }

    #[test]
    fn a_secret_without_our_labels_is_not_ours() {
        let mut secret = with(&[]);
        assert!(!is_ours(&secret, "people"));
        secret.labels_mut().insert(labels::MANAGED_BY_LABEL.to_owned(), labels::MANAGED_BY.to_owned());
        assert!(!is_ours(&secret, "people"));
        secret.labels_mut().insert(labels::CREDENTIALS_LABEL.to_owned(), "people".to_owned());
        assert!(is_ours(&secret, "people"));
        assert!(!is_ours(&secret, "others"));
    }
}
