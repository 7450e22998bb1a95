//! Tests that a real Prometheus finds operator and sidecars by the labels and port names of the
//! chart and the webhook, evaluates the chart's alerts and the queries of its dashboards, and finds
//! nothing wrong with a healthy release.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Url;
use serde_json::{Value, json};
use twofactor_tests::wait::eventually_blocking;

use crate::alerts;
use crate::manifests::{self, CLIENT_IMAGE, PROMETHEUS_IMAGE};
use crate::release::{ADMISSION_LABEL, CONTROLLER_LABEL, NAMESPACE};
use crate::scene::Scene;

const SCRAPED: Duration = Duration::from_secs(90);

/// A configuration without the Prometheus operator. It has a file in place of
/// `kubernetes_sd_configs: [{role: pod}]`, because Debian's Prometheus is built without that.
const CONFIGURATION: &str = r"
global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 2s}
rule_files: [/etc/prometheus/rules.yaml]
scrape_configs:
  - job_name: operator
    file_sd_configs: [{files: [/targets/pods.json], refresh_interval: 1s}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_name], regex: twofactor-(operator|controller), action: keep}
      - {source_labels: [__meta_kubernetes_pod_container_port_number], regex: '18005', action: keep}
      - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
  - job_name: sidecars
    file_sd_configs: [{files: [/targets/pods.json], refresh_interval: 1s}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_label_twofactor_fountainai_io_inject], regex: 'true', action: keep}
      - {source_labels: [__meta_kubernetes_pod_container_port_name], regex: twofactor-admin, action: keep}
      - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
";

/// Writes that file: each declared port of each pod, with the labels that Prometheus' own discovery
/// gives it.
const DISCOVERY: &str = r#"
account=/var/run/secrets/kubernetes.io/serviceaccount
trap exit TERM
while :; do
  curl --silent --fail --max-time 10 --cacert "$account/ca.crt" --header "Authorization: Bearer $(cat "$account/token")" \
    "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/pods" | jq --compact-output '
      [.items[] | select(.status.podIP) | . as $pod
        | .status.podIP | (if contains(":") then "[\(.)]" else . end) as $address
        | $pod.spec | (.containers[], .initContainers[]?) | .ports[]?
        | {
            targets: ["\($address):\(.containerPort)"],
            labels: ({
              __meta_kubernetes_namespace: $pod.metadata.namespace,
              __meta_kubernetes_pod_name: $pod.metadata.name,
              __meta_kubernetes_pod_container_port_name: (.name // ""),
              __meta_kubernetes_pod_container_port_number: (.containerPort | tostring)
            } + ($pod.metadata.labels // {}
              | with_entries(.key |= "__meta_kubernetes_pod_label_" + gsub("[^a-zA-Z0-9_]"; "_"))))
          }]' >/targets/new && mv /targets/new /targets/pods.json
  sleep 1
done
"#;

pub(crate) fn prometheus_scrapes_all_by_the_charts_labels_and_no_alert_lasts(scene: &Scene<'_>) {
    let (services, own) = (scene.namespace("services"), scene.restricted_namespace("prometheus"));
    scene.users(&services, &[("carol", json!({ "deliveryMethod": "app" }))]);
    for name in ["service-1", "service-2"] {
        scene.start(&manifests::client_with_sidecar(&services, name, &services));
    }
    // Makes requests, so that there is something to count.
    eventually_blocking(Duration::from_secs(20), "a decision", || {
        let reply = scene.verify(&services, "service-1", "carol", "000000");
        if reply.status == 401 { Ok(()) } else { Err(format!("{reply:?}")) }
    });
    start_prometheus(scene, &own);

    let mut expected = pods(scene, &services, manifests::INJECT);
    for label in [CONTROLLER_LABEL, ADMISSION_LABEL] {
        expected.extend(pods(scene, NAMESPACE, label));
    }
    let up = format!(
        "up{{job=\"operator\"}} == 1 or up{{job=\"sidecars\",namespace=\"{services}\"}} == 1"
    );
    eventually_blocking(SCRAPED, "all targets to be up", || {
        let found: BTreeSet<_> = query(scene, &own, &up)?.iter().map(pod_of).collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?} in place of {expected:?}")) }
    });
    for (what, query_text) in [
        ("users", "sum(twofactor_users) > 0".to_owned()),
        (
            "reconciliations",
            "sum(controller_runtime_reconcile_total{job=\"operator\"}) > 0".to_owned(),
        ),
        ("admissions", "sum(twofactor_admission_seconds_count{job=\"operator\"}) > 0".to_owned()),
        (
            "decisions",
            format!(
                "twofactor_decisions_total{{pod=\"service-1\",namespace=\"{services}\",operation=\"verify\"}} > 0"
            ),
        ),
        ("versions", format!("count(twofactor_build_info{{namespace=\"{services}\"}}) == 2")),
    ] {
        eventually_blocking(SCRAPED, format_args!("{what} ({query_text})"), || {
            query(scene, &own, &query_text)
                .map(|results| !results.is_empty())?
                .then_some(())
                .ok_or("nothing".to_owned())
        });
    }
    alerts::assert_silent(&services, |path| ask(scene, &own, path));
}

