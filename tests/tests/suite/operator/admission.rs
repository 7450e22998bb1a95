//! Tests admission as a process of its own, under its own rules: without Redis and without a
//! controller.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::{Value, json};
use twofactor_tests::operator::{OperatorBuilder, OperatorProcess};
use twofactor_tests::wait::eventually;
use twofactor_tests::{ports, scratch};

use super::certificates::trusting_from;
use crate::support::cluster::{ADMISSION_ACCOUNT, BOUND, Cluster};
use crate::support::neighbour::{CLIENT, Neighbour, SIEGES, probe};

const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// A replica of admission.
pub(crate) struct Replica {
    pub(crate) process: OperatorProcess,
    pub(crate) address: SocketAddr,
}

impl Cluster {
    /// Creates the webhook configuration of the chart, with rules that match no object.
    pub(crate) fn configure_webhook(&self) {
        let service =
            json!({ "name": "twofactor-operator", "namespace": self.home, "path": "/inject" });
        let rule = json!({ "apiGroups": ["nowhere.example"], "apiVersions": ["v1"],
            "operations": ["CREATE"], "resources": ["nothings"] });
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": "twofactor-operator" },
            "webhooks": [{ "name": "inject.twofactor.fountainai.io",
                "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": { "service": service }, "rules": [rule] }],
        });
        let folder = scratch::folder("configuration");
        let path = folder.path().join("configuration.json");
        std::fs::write(&path, configuration.to_string()).unwrap();
        let _ = self.server.kubectl(&["create", "-f", path.to_str().unwrap()]);
    }

    /// A kubeconfig of the account of admission.
    pub(crate) fn admission_account(&self) -> PathBuf {
        self.server.kubeconfig_for_service_account(&self.home, ADMISSION_ACCOUNT)
    }

    pub(crate) async fn admission(&self) -> Replica {
        self.admission_with(&self.admission_account(), &[]).await
    }

    /// A replica with a kubeconfig and more arguments.
    pub(crate) async fn admission_with(&self, kubeconfig: &Path, args: &[&str]) -> Replica {
        let port = ports::free_port();
        let process = self.admission_on(port, kubeconfig, args).start().await;
        Replica { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Starts a replica without waiting for it.
    pub(crate) fn launch_admission(&self) -> OperatorProcess {
        self.admission_on(ports::free_port(), &self.admission_account(), &[]).launch()
    }

    fn admission_on(&self, port: u16, kubeconfig: &Path, args: &[&str]) -> OperatorBuilder {
        OperatorProcess::admission(kubeconfig, SocketAddr::from(([0; 4], port)))
            .args(["--operator-namespace", &self.home])
            .args(args.iter().copied())
            .as_in_a_pod()
    }

    /// Sends the review of a labelled pod to a replica, as an API server does that trusts the
    /// caBundle, and returns the answer.
    async fn review(&self, replica: &Replica) -> Result<Value, String> {
        self.review_annotated(replica, &json!({})).await
    }

    /// The same for a pod with annotations.
    pub(crate) async fn review_annotated(
        &self,
        replica: &Replica,
        annotations: &Value,
    ) -> Result<Value, String> {
        self.review_at(replica.address, annotations).await
    }

    /// The same through another address.
    pub(crate) async fn review_at(
        &self,
        address: SocketAddr,
        annotations: &Value,
    ) -> Result<Value, String> {
        let configuration = self.server.read(&format!("{CONFIGURATION}/twofactor-operator"));
        let bundle = configuration.unwrap()["webhooks"][0]["clientConfig"]["caBundle"].take();
        let bundle = BASE64.decode(bundle.as_str().ok_or("no caBundle")?.as_bytes()).unwrap();
        let host = format!("twofactor-operator.{}.svc", self.home);
        let bundle = String::from_utf8(bundle).unwrap();
        let client = trusting_from(Some(CLIENT), &bundle, &host, address);
        let url = format!("https://{host}:{}/inject", address.port());
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "generateName": "kms-", "annotations": annotations,
                "labels": { "twofactor.fountainai.io/inject": "true" } },
            "spec": { "containers": [{ "name": "app", "image": "kms:1" }] },
        });
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": { "uid": "1", "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "operation": "CREATE", "namespace": self.namespace, "object": pod },
        });
        let request = client.post(url).header("content-type", "application/json");
        let answer = request.body(review.to_string()).send().await.map_err(|e| format!("{e:?}"))?;
        serde_json::from_str(&answer.text().await.unwrap()).map_err(|error| error.to_string())
    }

    async fn assert_admits(&self, replica: &Replica) {
        let answer = self.review(replica).await.unwrap();
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
        assert_eq!(answer["response"]["patchType"], "JSONPatch", "{answer}");
    }

    fn may(&self, verb: &str, what: &str, namespace: &str) -> bool {
        let account = format!("--as=system:serviceaccount:{}:{ADMISSION_ACCOUNT}", self.home);
        let args = ["auth", "can-i", verb, what, &account, "--namespace", namespace];
        self.server.try_kubectl(&args).is_ok()
    }
}

