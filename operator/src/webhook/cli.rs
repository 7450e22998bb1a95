//! Parses the webhook's part of the command line and the environment. The result is the webhook's
//! configuration, or an error that names the invalid flag.
#![expect(
    clippy::doc_markdown,
    reason = "clap shows these comments in a terminal, where backticks are noise"
)]

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use twofactor_server::logging::Format;

use super::clients::ClientRules;
use super::config::WebhookConfiguration;
use super::defaults::{SidecarDefaults, SidecarOptions};
use super::mesh::{MeshKind, Position};
use crate::certificates::rotation::Lifetimes;

/// Flags of the webhook and of the sidecars that it adds to pods.
#[derive(Args, Debug)]
pub struct WebhookArguments {
    /// Address on which the webhook that gives pods their sidecars listens
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9443"
    )]
    webhook_listen: SocketAddr,

    /// Service in the operator's namespace through which the API servers call the webhook
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_SERVICE",
        value_name = "NAME",
        default_value = "twofactor-operator"
    )]
    webhook_service: String,

    /// MutatingWebhookConfiguration whose caBundle admission writes
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "twofactor-operator"
    )]
    webhook_configuration: String,

    /// Lifetime of the webhook's certificate authority, such as 8760h. Admission replaces it
    /// before it expires
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_CA_LIFETIME",
        value_name = "TIME",
        default_value = "8760h",
        value_parser = lifetime
    )]
    webhook_ca_lifetime: Duration,

    /// Lifetime of the webhook's certificates, at most half of the authority's. Admission
    /// replaces them before they expire
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_CERTIFICATE_LIFETIME",
        value_name = "TIME",
        default_value = "24h",
        value_parser = lifetime
    )]
    webhook_certificate_lifetime: Duration,

    /// Folder with the webhook's certificate (tls.crt) and its key (tls.key), which another program
    /// makes and renews. That program also writes the caBundle. Admission then makes no
    /// certificates
    #[arg(long, env = "TWOFACTOR_WEBHOOK_CERTIFICATE_DIRECTORY", value_name = "DIRECTORY")]
    webhook_certificate_directory: Option<PathBuf>,

    /// File with the certificate authorities (PEM) of the API servers as clients of the webhook,
    /// which is followed. The webhook then rejects connections without a certificate that one of
    /// them signed [default: it does not ask for certificates]
    #[arg(long, env = "TWOFACTOR_WEBHOOK_CLIENT_CA_FILE", value_name = "FILE")]
    webhook_client_ca_file: Option<PathBuf>,

    /// Common name of a client's certificate that the webhook accepts. Can be given more than once
    /// [default: every name]
    #[arg(
        long = "webhook-client-name",
        env = "TWOFACTOR_WEBHOOK_CLIENT_NAMES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    webhook_client_names: Vec<String>,

    /// Image of the sidecars
    #[arg(long, env = "TWOFACTOR_SIDECAR_IMAGE", value_name = "IMAGE")]
    sidecar_image: String,

    /// Pull policy of the sidecars' image: Always, IfNotPresent or Never [default: Kubernetes
    /// decides by the tag]
    #[arg(long, env = "TWOFACTOR_SIDECAR_IMAGE_PULL_POLICY", value_name = "POLICY")]
    sidecar_image_pull_policy: Option<String>,

    /// Secret for pulling the sidecars' image, which must exist in each pod's namespace. Can be
    /// given more than once
    #[arg(
        long = "sidecar-image-pull-secret",
        env = "TWOFACTOR_SIDECAR_IMAGE_PULL_SECRETS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    sidecar_image_pull_secrets: Vec<String>,

    /// CPU request of a sidecar
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_CPU_REQUEST",
        value_name = "QUANTITY",
        default_value = "10m"
    )]
    sidecar_cpu_request: String,

    /// CPU limit of a sidecar
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_CPU_LIMIT",
        value_name = "QUANTITY",
        default_value = "500m"
    )]
    sidecar_cpu_limit: String,

    /// Memory request of a sidecar
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_MEMORY_REQUEST",
        value_name = "QUANTITY",
        default_value = "16Mi"
    )]
    sidecar_memory_request: String,

    /// Memory limit of a sidecar
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_MEMORY_LIMIT",
        value_name = "QUANTITY",
        default_value = "64Mi"
    )]
    sidecar_memory_limit: String,

    /// Format of the sidecars' log lines: json or text
    #[arg(long, env = "TWOFACTOR_SIDECAR_LOG_FORMAT", default_value = "json")]
    sidecar_log_format: Format,

    /// Place of the sidecar among the init containers that a pod has when it reaches the webhook.
    /// first: all of them can verify users. last: after those of a mesh, for example
    #[arg(long, env = "TWOFACTOR_SIDECAR_POSITION", value_name = "PLACE", default_value = "first")]
    sidecar_position: Position,

    /// Service mesh that leaves the connections to the ports of --sidecar-direct-ports alone: istio
    /// or linkerd. Its injector has to see the pod after this webhook
    #[arg(long, env = "TWOFACTOR_SIDECAR_MESH", value_name = "MESH")]
    sidecar_mesh: Option<MeshKind>,

    /// Port of Redis or of a Sentinel to which sidecars connect without the mesh. Can be given more
    /// than once
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_DIRECT_PORTS",
        value_name = "PORT",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    sidecar_direct_ports: Vec<u16>,
}

