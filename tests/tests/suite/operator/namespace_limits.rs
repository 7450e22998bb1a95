//! Tests what a real API server says about a pod that exceeds the limits of its namespace only with
//! the sidecar.

use serde_json::json;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster};

#[tokio::test]
async fn the_api_server_names_the_limit_of_whole_pods_or_the_quota_that_the_sidecar_exceeds() {
    let cluster = Cluster::start().await;
    let _admission = cluster.webhook(&format!("limits-{}", cluster.namespace), &[]).await;
    let pod = |labels| {
        let resources = json!({ "limits": { "memory": "32Mi" } });
        let app = json!({ "name": "app", "image": "app", "resources": resources });
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "client", "labels": labels },
            "spec": { "containers": [app] },
        })
    };
    let labelled = pod(json!({ "twofactor.fountainai.io/inject": "true" }));
    eventually(BOUND, "the sidecar to be injected", async || {
        let created = cluster.would_create(&labelled)?;
        let sidecars = created["spec"]["initContainers"].as_array().map_or(0, Vec::len);
        if sidecars == 1 { Ok(()) } else { Err(created.to_string()) }
    })
    .await;
    let amounts = json!({ "limits.memory": "48Mi" });
    for (kind, spec, sentence) in [
        (
            "LimitRange",
            json!({ "limits": [{ "type": "Pod", "max": { "memory": "48Mi" } }] }),
            "maximum memory usage per Pod is 48Mi, but limit is",
        ),
        (
            "ResourceQuota",
            json!({ "hard": amounts }),
            "exceeded quota: sizes, requested: limits.memory=",
        ),
    ] {
        let metadata = json!({ "name": "sizes" });
        let object =
            json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec });
        cluster.apply(&object.to_string());
        if kind == "ResourceQuota" {
            // A controller that does not run here writes it.
            let status = json!({ "status": { "hard": amounts, "used": { "limits.memory": "0" } } });
            let patch = ["patch", "resourcequota", "sizes", "--subresource=status", "--type=merge"];
            let _ = cluster.kubectl(&[&patch[..], &["--patch", &status.to_string()]].concat());
        }
        eventually(BOUND, sentence, async || match cluster.would_create(&labelled) {
            Err(refusal) if refusal.contains(sentence) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let without = cluster.would_create(&pod(json!({})));
        assert!(without.is_ok(), "without the sidecar: {without:?}");
        let _ = cluster.kubectl(&["delete", kind, "sizes"]);
    }
}
