//! Holds the webhook's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::certificates;
use super::clients::ClientRules;
use super::defaults::SidecarDefaults;
use super::given_certificate;
use crate::certificates::rotation::Lifetimes;

/// The webhook's configuration.
#[derive(Clone, Debug)]
pub struct WebhookConfiguration {
    /// Address on which the webhook listens.
    pub listen: SocketAddr,
    /// Name of the Service that the API servers call, in the operator's namespace.
    pub service: String,
    /// Name of the `MutatingWebhookConfiguration`.
    pub configuration: String,
    /// Folder with a certificate that another program makes, in place of the operator's own.
    pub given: Option<PathBuf>,
    /// Lifetimes of the certificates.
    pub lifetimes: Lifetimes,
    /// Certificates that clients need; none if absent.
    pub clients: Option<ClientRules>,
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

    /// Makes the settings of a certificate that another program makes.
    #[must_use]
    pub fn given_certificate(&self, namespace: &str) -> Option<given_certificate::Settings> {
        Some(given_certificate::Settings {
            folder: self.given.clone()?,
            host: format!("{}.{namespace}.svc", self.service),
            configuration: self.configuration.clone(),
            poll: given_certificate::POLL,
        })
    }
}
