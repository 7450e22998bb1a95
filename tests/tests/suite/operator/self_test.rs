//! Tests what `helm test` says and leaves behind, with the rights that the chart gives it. No pod
//! runs here, so each test ends at the pod without a sidecar; the end-to-end tests run to the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::process::{Launch, run};
use twofactor_tests::tools;

use super::admission::Replica;
use crate::support::cluster::Cluster;

const NAMESPACE: &str = "twofactor-test";
/// Longer than what is waited for, shorter than the test's own time-outs.
const BOUND: Duration = Duration::from_mins(1);

impl Cluster {
    /// Creates what the chart's hooks create before the pod of the test, and returns the access of
    /// its account.
    fn prepare_self_test(&self) -> PathBuf {
        let chart = format!("{}/../charts/fountainai-2fa", env!("CARGO_MANIFEST_DIR"));
        let values = format!("test.namespace={NAMESPACE}");
        let template = run(
            tools::find("helm"),
            &["template", "x", &chart, "--namespace", &self.home, "--set", &values]
                .into_iter()
                .chain(["--show-only=templates/tests/test.yaml"])
                .collect::<Vec<_>>(),
        );
        let objects = template.split("\n---\n").filter(|text| !text.contains("kind: Pod\n"));
        self.apply_anywhere(&objects.collect::<Vec<_>>().join("\n---\n"));
        self.server.kubeconfig_for_service_account(&self.home, "twofactor-operator-test")
    }

    /// Runs the test to its end, and returns whether it passed, and what it said.
    async fn self_test(
        &self,
        kubeconfig: &Path,
        controller: &OperatorProcess,
        admission: &Replica,
    ) -> (bool, String) {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let process = Launch::new(tools::project_binary("twofactor-operator"))
            .isolated()
            .env("KUBECONFIG", kubeconfig)
            .args(["self-test", "--namespace", NAMESPACE])
            .args(["--controller".to_owned(), at(controller.admin_port())])
            .args(["--admission".to_owned(), at(admission.process.admin_port())])
            .start();
        let status = process.wait_exit(BOUND).await;
        (status.success(), process.output())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_test_says_that_seeds_are_held_gets_one_and_removes_what_it_made() {
    let cluster = Cluster::on_own_server(&[]).await;
    cluster.configure_webhook();
    let account = cluster.prepare_self_test();
    let users = ["--namespace", NAMESPACE];
    let operator = || cluster.operator().args(users);
    let holding = operator().args(["--hold-new-seeds"]);
    let (admission, first) = tokio::join!(cluster.admission(), holding.start());
    let held = "ok: new seeds are held (operator.holdNewSeeds): users without a Secret wait for it";
    let findings = [
        "ok: one of 1 replicas of the controller leads",
        "ok: Redis answers the leader",
        "ok: the API server trusts 1 replicas of the webhook",
        "ok: a user becomes ready (",
    ];
    // The API server of this test calls no webhook.
    let failure = "FAILED: the webhook gives the pod a sidecar: it has none: did the API server call the webhook?";
    let mut operators = vec![first];
    for is_held in [true, false] {
        if !is_held {
            operators.clear();
            operators.push(operator().start().await);
        }
        let (passed, said) = cluster.self_test(&account, &operators[0], &admission).await;
        assert!(!passed, "{said}");
        for finding in findings.iter().chain([&failure]) {
            assert!(said.contains(finding), "{finding}: {said}");
        }
        assert_eq!(said.contains(held), is_held, "{said}");
        let left = ["get", "pods,tfu", "--namespace", NAMESPACE, "--output=name"];
        assert_eq!(cluster.server.kubectl(&left), "");
    }
}
