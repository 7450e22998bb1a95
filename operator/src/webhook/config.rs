//! What the webhook is told when the process starts.

use std::net::SocketAddr;

use super::certificates;
use super::certificates::rotation::Lifetimes;
use super::defaults::SidecarDefaults;

/// What the webhook was told.
#[derive(Clone, Debug)]
pub struct WebhookConfiguration {
    /// Where to serve it.
    pub listen: SocketAddr,
    /// The Service that the API servers call, in the operator's namespace.
    pub service: String,
    /// The `MutatingWebhookConfiguration`.
    pub configuration: String,
    /// How long certificates are good for.
    pub lifetimes: Lifetimes,
    /// What pods get.
    pub sidecar: SidecarDefaults,
}

impl WebhookConfiguration {
    /// The settings of the webhook's certificates. `namespace` is the operator's.
    #[must_use]
    pub fn certificates(&self, namespace: &str) -> certificates::Settings {
        let mut settings =
            certificates::Settings::new(namespace, &self.service, &self.configuration);
        // A tenth of a certificate's life is early enough to notice everything; so are three
        // seconds.
        settings.poll = settings.poll.min(self.lifetimes.leaf / 10);
        settings.lifetimes = self.lifetimes;
        settings
    }
}
