//! Lets a real API server call admission, with the webhook configuration of the chart.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::process::run;
use twofactor_tests::{ports, scratch, tools};

use super::cluster::Cluster;

impl Cluster {
    /// Installs admission under a name, for pods of this namespace of users and of a namespace
    /// `elsewhere` that does not exist, with more arguments.
    pub(crate) async fn webhook(&self, name: &str, args: &[&str]) -> OperatorProcess {
        let port = ports::free_port();
        let mut webhook = rendered_webhook(self, name);
        webhook["webhooks"][0]["clientConfig"]["service"]["port"] = json!(port);
        // No node routes a Service here, so it leads to the address of admission.
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": self.home },
            "spec": { "type": "ExternalName", "externalName": "127.0.0.1" },
        });
        self.apply_anywhere(&format!("{service}\n---\n{webhook}"));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        OperatorProcess::admission(&self.server.kubeconfig_path(), address)
            .args(["--operator-namespace", &self.home, "--namespace", &self.namespace])
            .args(["--webhook-configuration", name, "--webhook-service", name])
            .args(args.iter().copied())
            .start()
            .await
    }

    /// The pod as the API server would store it in the namespace, or why it refuses it.
    pub(crate) fn would_create(&self, pod: &Value) -> Result<Value, String> {
        let folder = scratch::folder("pod");
        let path = folder.path().join("pod.json");
        fs::write(&path, pod.to_string()).expect("to write a pod");
        let create = ["create", "--dry-run=server", "-o", "json", "-f", path.to_str().unwrap()];
        let created = self.try_kubectl(&create)?;
        serde_json::from_str(&created).map_err(|error| error.to_string())
    }
}

/// The webhook configuration of the chart.
fn rendered_webhook(cluster: &Cluster, name: &str) -> Value {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/fountainai-2fa");
    let values = format!("name={name},operator.namespaces={{{},elsewhere}}", cluster.namespace);
    let rendered = run(
        tools::find("helm"),
        &[
            "template",
            name,
            chart.to_str().unwrap(),
            "--namespace",
            &cluster.home,
            "--show-only",
            "templates/webhook.yaml",
            "--set",
            &values,
        ],
    );
    serde_saphyr::from_str(&rendered).unwrap()
}
