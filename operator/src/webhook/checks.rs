//! Checks whether a pod can have a sidecar. The result for a pod and its settings is nothing, or a
//! refusal that names the field and what it must be.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EphemeralContainer, Lifecycle, LifecycleHandler, NodeSelectorTerm,
    PodSpec, Probe,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::annotations::{ADMIN_PORT_ANNOTATION, PORT_ANNOTATION, Settings};
use super::quoted;
use super::reason::{Reason, Refusal};

/// Refuses pods that share the host network or a process namespace.
///
/// # Errors
/// Names the field.
pub fn isolation(spec: &PodSpec) -> Result<(), Refusal> {
    if spec.host_network == Some(true) {
        let why = "the sidecar answers on its loopback address, which every process on the node \
                   could reach";
        return Err(must_be_false(Reason::HostNetwork, "hostNetwork", why));
    }
    let why = "other processes could read the sidecar's keys under /proc";
    if spec.host_pid == Some(true) {
        return Err(must_be_false(Reason::HostProcesses, "hostPID", why));
    }
    if spec.share_process_namespace == Some(true) {
        return Err(must_be_false(Reason::SharedProcesses, "shareProcessNamespace", why));
    }
    Ok(())
}

fn must_be_false(reason: Reason, field: &str, why: &str) -> Refusal {
    Refusal::new(
        reason,
        format!("spec.{field}: must be false or absent in a pod with the sidecar: {why}"),
    )
}

/// Refuses pods for other operating systems than Linux.
///
/// # Errors
/// Names the field.
pub fn operating_system(spec: &PodSpec) -> Result<(), Refusal> {
    let named = spec.os.as_ref().map(|os| ("spec.os.name".to_owned(), os.name.as_str()));
    let selected = OS_LABELS.into_iter().filter_map(|label| {
        let name = spec.node_selector.as_ref()?.get(label)?;
        Some((format!("spec.nodeSelector[{label}]"), name.as_str()))
    });
    let other = named.into_iter().chain(selected).find(|(_, name)| *name != "linux");
    if let Some((field, name)) = other {
        return Err(Refusal::new(
            Reason::OperatingSystem,
            format!("{field}: must be \"linux\" in a pod with the sidecar, not {}", quoted(name)),
        ));
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    // The pod runs on a node that one of the terms matches.
    let terms =
        required.map(|selector| selector.node_selector_terms.as_slice()).unwrap_or_default();
    if !terms.is_empty() && terms.iter().all(excludes_linux) {
        return Err(Refusal::new(
            Reason::OperatingSystem,
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution: must match nodes with \
             the label kubernetes.io/os: linux in a pod with the sidecar, which runs on Linux only",
        ));
    }
    Ok(())
}

/// The labels of nodes with their operating system: the present one, and the former one, which
/// nodes still have.
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];

fn excludes_linux(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.iter().flatten().any(|expression| {
        let has_linux = expression.values.iter().flatten().any(|value| value == "linux");
        OS_LABELS.contains(&expression.key.as_str())
            && match expression.operator.as_str() {
                "In" => !has_linux,
                "NotIn" => has_linux,
                "DoesNotExist" => true,
                _ => false,
            }
    })
}

/// Refuses pods in which another container declares or probes one of the sidecar's ports.
///
/// # Errors
/// Names the container and the port.
pub fn ports<'a>(
    others: impl Iterator<Item = ContainerView<'a>>,
    settings: &Settings,
) -> Result<(), Refusal> {
    let mine = [
        (settings.port, "API", PORT_ANNOTATION),
        (settings.admin_port, "health and metrics", ADMIN_PORT_ANNOTATION),
    ];
    for container in others {
        for (port, what, annotation) in mine {
            if container.declares(port) {
                return Err(Refusal::new(
                    Reason::PortTaken,
                    format!(
                        "{}: a containerPort is port {port}, which the sidecar uses for its {what}; use another port, or \
                         give the sidecar another one with the annotation {annotation}",
                        container.place()
                    ),
                ));
            }
        }
        // A probe comes from the node, which cannot reach the sidecar's API, because that listens
        // on the loopback address only.
        if container.probes().any(|probed| probed == IntOrString::Int(settings.port.into())) {
            return Err(Refusal::new(
                Reason::PortTaken,
                format!(
                    "{}: a probe or lifecycle hook uses port {}, which the sidecar uses for its API and answers \
                     inside the pod only; if the container listens there, use another port, or give the sidecar \
                     another one with the annotation {PORT_ANNOTATION}",
                    container.place(),
                    settings.port
                ),
            ));
        }
    }
    Ok(())
}

