//! Holds the webhook's configuration.

use std::net::SocketAddr;

use super::certificates;
use super::certificates::rotation::Lifetimes;
use super::defaults::SidecarDefaults;

/// The webhook's configuration.
#[derive(Clone, Debug)]
pub struct WebhookConfiguration {
    /// Address on which the webhook listens.
    pub listen: SocketAddr,
    /// Name of the Service that the API servers call, in the operator's namespace.
    pub service: String,
    /// Name of the `MutatingWebhookConfiguration`.
    pub configuration: String,
    /// Lifetimes of the certificates.
    pub lifetimes: Lifetimes,
    /// Defaults of the sidecar that pods get.
    pub sidecar: SidecarDefaults,
}

impl WebhookConfiguration {
    /// Makes the settings of the webhook's certificates. `namespace` is the operator's.
    #[must_use]
    pub fn certificates(&self, namespace: &str) -> certificates::Settings {
        let mut settings =
            certificates::Settings::new(namespace, &self.service, &self.configuration);
        // A tenth of a certificate's lifetime is often enough to replace it in time.
        settings.poll = settings.poll.min(self.lifetimes.leaf / 10);
        settings.lifetimes = self.lifetimes;
        settings
    }
}