fn start_prometheus(scene: &Scene<'_>, namespace: &str) {
    // Prometheus may read the names and labels of pods only.
    let metadata = json!({ "name": namespace });
    let rule =
        json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"] });
    let (group, api) = ("rbac.authorization.k8s.io", "rbac.authorization.k8s.io/v1");
    scene.apply_for_all(
        &json!({ "apiVersion": api, "kind": "ClusterRole", "metadata": metadata, "rules": [rule] }),
    );
    scene.apply_for_all(&json!({
        "apiVersion": api,
        "kind": "ClusterRoleBinding",
        "metadata": metadata,
        "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": namespace },
        "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": namespace }],
    }));
    scene.kubectl().apply(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "namespace": namespace, "name": "prometheus" },
        "data": { "prometheus.yml": CONFIGURATION, "rules.yaml": alerts::rules().to_string() },
    }));
    let mut pod = manifests::client(namespace, "prometheus");
    pod["spec"] = manifests::pod_spec(PROMETHEUS_IMAGE, &[]);
    pod["spec"]["securityContext"]["runAsUser"] = json!(65534);
    pod["spec"]["volumes"] = json!([
        { "name": "configuration", "configMap": { "name": "prometheus" } },
        { "name": "data", "emptyDir": {} },
        { "name": "targets", "emptyDir": {} },
    ]);
    let targets = json!({ "name": "targets", "mountPath": "/targets" });
    let mut discovery =
        manifests::pod_spec(CLIENT_IMAGE, &["bash", "-c", DISCOVERY])["containers"][0].take();
    discovery["name"] = json!("discovery");
    discovery["volumeMounts"] = json!([targets]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([
        { "name": "configuration", "mountPath": "/etc/prometheus" },
        { "name": "data", "mountPath": "/prometheus" },
        targets,
    ]);
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/-/ready", "port": 9090 }, "periodSeconds": 1 });
    pod["spec"]["containers"].as_array_mut().expect("containers").push(discovery);
    scene.start(&pod);
}

fn pods(scene: &Scene<'_>, namespace: &str, selector: &str) -> BTreeSet<String> {
    let pods = scene.kubectl().get(&["pods", "--selector", selector, "--namespace", namespace]);
    let name = |pod: &Value| pod["metadata"]["name"].as_str().expect("a name").to_owned();
    pods["items"].as_array().expect("pods").iter().map(name).collect()
}

fn pod_of(result: &Value) -> String {
    result["metric"]["pod"].as_str().unwrap_or_default().to_owned()
}

/// The results of an instant query.
fn query(scene: &Scene<'_>, namespace: &str, text: &str) -> Result<Vec<Value>, String> {
    let url = Url::parse_with_params("http://prometheus/", [("query", text)]).expect("a URL");
    let path = format!("query?{}", url.query().unwrap_or_default());
    let data = ask(scene, namespace, &path)?;
    data["result"].as_array().cloned().ok_or_else(|| data.to_string())
}

/// The data that Prometheus answers to a path of its API.
fn ask(scene: &Scene<'_>, namespace: &str, path: &str) -> Result<Value, String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/prometheus:9090/proxy/api/v1/{path}");
    let mut answer: Value = serde_json::from_str(&scene.kubectl().try_raw(&path)?)
        .map_err(|error| format!("no JSON: {error}"))?;
    if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(answer.to_string()) }
}