#[tokio::test]
async fn admission_alone_gives_labelled_pods_their_sidecar() {
    let cluster = Cluster::on_own_server(&[]).await;
    cluster.redis.kill();
    cluster.configure_webhook();
    // No controller runs in this test.
    let (first, second) = tokio::join!(cluster.admission(), cluster.admission());
    for replica in [&first, &second] {
        cluster.assert_admits(replica).await;
    }
    let _ = first.process.process().kill();
    cluster.assert_admits(&second).await;
    // A replica makes what the others need, and the caBundle is corrected.
    let secret = ["--namespace", &cluster.home, "delete", "secret", "twofactor-webhook-ca"];
    let _ = cluster.server.kubectl(&secret);
    let third = cluster.admission().await;
    eventually(BOUND, "both replicas to be trusted", async || {
        cluster.review(&second).await?;
        cluster.review(&third).await
    })
    .await;
    let log = second.process.process().output();
    assert!(!log.contains("orbidden"), "{log}");
    let metrics = second.process.admin().get("/metrics").await.body;
    assert!(metrics.contains("twofactor_admission_total"), "{metrics}");
    for of_the_controller in ["twofactor_store_up", "twofactor_leader", "twofactor_users"] {
        assert!(!metrics.contains(of_the_controller), "{of_the_controller}: {metrics}");
    }
}

#[tokio::test]
async fn a_pod_whose_sidecar_a_limit_range_would_refuse_is_refused_with_the_rule() {
    let cluster = Cluster::on_own_server(&[]).await;
    cluster.configure_webhook();
    let replica = cluster.admission().await;
    let limits = "apiVersion: v1\nkind: LimitRange\nmetadata: {name: sizes}\nspec:\n  limits:\n    - \
                  {type: Container, min: {memory: 32Mi}}\n";
    cluster.apply(limits);
    let message = eventually(BOUND, "the LimitRange to be known", async || {
        let answer = cluster.review(&replica).await.unwrap();
        answer["response"]["status"]["message"].as_str().map(str::to_owned)
    })
    .await;
    assert!(
        message.starts_with("the LimitRange \"sizes\" demands at least 32Mi of memory"),
        "{message}"
    );
    let _ = cluster.kubectl(&["delete", "limitrange", "sizes"]);
    eventually(BOUND, "the LimitRange to be forgotten", async || {
        let answer = cluster.review(&replica).await.unwrap();
        if answer["response"]["allowed"] == true { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn admission_may_read_neither_users_nor_secrets() {
    let cluster = Cluster::start().await;
    let (users, realms) =
        ("twofactorusers.twofactor.fountainai.io", "twofactorrealms.twofactor.fountainai.io");
    for (verb, what, expected) in [
        ("list", realms, true),
        ("watch", "namespaces", true),
        ("list", users, false),
        ("patch", "twofactorrealms.twofactor.fountainai.io/status", false),
        ("get", "secrets", false),
        ("list", "secrets", false),
        ("create", "secrets", false),
        ("list", "pods", false),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io/another", false),
    ] {
        assert_eq!(cluster.may(verb, what, &cluster.namespace), expected, "{verb} {what}");
    }
    for (verb, what, expected) in [
        ("get", "secrets/twofactor-webhook-ca", true),
        ("update", "secrets/twofactor-webhook-ca", true),
        ("get", "secrets/twofactor-master-key", false),
        ("get", "secrets/twofactor-redis", false),
        ("list", "secrets", false),
        ("get", "leases.coordination.k8s.io/twofactor-operator", false),
    ] {
        assert_eq!(cluster.may(verb, what, &cluster.home), expected, "{verb} {what}");
    }
}

#[tokio::test]
async fn silent_connections_of_a_neighbour_stop_neither_admission_nor_its_probes() {
    let cluster = Cluster::on_own_server(&[]).await;
    cluster.configure_webhook();
    let replica = cluster.admission().await;
    let admin = format!("0.0.0.0:{}", replica.process.admin_port());
    for count in SIEGES {
        let mut at_webhook = Neighbour::new(replica.address.port(), count);
        let mut at_admin = Neighbour::new(replica.process.admin_port(), count);
        let (mut asked, mut slowest) = (0, Duration::ZERO);
        while at_webhook.besieges().await & at_admin.besieges().await {
            for check in ["livez", "readyz"] {
                slowest = slowest.max(probe("twofactor-operator", &admin, check).await);
            }
            let began = Instant::now();
            cluster.assert_admits(&replica).await;
            slowest = slowest.max(began.elapsed());
            asked += 1;
        }
        assert!(asked > 1 && slowest < Duration::from_secs(2), "{asked}, {slowest:?}");
        println!("{count} connections: {asked} rounds, the slowest answer after {slowest:?}");
    }
    let log = replica.process.process().output();
    assert!(log.contains("connections closed, because one address opened too many"), "{log}");
}
