//! Tests that the operator reads only what it needs: Secrets that have changed, and no large
//! objects of the tenants.

use std::fs;
use std::time::Duration;

use twofactor_tests::faults::FaultProxy;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::wait::{eventually, eventually_every};

use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user};

const SEED: &str = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP";

async fn metrics(operator: &OperatorProcess) -> String {
    operator.admin().get("/metrics").await.body
}

/// Waits until the operator has reconciled at least this number of users, and none is queued.
async fn wait_reconciled(operator: &OperatorProcess, users: usize) {
    eventually(BOUND, "all users to be reconciled", async || {
        let metrics = metrics(operator).await;
        let value = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<usize>().ok()).unwrap_or_default()
        };
        let reconciled = value(
            "controller_runtime_reconcile_total{controller=\"twofactoruser\",result=\"success\"}",
        );
        let queued = value("workqueue_depth{name=\"twofactoruser\"}");
        if reconciled >= users && queued == 0 {
            Ok(())
        } else {
            Err(format!("{reconciled} are reconciled, {queued} are queued"))
        }
    })
    .await;
}

fn is_read_of_a_users_secret(request: &str) -> bool {
    request.starts_with("GET") && request.contains("-totp")
}

/// The maximum memory of a process so far, in MiB.
fn peak_mebibytes(operator: &OperatorProcess) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", operator.process().id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// Waits until the operator has repaired the Secret whose seed was edited, and serves the seed.
async fn wait_followed(cluster: &Cluster, sidecar: &Sidecar, user: &str) {
    eventually(BOUND, format_args!("the URI of {user} to follow"), async || {
        let uri = cluster.secret(&format!("{user}-totp"), "otpauth-uri")?;
        String::from_utf8(uri).unwrap().contains(SEED).then_some(())
    })
    .await;
    let pause = Duration::from_millis(100);
    eventually_every(pause, BOUND, format_args!("a code of {user} to be accepted"), async || {
        let reply = sidecar.verify_seed(user, SEED).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_reads_only_the_secrets_that_have_changed() {
    let cluster = Cluster::start().await;
    let first = cluster.operator().start().await;
    let names = ["carol", "dora", "erin", "frank"];
    cluster.apply(&names.map(app_user).concat());
    for name in names {
        cluster.wait_ready(name).await;
    }
    let rotated = "twofactor.fountainai.io/rotate=1";
    let _ = cluster.kubectl(&["annotate", "tfu", "erin", rotated]);
    eventually(BOUND, "the rotation", async || {
        cluster.get("tfu", "erin").is_some_and(|user| user["status"]["rotated"] == "1")
    })
    .await;
    drop(first);
    let patch = format!(r#"{{"stringData":{{"secret":"{SEED}"}}}}"#);
    let _ = cluster.kubectl(&["patch", "secret", "dora-totp", "-p", &patch]);
    let _ = cluster.kubectl(&["delete", "secret", "frank-totp"]);

    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let second = cluster.operator_with(&kubeconfig).start().await;
    wait_reconciled(&second, names.len()).await;
    assert_eq!(proxy.count(is_read_of_a_users_secret), 2, "the changed and the deleted one");
    let sidecar = cluster.sidecar().await;
    wait_followed(&cluster, &sidecar, "dora").await;
    eventually(BOUND, "the Secret to be restored", async || cluster.get("secret", "frank-totp"))
        .await;

    // A change after the start is followed, and the annotation of another program is no change.
    let _ = cluster.kubectl(&["annotate", "tfu", "carol", "example.org/note=1"]);
    let patch = format!(r#"{{"stringData":{{"secret":"{SEED}"}}}}"#);
    let _ = cluster.kubectl(&["patch", "secret", "carol-totp", "-p", &patch]);
    wait_followed(&cluster, &sidecar, "carol").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_another_master_key_does_not_read_all_secrets_at_once() {
    let cluster = Cluster::start().await;
    let first = cluster.operator().start().await;
    let names = ["carol", "dora", "erin", "frank"];
    cluster.apply(&names.map(app_user).concat());
    for name in names {
        cluster.wait_ready(name).await;
    }
    drop(first);
    let old = cluster.master_key();
    let new = data_encoding::BASE64.encode(&[42; 32]);
    let keys = serde_json::json!({ "master-key": new, "previous-master-key": old });
    cluster.restore_master_key(&keys);
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let second = cluster.operator_with(&kubeconfig).start().await;
    wait_reconciled(&second, names.len()).await;
    // Their proofs are made again within half an hour; one may be due at once.
    assert!(proxy.count(is_read_of_a_users_secret) <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_realm_beside_large_labelled_secrets_is_filled_by_reading_its_own_by_name() {
    let cluster = Cluster::start().await;
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let _operator = cluster.operator_with(&kubeconfig).start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let large = "x".repeat(700_000);
    for number in 0..13 {
        let manifest = format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: large-{number}\n  labels:\n    \
             app.kubernetes.io/managed-by: twofactor-operator\nstringData:\n  large: {large}\n"
        );
        cluster.try_apply(&manifest, &["--server-side"]).unwrap();
    }
    let before = proxy.count(is_read_of_a_users_secret);
    let sidecar = cluster.sidecar().await;
    cluster.redis.flush_all().await;
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;
    eventually(Duration::from_secs(5), "the Secret to be read by name", async || {
        proxy.count(is_read_of_a_users_secret) > before
    })
    .await;
}

#[tokio::test]
async fn annotations_of_others_cost_the_operator_one_page_of_memory() {
    const USERS: usize = 200;
    let cluster = Cluster::start().await;
    let names: Vec<String> = (0..USERS).map(|number| format!("user{number:03}")).collect();
    cluster.apply(&names.iter().map(|name| app_user(name)).collect::<String>());
    let operator = cluster.operator().start().await;
    wait_reconciled(&operator, USERS).await;
    drop(operator);
    let operator = cluster.operator().start().await;
    wait_reconciled(&operator, USERS).await;
    let without = peak_mebibytes(&operator);
    drop(operator);

    // 50 MB in all.
    let note = "x".repeat(250_000);
    for names in names.chunks(20) {
        let annotated: String = names
            .iter()
            .map(|name| {
                app_user(name).replace(
                    "\nspec:",
                    &format!("\n  annotations: {{example.org/note: {note}}}\nspec:"),
                )
            })
            .collect();
        cluster.try_apply(&annotated, &["--server-side", "--force-conflicts"]).unwrap();
    }
    let operator = cluster.operator().start().await;
    wait_reconciled(&operator, USERS).await;
    let with = peak_mebibytes(&operator);
    assert!(with < without + 32, "{with} MiB with annotations, {without} MiB without");
}
