//! Holds the settings of controller and admission that flags and environment variables give.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use twofactor_core::names::Installation;
use twofactor_core::realm::RealmRecord;

use crate::redis::access::AccessSource;
use crate::state::credentials::SharedLogin;
use crate::webhook::config::WebhookConfiguration;

/// Namespace whose UID names an installation.
pub const CLUSTER_NAMESPACE: &str = "kube-system";

/// Namespaces of the cluster itself, which never get credentials.
const CLUSTER_NAMESPACES: [&str; 3] = [CLUSTER_NAMESPACE, "kube-public", "kube-node-lease"];

/// Returns the namespaces that never get credentials: the operator's own, so that no realm's
/// credentials can have the name of one of the operator's Secrets, those of the cluster, and
/// `others`.
pub fn excluded_namespaces(operator: &str, others: Vec<String>) -> BTreeSet<String> {
    let fixed = CLUSTER_NAMESPACES.into_iter().chain([operator]).map(str::to_owned);
    fixed.chain(others).collect()
}

/// The settings of the controller.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The watched namespaces; all if empty.
    pub namespaces: Vec<String>,
    /// Namespaces of services beside these; all if empty.
    pub service_namespaces: Vec<String>,
    /// Where the access to Redis is, for the operator and for services.
    pub redis: AccessSource,
    /// What services get if the operator may not create logins in Redis.
    pub shared_login: SharedLogin,
    /// The Secret with the ecosystem's shared key of tokens, in the operator's namespace.
    pub secret_key_secret: String,
    /// Namespaces whose realms may sign with the shared key.
    pub secret_key_namespaces: BTreeSet<String>,
    /// Namespace of the operator and of its own Secrets.
    pub operator_namespace: String,
    /// Namespaces that never get credentials, such as the operator's own.
    pub excluded_namespaces: BTreeSet<String>,
    /// The name of this process in Events.
    pub instance: String,
    /// Name of this installation; the UID of the namespace `kube-system` if absent.
    pub installation: Option<Installation>,
    /// Address of the admin port, with health and metrics.
    pub admin_listen: SocketAddr,
    /// Whether no new seeds are made, because Secrets are being restored.
    pub hold_new_seeds: bool,
    /// Maximum number of users that are reconciled at the same time.
    pub concurrency: u16,
    /// Policy and providers of realms that set none.
    pub realm: RealmRecord,
    /// The folder with variables of these, which is followed.
    pub providers: Option<PathBuf>,
    /// Time in which every sidecar gets what was written to its credentials.
    pub key_overlap: Duration,
    /// The Lease of the leader, in the operator's namespace.
    pub lease: String,
}

/// The settings of admission. It has neither the URL of Redis nor the name of a user's Secret.
#[derive(Clone, Debug)]
pub struct AdmissionConfiguration {
    /// The watched namespaces; all if empty.
    pub namespaces: Vec<String>,
    /// Namespace of the operator and of the Secret with the webhook's authority.
    pub operator_namespace: String,
    /// Address of the admin port, with health and metrics.
    pub admin_listen: SocketAddr,
    /// Settings of the webhook.
    pub webhook: WebhookConfiguration,
}
