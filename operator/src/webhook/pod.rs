//! Decides whether a pod that is to be created gets the sidecar. From the pod, its namespace, the
//! defaults and the realms' allowed namespaces it makes a patch, a reason to admit the pod
//! unchanged, or a refusal. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::ResourceExt;
use serde_json::Value;
use twofactor_api::labels::{
    CREDENTIALS_PATH, CREDENTIALS_VOLUME, INJECT_LABEL, INJECTED_ANNOTATION, REALM_ANNOTATION,
    SIDECAR_CONTAINER, credentials_name,
};

use super::annotations::{Settings, settings};
use super::checks::{self, ContainerView};
use super::defaults::{SidecarDefaults, is_dns_label};
use super::exposure;
use super::patch::{Additions, patch};
use super::quoted;
use super::reason::{Reason, Refusal};
use super::sidecar;
use super::{limit_range, pod_resources};
use crate::state::limit_ranges::ContainerLimit;
use crate::state::realm_policies::NamespaceAccess;

/// Annotation on the pod that the API server shows for a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The decision about a pod.
#[derive(Clone, Debug)]
pub enum Decision {
    /// The pod gets the sidecar.
    Inject(Injection),
    /// The pod is admitted unchanged.
    Skip {
        /// The reason.
        reason: Reason,
        /// The realm of the sidecar that the pod has already.
        realm: Option<String>,
    },
    /// The pod is refused.
    Refuse(Refusal),
}

/// The addition of the sidecar to a pod.
#[derive(Clone, Debug)]
pub struct Injection {
    /// A JSON Patch.
    pub patch: Value,
    /// Warnings that the API server shows to the author of the pod.
    pub warnings: Vec<String>,
    /// The namespace whose users the pod verifies.
    pub realm: String,
    /// Whether the pod gets its credentials at once.
    pub reason: Reason,
}

impl Decision {
    /// The reason of the decision.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Inject(injection) => injection.reason,
            Self::Skip { reason, .. } => *reason,
            Self::Refuse(refusal) => refusal.reason,
        }
    }

    /// The namespace whose users the pod verifies, if it has or gets the sidecar.
    #[must_use]
    pub fn realm(&self) -> Option<&str> {
        match self {
            Self::Inject(injection) => Some(&injection.realm),
            Self::Skip { realm, .. } => realm.as_deref(),
            Self::Refuse(_) => None,
        }
    }
}

/// Decides about a pod that is to be created in `namespace`. `access` takes a realm and a
/// namespace.
#[must_use]
pub fn inject(
    pod: &Pod,
    namespace: &str,
    defaults: &SidecarDefaults,
    access: &dyn Fn(&str, &str) -> NamespaceAccess,
    limits: &dyn Fn(&str) -> Vec<ContainerLimit>,
) -> Decision {
    decide(pod, namespace, defaults, access, limits).unwrap_or_else(Decision::Refuse)
}

fn decide(
    pod: &Pod,
    namespace: &str,
    defaults: &SidecarDefaults,
    access: &dyn Fn(&str, &str) -> NamespaceAccess,
    limits: &dyn Fn(&str) -> Vec<ContainerLimit>,
) -> Result<Decision, Refusal> {
    match pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(INJECT_LABEL))
        .map(String::as_str)
    {
        Some("true") => {}
        None => return Ok(Decision::Skip { reason: Reason::NotAsked, realm: None }),
        Some("false") => return Ok(Decision::Skip { reason: Reason::SwitchedOff, realm: None }),
        Some(other) => {
            let sentence = format!(
                "label {INJECT_LABEL}: must be \"true\" or \"false\", not {}",
                quoted(other)
            );
            return Err(Refusal::new(Reason::Label, sentence));
        }
    }
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| Refusal::new(Reason::Unreadable, "spec: is missing in the pod"))?;
    if !is_dns_label(namespace) {
        let sentence =
            format!("namespace: must be the name of a namespace, not {}", quoted(namespace));
        return Err(Refusal::new(Reason::Unreadable, sentence));
    }
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    if annotations.contains_key(MIRROR_ANNOTATION) {
        return Err(Refusal::new(
            Reason::StaticPod,
            format!(
                "label {INJECT_LABEL}: must not be on a static pod, which cannot use a Secret; remove the label, or \
                 create the pod through the API server"
            ),
        ));
    }
    checks::operating_system(spec)?;
    checks::isolation(spec)?;
    let settings = settings(annotations, namespace, defaults)?;
    let present = present(spec, annotations, &settings.realm)?;
    // The name is enough, because `present` refuses every other container of that name.
    let others =
        || checks::containers(spec).filter(|container| container.name != SIDECAR_CONTAINER);
    checks::ports(others(), &settings)?;
    let is_credentials = |secret: &str| is_credentials(secret, &settings.realm, namespace, access);
    exposure::check(spec, others(), &is_credentials)?;
    if present {
        return Ok(Decision::Skip { reason: Reason::AlreadyInjected, realm: Some(settings.realm) });
    }
    pod_resources::check(spec, &settings)?;
    limit_range::check(&limits(namespace), &settings)?;
    Ok(Decision::Inject(injection(pod, spec, settings, defaults, namespace, access)))
}

