//! Counts what an idle installation asks of the API server, process by process, and tests what it
//! does without the watches that replace reads.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::faults::FaultProxy;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{ADMISSION_ACCOUNT, BOUND, Cluster, app_user};

const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/twofactor-operator";

/// What a process has asked so far.
#[derive(Clone, Copy, Debug)]
struct Asked {
    watches: usize,
    leases_read: usize,
    /// Reads of anything else.
    reads: usize,
    leases_written: usize,
    /// Writes of anything else.
    writes: usize,
}

impl Asked {
    fn of(proxy: &FaultProxy) -> Self {
        let is_read = |request: &str| request.starts_with("GET");
        let is_watch = |request: &str| is_read(request) && request.contains("watch=true");
        let of_lease = |request: &str| request.contains("/leases");
        Self {
            watches: proxy.count(is_watch),
            leases_read: proxy.count(|request| is_read(request) && of_lease(request)),
            reads: proxy
                .count(|request| is_read(request) && !is_watch(request) && !of_lease(request)),
            leases_written: proxy.count(|request| !is_read(request) && of_lease(request)),
            writes: proxy.count(|request| !is_read(request) && !of_lease(request)),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            watches: self.watches - before.watches,
            leases_read: self.leases_read - before.leases_read,
            reads: self.reads - before.reads,
            leases_written: self.leases_written - before.leases_written,
            writes: self.writes - before.writes,
        }
    }
}

