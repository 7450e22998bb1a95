//! Provides an operator namespace with its service account on the shared API server, for tests of
//! leadership and certificates that run within the test process.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use kube::Client;
use serde_json::Value;
use twofactor_tests::apiserver::ApiServer;

/// A client with the permissions of a kubeconfig.
pub(crate) async fn client(kubeconfig: &Path) -> Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let mut configuration = kube::Config::from_custom_kubeconfig(
        kubeconfig,
        &kube::config::KubeConfigOptions::default(),
    )
    .await
    .unwrap();
    configuration.default_retry = false;
    Client::try_from(configuration).unwrap()
}

/// The operator's namespace, and a service account with the permissions that leadership and
/// certificates need.
pub(crate) struct Home {
    pub(crate) namespace: String,
    pub(crate) client: Client,
    pub(crate) server: &'static ApiServer,
}

impl Home {
    pub(crate) async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = ApiServer::shared().await;
        let namespace = format!("operator-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let name = namespace.as_str();
        let _ = server.kubectl(&["create", "namespace", name]);
        let run = |args: &[&str]| server.kubectl(&[&["--namespace", name], args].concat());
        let _ = run(&["create", "serviceaccount", "operator"]);
        let account = format!("--serviceaccount={name}:operator");
        let configuration = format!("--resource-name={name}");
        let create =
            ["--verb=create", "--resource=secrets", "--resource=leases.coordination.k8s.io"];
        let _ = run(&[&["create", "role", "create"], &create[..]].concat());
        let update = ["--verb=get", "--verb=list", "--verb=watch", "--verb=update"];
        let secret = [
            "create",
            "role",
            "secret",
            "--resource=secrets",
            "--resource-name=twofactor-webhook-ca",
        ];
        let _ = run(&[&secret[..], &update[..]].concat());
        let lease = ["--resource=leases.coordination.k8s.io", "--resource-name=twofactor-operator"];
        let _ = run(&[&["create", "role", "lease"], &lease[..], &update[..]].concat());
        for role in ["create", "secret", "lease"] {
            let _ = run(&["create", "rolebinding", role, &format!("--role={role}"), &account]);
        }
        let resource = "--resource=mutatingwebhookconfigurations.admissionregistration.k8s.io";
        let _ = run(&[
            "create",
            "clusterrole",
            name,
            "--verb=get",
            "--verb=list",
            "--verb=watch",
            "--verb=patch",
            resource,
            &configuration,
        ]);
        let _ = run(&[
            "create",
            "clusterrolebinding",
            name,
            &format!("--clusterrole={name}"),
            &account,
        ]);
        let client = client(&server.kubeconfig_for_service_account(name, "operator")).await;
        Self { namespace, client, server }
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.server.kubectl(&[&["--namespace", &self.namespace], args].concat())
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())).unwrap()
    }
}
