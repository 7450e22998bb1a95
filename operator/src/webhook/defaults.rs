//! Checks the operator's flags for sidecars, once at the start. They become valid defaults, which a
//! pod's annotations can override, or an error that names the flag.

use thiserror::Error;
use twofactor_server::logging::Format;

use super::mesh::{Mesh, MeshKind, Position};
use super::quantity::{Quantity, QuantityError, Resource};

/// The port of the sidecar's API on the pod's loopback addresses.
pub const PORT: u16 = 8004;
/// The port of the sidecar's health and metrics.
pub const ADMIN_PORT: u16 = 18004;
/// The filter of the sidecar's log.
pub const LOG: &str = "info";
/// Maximum length of an image name. No registry accepts a longer one.
const LONGEST_IMAGE: usize = 1024;

/// The flags as the administrator typed them.
#[derive(Clone, Debug)]
pub struct SidecarOptions {
    /// `--sidecar-image`
    pub image: String,
    /// `--sidecar-image-pull-policy`: `Always`, `IfNotPresent` or `Never`; if absent, Kubernetes
    /// decides by the tag.
    pub image_pull_policy: Option<String>,
    /// `--sidecar-image-pull-secret`: names of Secrets in the pods' namespaces.
    pub image_pull_secrets: Vec<String>,
    /// `--sidecar-cpu-request`
    pub cpu_request: String,
    /// `--sidecar-cpu-limit`
    pub cpu_limit: String,
    /// `--sidecar-memory-request`
    pub memory_request: String,
    /// `--sidecar-memory-limit`
    pub memory_limit: String,
    /// `--sidecar-log-format`
    pub log_format: Format,
    /// `--sidecar-position`
    pub position: Position,
    /// `--sidecar-mesh`
    pub mesh: Option<MeshKind>,
    /// `--sidecar-direct-ports`: ports of Redis, 1 to 65535.
    pub direct_ports: Vec<u16>,
}

/// The defaults of a sidecar, which its pod's annotations can override.
#[derive(Clone, Debug)]
pub struct SidecarDefaults {
    pub(super) image: String,
    pub(super) image_pull_policy: Option<&'static str>,
    pub(super) image_pull_secrets: Vec<String>,
    pub(super) cpu: Range,
    pub(super) memory: Range,
    pub(super) log_format: &'static str,
    pub(super) position: Position,
    pub(super) mesh: Option<Mesh>,
}

/// Request and limit of a resource. The limit is above 0, and the request is not above the limit.
#[derive(Clone, Debug)]
pub(super) struct Range {
    pub(super) request: Quantity,
    pub(super) limit: Quantity,
}

