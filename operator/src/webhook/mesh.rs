//! Builds the annotation that keeps a service mesh from redirecting the sidecar's connections to
//! Redis. No I/O.
//!
//! A mesh redirects all connections of a pod to its proxy. The sidecar starts before the app and
//! often before the proxy, and would get no answer from Redis until the proxy runs.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::Value;

/// Place of the sidecar among the pod's own init containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Position {
    /// Before all, so that each of them can verify users.
    First,
    /// After all, such as those of a mesh.
    Last,
}

/// A service mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MeshKind {
    /// Istio, with sidecars.
    Istio,
    /// Linkerd.
    Linkerd,
}

/// A service mesh, and the ports that it should not redirect.
#[derive(Clone, Debug)]
pub struct Mesh {
    kind: MeshKind,
    ports: Vec<u16>,
}

impl Mesh {
    /// Creates it. `ports` are those of Redis and its Sentinels.
    #[must_use]
    pub fn new(kind: MeshKind, ports: Vec<u16>) -> Self {
        Self { kind, ports }
    }

    /// Returns the annotation of a pod: its own ports, and after them those that it lacks.
    #[must_use]
    pub fn annotation(&self, of_pod: &BTreeMap<String, String>) -> (String, Value) {
        let name = match self.kind {
            MeshKind::Istio => "traffic.sidecar.istio.io/excludeOutboundPorts",
            MeshKind::Linkerd => "config.linkerd.io/skip-outbound-ports",
        };
        let present = of_pod.get(name).map_or("", String::as_str);
        let mut ports: Vec<String> = present
            .split(',')
            .map(str::trim)
            .filter(|port| !port.is_empty())
            .map(str::to_owned)
            .collect();
        for port in &self.ports {
            let port = port.to_string();
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        (name.to_owned(), ports.join(",").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotation(kind: MeshKind, present: Option<&str>) -> (String, Value) {
        let mesh = Mesh::new(kind, vec![6379, 26379]);
        let (name, _) = mesh.annotation(&BTreeMap::new());
        let of_pod = present.map(|value| (name, value.to_owned()));
        mesh.annotation(&of_pod.into_iter().collect())
    }

    #[test]
    fn each_mesh_has_its_own_annotation() {
        let (name, ports) = annotation(MeshKind::Istio, None);
        assert_eq!(name, "traffic.sidecar.istio.io/excludeOutboundPorts");
        assert_eq!(ports, "6379,26379");
        let (name, _) = annotation(MeshKind::Linkerd, None);
        assert_eq!(name, "config.linkerd.io/skip-outbound-ports");
    }

    #[test]
    fn the_pods_own_ports_stay() {
        for (present, merged) in [
            ("", "6379,26379"),
            ("5432", "5432,6379,26379"),
            (" 5432 , 6379,", "5432,6379,26379"),
            ("4567-4569,26379,6379", "4567-4569,26379,6379"),
        ] {
            assert_eq!(annotation(MeshKind::Linkerd, Some(present)).1, merged, "{present:?}");
        }
    }
}
