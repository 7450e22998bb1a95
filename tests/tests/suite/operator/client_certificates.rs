//! Tests that the webhook asks for a client certificate where an authority is configured, with API
//! servers that have one and that have none.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use data_encoding::BASE64;
use reqwest::{Certificate, Identity};
use serde_json::{Value, json};
use tempfile::TempDir;
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::certificates::{Authority, Leaf};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::scratch;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster};

const NAME: &str = "checked-2fa";
const REJECTED: &str = "twofactor_webhook_clients_rejected_total ";

/// Starts an API server that shows a certificate to webhooks, as the guide configures it.
async fn server_with(leaf: &Leaf) -> (ApiServer, TempDir) {
    let folder = scratch::folder("admission-configuration");
    let write = |name: &str, content: &Value| {
        let path = folder.path().join(name);
        fs::write(&path, content.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let encode = |text: &str| BASE64.encode(text.as_bytes());
    let user = json!({ "client-certificate-data": encode(&leaf.certificate),
        "client-key-data": encode(&leaf.key) });
    let kubeconfig = write(
        "kubeconfig.json",
        &json!({ "apiVersion": "v1", "kind": "Config", "users": [{ "name": "*", "user": user }] }),
    );
    let of_webhooks = json!({ "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": kubeconfig });
    let configuration = write(
        "admission.json",
        &json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
            "plugins": [{ "name": "MutatingAdmissionWebhook", "configuration": of_webhooks }],
        }),
    );
    let argument = format!("--admission-control-config-file={configuration}");
    (ApiServer::builder().args([argument.as_str()]).start().await, folder)
}

/// The number of sidecars that a new pod gets.
fn sidecars(cluster: &Cluster, labels: &Value) -> Result<usize, String> {
    let folder = scratch::folder("pod");
    let path = folder.path().join("pod.json");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "client", "labels": labels },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    fs::write(&path, pod.to_string()).unwrap();
    let create = ["create", "--dry-run=server", "-o", "json", "-f", path.to_str().unwrap()];
    let created: Value = serde_json::from_str(&cluster.try_kubectl(&create)?).unwrap();
    Ok(created["spec"]["initContainers"].as_array().map_or(0, Vec::len))
}

fn labelled() -> Value {
    json!({ "twofactor.fountainai.io/inject": "true" })
}

/// How many connections the webhook has rejected.
async fn rejected(admission: &OperatorProcess) -> u64 {
    let metrics = admission.admin().get("/metrics").await.body;
    let count = metrics.lines().find_map(|line| line.strip_prefix(REJECTED)).unwrap();
    count.parse().unwrap()
}

/// Calls the webhook as an API server that trusts it, with a certificate or without one.
async fn call(cluster: &Cluster, leaf: Option<&Leaf>) -> reqwest::Result<u16> {
    let path =
        format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{NAME}");
    let configuration = cluster.server.read(&path).unwrap();
    let client = &configuration["webhooks"][0]["clientConfig"];
    let port = u16::try_from(client["service"]["port"].as_u64().unwrap()).unwrap();
    let bundle = BASE64.decode(client["caBundle"].as_str().unwrap().as_bytes()).unwrap();
    let host = format!("{NAME}.{}.svc", cluster.home);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let roots = Certificate::from_pem_bundle(&bundle).unwrap();
    let mut builder =
        reqwest::Client::builder().no_proxy().tls_certs_only(roots).resolve(&host, address);
    if let Some(Leaf { certificate, key }) = leaf {
        let identity = Identity::from_pem(format!("{certificate}{key}").as_bytes());
        builder = builder.identity(identity.unwrap());
    }
    let request = builder.build().unwrap().post(format!("https://{host}:{port}/inject"));
    // An empty review is a bad request, but an answer.
    let request = request.header("content-type", "application/json").body("{}");
    Ok(request.send().await?.status().as_u16())
}