/// Whether a Secret of this name holds the credentials of the pod's realm, or of another one that
/// allows the namespace.
fn is_credentials(
    secret: &str,
    realm: &str,
    namespace: &str,
    access: &dyn Fn(&str, &str) -> NamespaceAccess,
) -> bool {
    let of = secret.strip_prefix(credentials_name("").as_str());
    secret == credentials_name(realm)
        || of.is_some_and(|realm| access(realm, namespace) == NamespaceAccess::Allowed)
}

/// Decides about a pod to which ephemeral containers are added: they must not see the credentials.
/// The pod is never changed.
#[must_use]
pub fn debug(
    pod: &Pod,
    namespace: &str,
    access: &dyn Fn(&str, &str) -> NamespaceAccess,
) -> Decision {
    let metadata = &pod.metadata;
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(INJECT_LABEL));
    if label.is_none_or(|label| label == "false") {
        return Decision::Skip { reason: Reason::NotAsked, realm: None };
    }
    let named = metadata.annotations.as_ref().and_then(|it| it.get(REALM_ANNOTATION));
    let realm = named.map_or(namespace, String::as_str);
    let Some(spec) = &pod.spec else {
        return Decision::Refuse(Refusal::new(Reason::Unreadable, "spec: is missing in the pod"));
    };
    let others = checks::containers(spec).filter(|container| container.name != SIDECAR_CONTAINER);
    let is_credentials = |secret: &str| is_credentials(secret, realm, namespace, access);
    let checked =
        exposure::check(spec, others, &is_credentials).and_then(|()| exposure::targets(spec));
    match checked {
        Ok(()) => Decision::Skip { reason: Reason::AlreadyInjected, realm: Some(realm.to_owned()) },
        Err(refusal) => Decision::Refuse(refusal),
    }
}

/// Whether an earlier call of this webhook gave the pod its sidecar. Later changes by other
/// webhooks (image, resources, environment, order) do not matter.
///
/// # Errors
/// Refuses a pod with its own container or volume of the sidecar's name.
fn present(
    spec: &PodSpec,
    annotations: &BTreeMap<String, String>,
    realm: &str,
) -> Result<bool, Refusal> {
    let mut named =
        checks::containers(spec).filter(|container| container.name == SIDECAR_CONTAINER);
    let first = named.next();
    if let Some(taken) = named.next() {
        return Err(name_taken(&taken));
    }
    let mine = format!("must be the Secret {}", credentials_name(realm));
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == CREDENTIALS_VOLUME);
    let Some(view) = first else {
        return match volume {
            None => Ok(false),
            Some(_) => Err(volume_taken("is the name of the sidecar's volume; use another name")),
        };
    };
    let mut init = spec.init_containers.iter().flatten();
    let injected =
        init.any(|container| container.name == SIDECAR_CONTAINER && looks_injected(container));
    if !injected || !annotations.contains_key(INJECTED_ANNOTATION) {
        return Err(name_taken(&view));
    }
    match volume
        .and_then(|volume| volume.secret.as_ref())
        .and_then(|source| source.secret_name.as_deref())
    {
        Some(name) if name == credentials_name(realm) => Ok(true),
        _ => Err(volume_taken(&mine)),
    }
}

fn looks_injected(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
        && container
            .volume_mounts
            .iter()
            .flatten()
            .any(|mount| mount.name == CREDENTIALS_VOLUME && mount.mount_path == CREDENTIALS_PATH)
}

fn name_taken(container: &ContainerView<'_>) -> Refusal {
    let sentence = format!(
        "{}: is the name of the sidecar; give your own container another name",
        container.place()
    );
    Refusal::new(Reason::ContainerNameTaken, sentence)
}

fn volume_taken(rule: &str) -> Refusal {
    Refusal::new(Reason::VolumeNameTaken, format!("spec.volumes[\"{CREDENTIALS_VOLUME}\"]: {rule}"))
}

fn injection(
    pod: &Pod,
    spec: &PodSpec,
    settings: Settings,
    defaults: &SidecarDefaults,
    namespace: &str,
    access: &dyn Fn(&str, &str) -> NamespaceAccess,
) -> Injection {
    let mesh = defaults.mesh.as_ref().map(|mesh| mesh.annotation(pod.annotations()));
    let additions = Additions {
        annotations: sidecar::annotations(&settings).into_iter().chain(mesh).collect(),
        container: sidecar::container(spec, &settings, defaults),
        position: defaults.position,
        volume: sidecar::volume(&settings.realm),
        image_pull_secrets: defaults.image_pull_secrets.clone(),
    };
    let realm = settings.realm;
    let secret = credentials_name(&realm);
    let (reason, warning) = match access(&realm, namespace) {
        NamespaceAccess::Allowed => (Reason::Allowed, None),
        NamespaceAccess::NotAllowed => (
            Reason::NamespaceNotAllowed,
            Some(format!(
                "this pod will wait for the Secret {secret} until the TwoFactorRealm `default` in the namespace \
                 {realm} allows the namespace {namespace}"
            )),
        ),
        NamespaceAccess::NoSuchNamespace => (
            Reason::NoSuchNamespace,
            Some(format!(
                "this pod will wait for the Secret {secret}: there is no namespace {realm}, whose TwoFactorRealm \
                 `default` would have to allow the namespace {namespace}"
            )),
        ),
    };
    Injection {
        patch: patch(pod, additions),
        warnings: warning.into_iter().collect(),
        realm,
        reason,
    }
}
