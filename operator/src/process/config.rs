//! Holds what the operator was told by flags and the environment.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use twofactor_core::names::Installation;
use twofactor_core::realm::RealmRecord;
use twofactor_core::secret::SecretText;

use crate::webhook::config::WebhookConfiguration;

/// The namespace whose UID names an installation.
pub const CLUSTER_NAMESPACE: &str = "kube-system";

/// What the operator was told.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The namespaces that are looked at; all when there are none.
    pub namespaces: Vec<String>,
    /// Redis. May hold a password.
    pub redis_url: SecretText,
    /// What the certificates of Redis are checked against (PEM), for the operator and for services;
    /// the system's authorities when absent.
    pub redis_authority: Option<String>,
    /// The Secret with the password of Redis, in the operator's namespace; the URL holds it when
    /// absent.
    pub redis_password_secret: Option<String>,
    /// The Secret with the ecosystem's shared key of tokens, in the operator's namespace.
    pub secret_key_secret: String,
    /// The namespaces of users whose realms may sign with it.
    pub secret_key_namespaces: BTreeSet<String>,
    /// Where the operator's own Secrets are.
    pub operator_namespace: String,
    /// The name of this process in Events.
    pub instance: String,
    /// Which installation this is; the UID of the namespace `kube-system` when absent.
    pub installation: Option<Installation>,
    /// Where to serve health and metrics.
    pub admin_listen: SocketAddr,
    /// Users who are looked at at the same time.
    pub concurrency: u16,
    /// Policy and providers of realms that say nothing themselves.
    pub realm: RealmRecord,
    /// The Lease of the leader, in the operator's namespace.
    pub lease: String,
    /// Gives pods their sidecars; nobody does when absent.
    pub webhook: Option<WebhookConfiguration>,
}
