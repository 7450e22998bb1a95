//! Reads or creates a Secret that belongs to the operator itself and is never overwritten.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use twofactor_api::labels;

use crate::k8s::request::{self, ApiError};

/// Builds a Secret of the operator itself. It does not have the label of watched Secrets, because
/// no task has to react to it.
pub fn owned_secret(name: &str, data: BTreeMap<String, ByteString>) -> Secret {
    let part_of = ("app.kubernetes.io/part-of".to_owned(), labels::MANAGED_BY.to_owned());
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([part_of])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// A Secret with one key.
pub fn with_key(name: &str, key: &str, value: &str) -> Secret {
    owned_secret(name, BTreeMap::from([(key.to_owned(), ByteString(value.as_bytes().to_vec()))]))
}

/// Returns the Secret `name`, and whether it was created now. If several processes create it at the
/// same time, all get the same one.
pub async fn get_or_create(
    secrets: &Api<Secret>,
    name: &str,
    make: impl FnOnce() -> Secret,
) -> Result<(Secret, bool), ApiError> {
    if let Some(found) = request::optional(request::within(secrets.get(name)).await)? {
        return Ok((found, false));
    }
    match request::within(secrets.create(&PostParams::default(), &make())).await {
        Ok(created) => Ok((created, true)),
        // Another process was quicker; its Secret counts.
        Err(ApiError::AlreadyExists(_)) => Ok((request::within(secrets.get(name)).await?, false)),
        Err(error) => Err(error),
    }
}