/// A replica of the controller that follows the password in its Secret.
async fn controller(cluster: &Cluster, kubeconfig: &Path, name: &str) -> OperatorProcess {
    let url = format!("redis://127.0.0.1:{}", cluster.redis.port());
    let operator = cluster.operator_with(kubeconfig).env("POD_NAME", name).env("REDIS_URL", &url);
    operator.args(["--redis-password-secret", "twofactor-redis"]).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_installation_renews_its_lease_and_watches_and_reads_almost_nothing() {
    let redis = RedisServer::builder().password("first").start().await;
    let cluster = Cluster::on_own_server_with(redis, &[]).await;
    cluster.configure_webhook();
    cluster.secret_in_home("twofactor-redis", "password", "first");
    let mut proxies = Vec::new();
    for _ in 0..3 {
        proxies.push(FaultProxy::start(&cluster.server).await);
    }
    let through =
        |number: usize, kubeconfig: &Path| proxies[number].kubeconfig(&cluster.server, kubeconfig);
    let leader = controller(&cluster, &through(0, &cluster.kubeconfig), "first").await;
    eventually(BOUND, "a leader", async || {
        leader.admin().get("/metrics").await.body.contains("\ntwofactor_leader 1\n")
    })
    .await;
    let waiting = controller(&cluster, &through(1, &cluster.kubeconfig), "second").await;
    let admission = through(2, &cluster.admission_account());
    let admission = cluster.admission_with(&admission, &[]).await;
    cluster.apply(&[app_user("carol"), app_user("dora")].concat());
    cluster.wait_ready("carol").await;
    cluster.wait_ready("dora").await;

    // A renewal every 3 s is the clock of this test.
    let renewals = || Asked::of(&proxies[0]).leases_written;
    let renewed = async |count: usize| {
        let end = renewals() + count;
        eventually(BOUND * 4, "renewals of the Lease", async || renewals() >= end).await;
    };
    renewed(5).await;
    let all = || [0, 1, 2].map(|number| Asked::of(&proxies[number]));
    let before = all();
    renewed(10).await;
    let after = all();
    let [of_leader, of_waiting, of_admission] =
        [0, 1, 2].map(|number| after[number].since(before[number]));
    println!("in 30 s: leader {of_leader:?}\nwaiting {of_waiting:?}\nadmission {of_admission:?}");
    // Each watch begins again every 25 s.
    assert!(of_leader.watches <= 20, "{of_leader:?}");
    assert!(of_leader.leases_read == 0 && of_leader.leases_written <= 12, "{of_leader:?}");
    assert!(of_leader.reads <= 4 && of_leader.writes == 0, "{of_leader:?}");
    assert!(of_waiting.watches <= 6 && of_waiting.leases_read <= 22, "{of_waiting:?}");
    assert_eq!((of_waiting.reads, of_waiting.writes, of_waiting.leases_written), (0, 0, 0));
    assert!(of_admission.watches <= 12 && of_admission.reads <= 4, "{of_admission:?}");
    assert_eq!((of_admission.writes, of_admission.leases_read), (0, 0), "{of_admission:?}");
    for process in [&leader, &waiting, &admission.process] {
        assert!(!process.process().output().contains("orbidden"));
    }
}

impl Cluster {
    fn bundle(&self) -> Option<Value> {
        let mut configuration = self.server.read(CONFIGURATION)?;
        let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"].take();
        (!bundle.is_null()).then_some(bundle)
    }

    fn remove_bundle(&self) {
        let patch = r#"[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]"#;
        let patch = ["--type=json", "-p", patch];
        let configuration = ["patch", "mutatingwebhookconfiguration", "twofactor-operator"];
        let _ = self.server.kubectl(&[&configuration[..], &patch].concat());
    }
}

#[tokio::test]
async fn admission_that_may_not_watch_its_objects_reads_them_until_it_may() {
    let cluster = Cluster::on_own_server(&[]).await;
    cluster.configure_webhook();
    let allow = |kind: &str, rule: &str, verbs: &[&str]| {
        let verbs_of = format!("/rules/{rule}/verbs");
        let operations = json!([{ "op": "replace", "path": verbs_of, "value": verbs }]).to_string();
        let arguments = ["patch", kind, ADMISSION_ACCOUNT, "--type=json", "-p", &operations];
        let _ = cluster.in_home(&arguments);
    };
    allow("role", "0", &["get", "update"]);
    allow("clusterrole", "3", &["get", "patch"]);
    let proxy = FaultProxy::start(&cluster.server).await;
    let account = proxy.kubeconfig(&cluster.server, &cluster.admission_account());
    let admission = cluster.admission_with(&account, &[]).await;
    let process = admission.process.process();
    for resource in ["secrets", "mutatingwebhookconfigurations"] {
        eventually(BOUND, "the refused watch to be logged", async || {
            let log = process.output();
            let is_it = |line: &&str| {
                line.contains("watch of one object forbidden") && line.contains(resource)
            };
            let lines = log.lines().filter(is_it).count();
            assert!(lines <= 1, "{log}");
            lines == 1
        })
        .await;
    }
    cluster.remove_bundle();
    eventually(BOUND, "the bundle", async || cluster.bundle()).await;
    let asked = proxy.count(|request| request.contains("fieldSelector="));
    assert!(asked <= 30, "{asked} requests to watch, which are refused, in seconds");
    allow("role", "0", &["get", "list", "watch", "update"]);
    allow("clusterrole", "3", &["get", "list", "watch", "patch"]);
    let sign = "twofactor_watch_sign_age_seconds{resource=\"mutatingwebhookconfigurations\"} ";
    eventually(BOUND, "the watch", async || {
        let metrics = admission.process.admin().get("/metrics").await.body;
        let age = metrics.lines().find_map(|line| line.strip_prefix(sign)).map(str::to_owned);
        age.filter(|age| age.parse::<f64>().is_ok_and(|age| age < 4.0))
    })
    .await;
    cluster.remove_bundle();
    eventually(BOUND, "the bundle", async || cluster.bundle()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_bundle_is_corrected_although_the_watches_of_admission_have_died_in_silence() {
    let cluster = Cluster::on_own_server(&[]).await;
    cluster.configure_webhook();
    let proxy = FaultProxy::start(&cluster.server).await;
    let account = proxy.kubeconfig(&cluster.server, &cluster.admission_account());
    let _admission = cluster.admission_with(&account, &[]).await;
    proxy.silence();
    cluster.remove_bundle();
    eventually(Duration::from_secs(100), "the bundle", async || cluster.bundle()).await;
}