fn arguments(file: &Path) -> [&str; 4] {
    let file = file.to_str().unwrap();
    ["--webhook-client-ca-file", file, "--webhook-client-name", "kube-apiserver"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_with_the_right_certificate_is_answered_and_other_clients_are_not() {
    let (clients, others) = (Authority::new("API servers"), Authority::new("others"));
    let leaf = clients.client("kube-apiserver", "system:masters");
    let (server, _configuration) = server_with(&leaf).await;
    let cluster = Cluster::on(server, RedisServer::start().await);
    let folder = scratch::folder("clients");
    let file = folder.path().join("ca.crt");
    fs::write(&file, clients.pem()).unwrap();
    let admission = cluster.webhook(NAME, &arguments(&file)).await;
    eventually(BOUND, "a sidecar", async || match sidecars(&cluster, &labelled())? {
        1 => Ok(()),
        other => Err(format!("{other} sidecars")),
    })
    .await;
    assert_eq!(rejected(&admission).await, 0);

    assert_eq!(call(&cluster, Some(&leaf)).await.unwrap(), 400);
    let wrong = [others.client("kube-apiserver", "x"), clients.client("kubelet", "system:nodes")];
    assert!(call(&cluster, None).await.is_err(), "no certificate");
    for leaf in &wrong {
        assert!(call(&cluster, Some(leaf)).await.is_err(), "a wrong certificate");
    }
    eventually(BOUND, "all three to be counted", async || rejected(&admission).await == 3).await;
    let line =
        "connection to the webhook rejected: the client's certificate is missing or not accepted";
    let log = admission.process().output();
    assert_eq!(log.matches(line).count(), 1, "one line a minute: {log}");

    // The authority is followed. What is no authority is said, and changes nothing.
    fs::write(&file, "not PEM").unwrap();
    let warning = "failed to read the changed authority of the webhook's clients";
    admission.process().wait_for_line(warning, BOUND).await;
    assert_eq!(call(&cluster, Some(&leaf)).await.unwrap(), 400);
    fs::write(&file, others.pem()).unwrap();
    eventually(BOUND, "the other authority", async || call(&cluster, Some(&wrong[0])).await).await;
    assert!(call(&cluster, Some(&leaf)).await.is_err(), "the former authority");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_without_a_certificate_creates_no_labelled_pod_and_any_other() {
    let cluster = Cluster::on_own_server(&[]).await;
    let folder = scratch::folder("clients");
    let file = folder.path().join("ca.crt");
    fs::write(&file, Authority::new("API servers").pem()).unwrap();
    let admission = cluster.webhook(NAME, &arguments(&file)).await;
    let refusal = eventually(BOUND, "the webhook to be called", async || {
        sidecars(&cluster, &labelled()).err()
    })
    .await;
    // It says `certificate required`, or that the connection was reset, whichever it sees first.
    assert!(refusal.contains("failed to call webhook"), "{refusal}");
    eventually(BOUND, "a rejected client", async || rejected(&admission).await > 0).await;
    assert_eq!(sidecars(&cluster, &json!({ "app": "client" })), Ok(0));
    assert_eq!(admission.admin().get("/readyz").await.status, 200);
}

#[tokio::test]
async fn admission_does_not_start_with_an_authority_of_clients_that_it_cannot_read() {
    let cluster = Cluster::start().await;
    let folder = scratch::folder("clients");
    let file = folder.path().join("ca.crt");
    let start = || {
        let address = SocketAddr::from(([127, 0, 0, 1], twofactor_tests::ports::free_port()));
        OperatorProcess::admission(&cluster.admission_account(), address)
            .args(["--operator-namespace", &cluster.home])
            .args(arguments(&file))
            .launch()
    };
    for content in [None, Some(""), Some("not PEM")] {
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let admission = start();
        assert!(!admission.process().wait_exit(BOUND).await.success(), "{content:?}");
        let log = admission.process().output();
        assert!(log.contains("--webhook-client-ca-file"), "{content:?}: {log}");
    }
}
