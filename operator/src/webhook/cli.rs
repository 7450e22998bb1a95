//! The webhook's part of the command line. Enters: arguments and the environment. Leaves: its
//! configuration, or the flag that is wrong.
#![expect(
    clippy::doc_markdown,
    reason = "clap shows these comments in a terminal, where backticks are noise"
)]

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use twofactor_server::logging::Format;

use super::certificates::rotation::Lifetimes;
use super::config::WebhookConfiguration;
use super::defaults::{SidecarDefaults, SidecarOptions};

/// Where the webhook is, and what it gives to pods.
#[derive(Args, Debug)]
pub struct WebhookArguments {
    /// Address of the webhook that gives pods their sidecars [default: there is none]
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_LISTEN",
        value_name = "ADDRESS:PORT",
        requires = "sidecar_image"
    )]
    webhook_listen: Option<SocketAddr>,

    /// Service in the operator's namespace through which the API servers call the webhook
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_SERVICE",
        value_name = "NAME",
        default_value = "twofactor-operator"
    )]
    webhook_service: String,

    /// MutatingWebhookConfiguration, of which the operator keeps the caBundle
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "twofactor-operator"
    )]
    webhook_configuration: String,

    /// How long the webhook's certificate authority is good for, such as 8760h; it is replaced in
    /// time
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_CA_LIFETIME",
        value_name = "TIME",
        default_value = "8760h",
        value_parser = lifetime
    )]
    webhook_ca_lifetime: Duration,

    /// How long its certificates are good for, at most half as long; they are replaced in time
    #[arg(
        long,
        env = "TWOFACTOR_WEBHOOK_CERTIFICATE_LIFETIME",
        value_name = "TIME",
        default_value = "24h",
        value_parser = lifetime
    )]
    webhook_certificate_lifetime: Duration,

    /// Image of the sidecar
    #[arg(long, env = "TWOFACTOR_SIDECAR_IMAGE", value_name = "IMAGE")]
    sidecar_image: Option<String>,

    /// When nodes pull it: Always, IfNotPresent or Never [default: Kubernetes decides by the tag]
    #[arg(long, env = "TWOFACTOR_SIDECAR_IMAGE_PULL_POLICY", value_name = "POLICY")]
    sidecar_image_pull_policy: Option<String>,

    /// Secret in the pods' namespaces to pull it with. Can be given more than once
    #[arg(
        long = "sidecar-image-pull-secret",
        env = "TWOFACTOR_SIDECAR_IMAGE_PULL_SECRETS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    sidecar_image_pull_secrets: Vec<String>,

    /// Processor time that is kept free for a sidecar
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_CPU_REQUEST",
        value_name = "QUANTITY",
        default_value = "10m"
    )]
    sidecar_cpu_request: String,

    /// Processor time that a sidecar may take
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_CPU_LIMIT",
        value_name = "QUANTITY",
        default_value = "500m"
    )]
    sidecar_cpu_limit: String,

    /// Memory that is kept free for a sidecar
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_MEMORY_REQUEST",
        value_name = "QUANTITY",
        default_value = "16Mi"
    )]
    sidecar_memory_request: String,

    /// Memory that a sidecar may take
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_MEMORY_LIMIT",
        value_name = "QUANTITY",
        default_value = "64Mi"
    )]
    sidecar_memory_limit: String,

    /// Log lines of sidecars as json or text
    #[arg(long, env = "TWOFACTOR_SIDECAR_LOG_FORMAT", default_value = "json")]
    sidecar_log_format: Format,
}

/// A time such as `90s`, `24h` or `1h 30m`.
fn lifetime(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "must be a time such as 90s or 24h".to_owned())?;
    Duration::try_from(span)
        .ok()
        .filter(|time| *time >= Duration::from_secs(10))
        .ok_or_else(|| "must be 10s or more".to_owned())
}

impl WebhookArguments {
    /// What they say; nothing when there is to be no webhook.
    ///
    /// # Errors
    /// Names the flag that is wrong.
    pub fn configuration(self) -> Result<Option<WebhookConfiguration>, Box<dyn Error>> {
        let Some(listen) = self.webhook_listen else { return Ok(None) };
        if self.webhook_ca_lifetime < self.webhook_certificate_lifetime * 2 {
            return Err(
                "--webhook-ca-lifetime must be at least twice --webhook-certificate-lifetime"
                    .into(),
            );
        }
        let sidecar = SidecarDefaults::parse(SidecarOptions {
            image: self.sidecar_image.unwrap_or_default(),
            image_pull_policy: self.sidecar_image_pull_policy,
            image_pull_secrets: named(self.sidecar_image_pull_secrets),
            cpu_request: self.sidecar_cpu_request,
            cpu_limit: self.sidecar_cpu_limit,
            memory_request: self.sidecar_memory_request,
            memory_limit: self.sidecar_memory_limit,
            log_format: self.sidecar_log_format,
        })?;
        Ok(Some(WebhookConfiguration {
            listen,
            service: self.webhook_service,
            configuration: self.webhook_configuration,
            lifetimes: Lifetimes {
                authority: self.webhook_ca_lifetime,
                leaf: self.webhook_certificate_lifetime,
            },
            sidecar,
        }))
    }
}

/// An empty variable names nothing.
fn named(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_number_with_a_unit() {
        assert_eq!(lifetime("24h"), Ok(Duration::from_hours(24)));
        assert_eq!(lifetime("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "24", "soon", "-1h", "1s"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