/// Parses a lifetime such as `90s`, `24h` or `1h 30m`.
pub fn lifetime(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "must be a time such as 90s or 24h".to_owned())?;
    Duration::try_from(span)
        .ok()
        .filter(|time| *time >= Duration::from_secs(10))
        .ok_or_else(|| "must be 10s or more".to_owned())
}

impl WebhookArguments {
    /// Makes the configuration.
    ///
    /// # Errors
    /// Names the invalid flag.
    pub fn configuration(self) -> Result<WebhookConfiguration, Box<dyn Error>> {
        if self.webhook_ca_lifetime < self.webhook_certificate_lifetime * 2 {
            return Err(
                "--webhook-ca-lifetime must be at least twice --webhook-certificate-lifetime"
                    .into(),
            );
        }
        let mut names = self.webhook_client_names;
        names.retain(|name| !name.is_empty());
        // An empty environment variable gives an empty name.
        let authority = self.webhook_client_ca_file.filter(|file| !file.as_os_str().is_empty());
        if authority.is_none() && !names.is_empty() {
            return Err("--webhook-client-name needs --webhook-client-ca-file".into());
        }
        let clients = authority.map(|authority| ClientRules { authority, names });
        let sidecar = SidecarDefaults::parse(SidecarOptions {
            image: self.sidecar_image,
            image_pull_policy: self.sidecar_image_pull_policy,
            // An empty environment variable gives an empty name.
            image_pull_secrets: self
                .sidecar_image_pull_secrets
                .into_iter()
                .filter(|name| !name.is_empty())
                .collect(),
            cpu_request: self.sidecar_cpu_request,
            cpu_limit: self.sidecar_cpu_limit,
            memory_request: self.sidecar_memory_request,
            memory_limit: self.sidecar_memory_limit,
            log_format: self.sidecar_log_format,
            position: self.sidecar_position,
            mesh: self.sidecar_mesh,
            direct_ports: self.sidecar_direct_ports,
        })?;
        Ok(WebhookConfiguration {
            listen: self.webhook_listen,
            service: self.webhook_service,
            configuration: self.webhook_configuration,
            given: self
                .webhook_certificate_directory
                .filter(|folder| !folder.as_os_str().is_empty()),
            lifetimes: Lifetimes {
                authority: self.webhook_ca_lifetime,
                leaf: self.webhook_certificate_lifetime,
                ..Lifetimes::default()
            },
            clients,
            sidecar,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_number_with_a_unit() {
        assert_eq!(lifetime("24h"), Ok(Duration::from_hours(24)));
        assert_eq!(lifetime("90s"), Ok(Duration::from_secs(90)));
        for invalid in ["", "24", "soon", "-1h", "1s"] {
            assert!(lifetime(invalid).is_err(), "{invalid}");
        }
    }
}