/// The fields that init, app and ephemeral containers have in common.
#[derive(Clone, Copy, Debug)]
pub struct ContainerView<'a> {
    list: &'static str,
    /// The container's name.
    pub name: &'a str,
    pub(super) env: Option<&'a Vec<k8s_openapi::api::core::v1::EnvVar>>,
    pub(super) env_from: Option<&'a Vec<k8s_openapi::api::core::v1::EnvFromSource>>,
    pub(super) volume_mounts: Option<&'a Vec<k8s_openapi::api::core::v1::VolumeMount>>,
    pub(super) volume_devices: Option<&'a Vec<k8s_openapi::api::core::v1::VolumeDevice>>,
    ports: Option<&'a Vec<ContainerPort>>,
    probes: [Option<&'a Probe>; 3],
    lifecycle: Option<&'a Lifecycle>,
}

macro_rules! view {
    ($function:ident, $container:ident) => {
        fn $function<'a>(list: &'static str, container: &'a $container) -> ContainerView<'a> {
            ContainerView {
                list,
                name: &container.name,
                env: container.env.as_ref(),
                env_from: container.env_from.as_ref(),
                volume_mounts: container.volume_mounts.as_ref(),
                volume_devices: container.volume_devices.as_ref(),
                ports: container.ports.as_ref(),
                probes: [
                    container.liveness_probe.as_ref(),
                    container.readiness_probe.as_ref(),
                    container.startup_probe.as_ref(),
                ],
                lifecycle: container.lifecycle.as_ref(),
            }
        }
    };
}

view!(view, Container);
view!(view_ephemeral, EphemeralContainer);

/// Lists a pod's init, app and ephemeral containers.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = ContainerView<'_>> {
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| view("spec.initContainers", container));
    let app = spec.containers.iter().map(|container| view("spec.containers", container));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral =
        ephemeral.map(|container| view_ephemeral("spec.ephemeralContainers", container));
    init.chain(app).chain(ephemeral)
}

impl ContainerView<'_> {
    /// The container's place in the pod, for a sentence.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}[{}]", self.list, quoted(self.name))
    }

    /// Whether the container listens on the port. A hostPort is one of the node, which leads to the
    /// containerPort beside it.
    fn declares(&self, port: u16) -> bool {
        // The sidecar listens on TCP only. An absent protocol means TCP.
        let tcp = |declared: &&ContainerPort| {
            declared.protocol.as_deref().is_none_or(|name| name == "TCP")
        };
        let mut ports = self.ports.into_iter().flatten().filter(tcp);
        ports.any(|declared| declared.container_port == i32::from(port))
    }

    /// The ports of the pod that the node probes.
    fn probes(&self) -> impl Iterator<Item = IntOrString> {
        let by_probe = self.probes.into_iter().flatten().filter_map(|probe| {
            let http = probe
                .http_get
                .as_ref()
                .filter(|get| get.host.is_none())
                .map(|get| get.port.clone());
            let tcp = probe
                .tcp_socket
                .as_ref()
                .filter(|tcp| tcp.host.is_none())
                .map(|tcp| tcp.port.clone());
            let grpc = probe.grpc.as_ref().map(|grpc| IntOrString::Int(grpc.port));
            http.or(tcp).or(grpc)
        });
        let hooks = self.lifecycle.into_iter();
        let hooks =
            hooks.flat_map(|hooks| [hooks.post_start.as_ref(), hooks.pre_stop.as_ref()]).flatten();
        let by_hook = hooks.filter_map(|hook: &LifecycleHandler| {
            hook.http_get.as_ref().filter(|get| get.host.is_none()).map(|get| get.port.clone())
        });
        by_probe.chain(by_hook)
    }
}
