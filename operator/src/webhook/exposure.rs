//! Refuses pods in which another container than the sidecar could read a realm's credentials. The
//! refusal names the container.
//!
//! This does not stop an attacker: a person who may create pods in a namespace can read its Secrets
//! through a pod without the label. It keeps a service's container from getting the credentials by
//! mistake.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{PodSpec, Volume};
use twofactor_api::labels::{CREDENTIALS_VOLUME, SIDECAR_CONTAINER};

use super::checks::ContainerView;
use super::quoted;
use super::reason::{Reason, Refusal};

/// Refuses pods in which one of `others`, which are all containers but the sidecar, sees
/// credentials. `is_credentials` takes the name of a Secret.
///
/// # Errors
/// Names the container and how it sees the credentials.
pub fn check<'a>(
    spec: &PodSpec,
    others: impl Iterator<Item = ContainerView<'a>>,
    is_credentials: &dyn Fn(&str) -> bool,
) -> Result<(), Refusal> {
    let mut volumes: HashSet<&str> = spec
        .volumes
        .iter()
        .flatten()
        .filter(|volume| secrets(volume).any(is_credentials))
        .map(|volume| volume.name.as_str())
        .collect();
    // If the volume does not exist yet, the webhook's patch would make a mount of it valid.
    volumes.insert(CREDENTIALS_VOLUME);
    for container in others {
        if let Some(how) = sees(&container, &volumes, is_credentials) {
            return Err(Refusal::new(
                Reason::CredentialsExposed,
                format!(
                    "{}: {how} holds the credentials of a realm, which only the sidecar may have; remove it",
                    container.place()
                ),
            ));
        }
    }
    Ok(())
}

/// Refuses ephemeral containers that share the processes of the sidecar.
///
/// # Errors
/// Names the container.
pub fn targets(spec: &PodSpec) -> Result<(), Refusal> {
    let mut debuggers = spec.ephemeral_containers.iter().flatten();
    let sharing =
        debuggers.find(|it| it.target_container_name.as_deref() == Some(SIDECAR_CONTAINER));
    sharing.map_or(Ok(()), |container| {
        Err(Refusal::new(
            Reason::CredentialsExposed,
            format!(
                "spec.ephemeralContainers[{}]: targetContainerName must not be {SIDECAR_CONTAINER}, whose keys the \
                 container could read under /proc; choose another one",
                quoted(&container.name)
            ),
        ))
    })
}

/// Names of the Secrets in a volume.
pub(super) fn secrets(volume: &Volume) -> impl Iterator<Item = &str> {
    let direct = volume.secret.iter().filter_map(|source| source.secret_name.as_deref());
    let sources = volume.projected.iter().flat_map(|source| source.sources.iter().flatten());
    let projected = sources.filter_map(|source| Some(source.secret.as_ref()?.name.as_str()));
    direct.chain(projected)
}

fn sees(
    container: &ContainerView<'_>,
    volumes: &HashSet<&str>,
    is_credentials: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let mounts = container.volume_mounts.into_iter().flatten().map(|mount| mount.name.as_str());
    let devices = container.volume_devices.into_iter().flatten().map(|device| device.name.as_str());
    let from_volume = mounts.chain(devices).find(|name| volumes.contains(name));
    if let Some(name) = from_volume {
        return Some(format!("the volume {}, which it mounts,", quoted(name)));
    }
    let from_secret = container.env_from.into_iter().flatten().find_map(|source| {
        let name = source.secret_ref.as_ref()?.name.as_str();
        is_credentials(name).then_some(name)
    });
    if let Some(name) = from_secret {
        return Some(format!("the Secret {} in its envFrom", quoted(name)));
    }
    container.env.into_iter().flatten().find_map(|variable| {
        let source = variable.value_from.as_ref()?;
        let key = source.secret_key_ref.as_ref().map(|key| key.name.as_str());
        let file = source.file_key_ref.as_ref().map(|file| file.volume_name.as_str());
        let shown =
            key.is_some_and(is_credentials) || file.is_some_and(|name| volumes.contains(name));
        shown.then(|| format!("its environment variable {}", quoted(&variable.name)))
    })
}