/// Errors of the flags for sidecars.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DefaultsError {
    /// The text is not an image name.
    #[error("--sidecar-image: {0}")]
    Image(&'static str),
    /// The text is not a pull policy.
    #[error("--sidecar-image-pull-policy: must be `Always`, `IfNotPresent` or `Never`")]
    ImagePullPolicy,
    /// The text is not the name of a Secret.
    #[error("--sidecar-image-pull-secret: must be the name of a Secret, which is a DNS subdomain")]
    ImagePullSecret,
    /// The text is not a quantity.
    #[error("{flag}: {problem}")]
    Quantity {
        /// The flag.
        flag: &'static str,
        /// The error.
        problem: QuantityError,
    },
    /// The mesh and the ports that it should leave alone come together.
    #[error("--sidecar-mesh and --sidecar-direct-ports: set both or none")]
    Mesh,
    /// The limit is 0, which Kubernetes would read as no limit.
    #[error("{0}: must be more than 0")]
    NoLimit(&'static str),
    /// The request is above the limit.
    #[error("{request}: must not be more than {limit}")]
    RequestAboveLimit {
        /// The flag of the request.
        request: &'static str,
        /// The flag of the limit.
        limit: &'static str,
    },
}

impl SidecarDefaults {
    /// Checks the flags.
    ///
    /// # Errors
    /// Names the first invalid flag.
    pub fn parse(options: SidecarOptions) -> Result<Self, DefaultsError> {
        check_image(&options.image).map_err(DefaultsError::Image)?;
        let image_pull_policy = match options.image_pull_policy.as_deref() {
            None | Some("") => None,
            Some("Always") => Some("Always"),
            Some("IfNotPresent") => Some("IfNotPresent"),
            Some("Never") => Some("Never"),
            Some(_) => return Err(DefaultsError::ImagePullPolicy),
        };
        if !options.image_pull_secrets.iter().all(|name| is_dns_subdomain(name)) {
            return Err(DefaultsError::ImagePullSecret);
        }
        let cpu = range(
            Resource::Cpu,
            ("--sidecar-cpu-request", &options.cpu_request),
            ("--sidecar-cpu-limit", &options.cpu_limit),
        )?;
        let memory = range(
            Resource::Memory,
            ("--sidecar-memory-request", &options.memory_request),
            ("--sidecar-memory-limit", &options.memory_limit),
        )?;
        let log_format = match options.log_format {
            Format::Json => "json",
            Format::Text => "text",
        };
        let mesh = match (options.mesh, options.direct_ports) {
            (None, ports) if ports.is_empty() => None,
            (Some(kind), ports) if !ports.is_empty() => Some(Mesh::new(kind, ports)),
            _ => return Err(DefaultsError::Mesh),
        };
        Ok(Self {
            image: options.image,
            image_pull_policy,
            image_pull_secrets: options.image_pull_secrets,
            cpu,
            memory,
            log_format,
            position: options.position,
            mesh,
        })
    }
}

fn range(
    resource: Resource,
    (request_flag, request): (&'static str, &str),
    (limit_flag, limit): (&'static str, &str),
) -> Result<Range, DefaultsError> {
    let parse = |flag, text| {
        Quantity::parse(text, resource).map_err(|problem| DefaultsError::Quantity { flag, problem })
    };
    let (request, limit) = (parse(request_flag, request)?, parse(limit_flag, limit)?);
    if limit.is_zero() {
        return Err(DefaultsError::NoLimit(limit_flag));
    }
    if request.exceeds(&limit) {
        return Err(DefaultsError::RequestAboveLimit { request: request_flag, limit: limit_flag });
    }
    Ok(Range { request, limit })
}

/// Checks an image name. Whether the image exists is known only to the node that pulls it.
pub(super) fn check_image(image: &str) -> Result<(), &'static str> {
    if image.is_empty() {
        Err("must not be empty")
    } else if image.len() > LONGEST_IMAGE {
        Err("must not be longer than 1024 characters")
    } else if !image.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("must be an image such as `fountainai/twofactor-sidecar:0.1.0`, without spaces")
    } else {
        Ok(())
    }
}

/// Whether the text can be the name of a namespace.
pub(super) fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

#[cfg(test)]
mod tests {
    use super::super::samples::options;
    use super::*;

    fn message(change: impl Fn(&mut SidecarOptions)) -> String {
        let mut options = options();
        change(&mut options);
        SidecarDefaults::parse(options).unwrap_err().to_string()
    }

    #[test]
    fn valid_flags_become_the_defaults() {
        let defaults = SidecarDefaults::parse(options()).unwrap();
        assert_eq!(defaults.image, "fountainai/twofactor-sidecar:0.1.0");
        assert_eq!(defaults.cpu.request.as_str(), "10m");
        assert_eq!(defaults.memory.limit.as_str(), "64Mi");
        assert_eq!(defaults.log_format, "json");
    }

    #[test]
    fn an_error_names_the_flag_and_its_rule() {
        assert_eq!(message(|o| o.image.clear()), "--sidecar-image: must not be empty");
        assert!(
            message(|o| o.image = "a b".into())
                .starts_with("--sidecar-image: must be an image such as")
        );
        assert!(
            message(|o| o.image_pull_policy = Some("always".into()))
                .starts_with("--sidecar-image-pull-policy: must be `Always`")
        );
        assert!(
            message(|o| o.image_pull_secrets = vec!["A".into()])
                .starts_with("--sidecar-image-pull-secret: ")
        );
        assert_eq!(
            message(|o| o.cpu_request = "x".into()),
            "--sidecar-cpu-request: must be a quantity such as `500m` or `1`"
        );
        assert!(
            message(|o| o.memory_limit = "64m".into())
                .starts_with("--sidecar-memory-limit: must be whole")
        );
        assert_eq!(
            message(|o| o.cpu_limit = "0".into()),
            "--sidecar-cpu-limit: must be more than 0"
        );
        assert_eq!(
            message(|o| o.memory_request = "1Gi".into()),
            "--sidecar-memory-request: must not be more than --sidecar-memory-limit"
        );
        for change in [
            |o: &mut SidecarOptions| o.mesh = Some(MeshKind::Istio),
            |o: &mut SidecarOptions| o.direct_ports = vec![6379],
        ] {
            assert_eq!(
                message(change),
                "--sidecar-mesh and --sidecar-direct-ports: set both or none"
            );
        }
    }

    #[test]
    fn names_of_namespaces_are_dns_labels() {
        for valid in ["a", "people", "0", "a-b", &"a".repeat(63)] {
            assert!(is_dns_label(valid), "{valid}");
        }
        for invalid in ["", "-a", "a-", "A", "a.b", "a/b", "a\n", "ä", &"a".repeat(64)] {
            assert!(!is_dns_label(invalid), "{invalid}");
        }
    }
}
