//! Tests that only one of two operators with the same installation writes to a Redis: the original
//! goes on beside a copy of its cluster, and the copy takes over when it should.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::AsyncCommands;
use serde_json::Value;
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::runbook::Runbook;
use twofactor_tests::wait::{eventually, eventually_every};

use super::DISASTERS;
use crate::support::cluster::{BOUND, Cluster, app_user};

const LEASE: &str = "twofactor-operator";
const MARK: &str = "twofactor.fountainai.io/redis-owner";
/// Timeout for what happens after a minute without a sign of life.
const AFTER_A_MINUTE: Duration = Duration::from_mins(2);

/// The mark of the owner in Redis: lineage and number.
async fn mark(redis: &RedisServer) -> Option<(String, u64)> {
    let mut connection = redis.connect().await;
    let keys: Vec<String> = connection.keys("*{owner}*").await.unwrap();
    let mark: String = connection.get(keys.first()?).await.unwrap();
    let (lineage, number) = mark.split_once(' ').unwrap();
    Some((lineage.to_owned(), number.parse().unwrap()))
}

/// What services use: all records, and the users of Redis.
async fn published(redis: &RedisServer) -> (BTreeMap<String, Vec<u8>>, Vec<String>) {
    let mut connection = redis.connect().await;
    let keys: Vec<String> = connection.keys("*:rec").await.unwrap();
    let mut records = BTreeMap::new();
    for key in keys {
        let record: Vec<u8> = connection.get(&key).await.unwrap();
        records.insert(key, record);
    }
    (records, redis.ask(&["ACL", "LIST"]).await)
}

async fn wait_blocked(operator: &OperatorProcess, blocked: bool) {
    let metric = format!("twofactor_leader_blocked{{need=\"redis-owner\"}} {}", u8::from(blocked));
    eventually_every(Duration::from_millis(200), AFTER_A_MINUTE, &metric, async || {
        let metrics = operator.admin().get("/metrics").await.body;
        if metrics.contains(&metric) { Ok(()) } else { Err(operator.process().output()) }
    })
    .await;
}

fn lease(server: &ApiServer, home: &str) -> Value {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{home}/leases/{LEASE}");
    server.read(&path).unwrap()
}

/// Applies a user on the copy of a cluster.
fn apply_on(copy: &ApiServer, cluster: &Cluster, user: &str) {
    let folder = twofactor_tests::scratch::folder("apply");
    let path = folder.path().join("manifest.yaml");
    std::fs::write(&path, app_user(user)).unwrap();
    let path = path.to_str().unwrap();
    let _ = copy.kubectl(&["apply", "--namespace", &cluster.namespace, "-f", path]);
}

/// Waits for a reason of the condition `Ready` of a user on the copy of a cluster.
async fn wait_on(copy: &ApiServer, cluster: &Cluster, user: &str, reason: &str) {
    let path = format!(
        "/apis/twofactor.fountainai.io/v1alpha1/namespaces/{}/twofactorusers/{user}",
        cluster.namespace
    );
    eventually(BOUND, format_args!("{user} with {reason}"), async || {
        let user = copy.read(&path).ok_or_else(|| "no user".to_owned())?;
        let conditions = user["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().any(|it| it["type"] == "Ready" && it["reason"] == reason);
        if found { Ok(()) } else { Err(user["status"].to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_started_beside_the_original_writes_nothing_until_it_takes_over_on_request() {
    let cluster = Cluster::on_own_server(&[]).await;
    let original = cluster.operator().start().await;
    let _ = cluster.saved_user("carol").await;
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;

    let copy = cluster.server.start_copy().await;
    // Since then, the original has shown that it lives, and has got a user that the copy does not
    // know, and would remove.
    let (lineage, then) = mark(&cluster.redis).await.unwrap();
    assert!(
        lease(&copy, &cluster.home)["metadata"]["annotations"][MARK]
            .as_str()
            .unwrap()
            .starts_with(&lineage)
    );
    let _ = cluster.saved_user("dora").await;
    let _ = cluster.kubectl(&["delete", "tfu", "carol"]);
    eventually(BOUND, "signs of life", async || {
        mark(&cluster.redis).await.is_some_and(|(_, number)| number > then + 1)
    })
    .await;
    cluster.apply(&app_user("erin"));
    cluster.wait_ready("erin").await;
    let before = published(&cluster.redis).await;

    let account = copy.kubeconfig_for_service_account(&cluster.home, "twofactor-operator");
    let second = cluster.operator_with(&account).start().await;
    wait_blocked(&second, true).await;
    let log = second.process().output();
    assert!(
        log.contains("another operator owns the data in Redis") && log.contains(&lineage),
        "{log}"
    );
    apply_on(&copy, &cluster, "frank");
    wait_on(&copy, &cluster, "frank", "RedisOwnedByAnother").await;
    let events = copy.kubectl(&["get", "events", "--namespace", &cluster.home, "--output=json"]);
    assert!(events.contains("RedisOwnedByAnother") && events.contains(LEASE), "{events}");
    // It has had time for more than a pass of each of its tasks.
    let (_, seen) = mark(&cluster.redis).await.unwrap();
    eventually(BOUND, "more signs of life", async || {
        mark(&cluster.redis).await.is_some_and(|(_, number)| number > seen + 1)
    })
    .await;
    assert_eq!(published(&cluster.redis).await, before, "the copy has written nothing");
    original.process().assert_running();
    sidecar.wait_accepted("dora", &cluster.seed("dora")).await;
    cluster.apply(&app_user("grace"));
    cluster.wait_ready("grace").await;

    // A restart of the original is none of its business.
    drop(original);
    let original = cluster.operator().start().await;
    cluster.apply(&app_user("heidi"));
    cluster.wait_ready("heidi").await;
    assert_eq!(mark(&cluster.redis).await.unwrap().0, lineage);
    // After a loss of everything, the original is the owner again.
    cluster.redis.flush_all().await;
    sidecar.wait_accepted("heidi", &cluster.seed("heidi")).await;
    eventually(BOUND, "the mark to come back", async || mark(&cluster.redis).await).await;
    assert_eq!(mark(&cluster.redis).await.unwrap().0, lineage);

    // The administrator lets the copy take over, while the original cannot be reached.
    let shell = cluster.shell(&copy.kubeconfig_path());
    for block in Runbook::read(DISASTERS).blocks("A copy beside the original") {
        shell.run(block);
    }
    wait_blocked(&second, false).await;
    wait_on(&copy, &cluster, "frank", "Ready").await;
    eventually(BOUND, "the original to end", async || original.process().try_exit()).await;
    let log = original.process().output();
    assert!(log.contains("has taken over the data in Redis"), "{log}");
    assert_ne!(mark(&cluster.redis).await.unwrap().0, lineage);
    let original = cluster.operator().start().await;
    wait_blocked(&original, true).await;
    second.process().assert_running();
}

#[tokio::test]
async fn an_owner_that_shows_no_life_for_a_minute_is_replaced() {
    let cluster = Cluster::start().await;
    let key = {
        let operator = cluster.operator().start().await;
        let _ = cluster.saved_user("carol").await;
        drop(operator);
        let keys: Vec<String> = cluster.redis.ask(&["KEYS", "*{owner}*"]).await;
        keys[0].clone()
    };
    // Another cluster has owned the data, and is gone.
    let () = cluster.redis.ask(&["SET", &key, "0011223344556677 5"]).await;
    let operator = cluster.operator().start().await;
    wait_blocked(&operator, true).await;
    assert_eq!(mark(&cluster.redis).await, Some(("0011223344556677".to_owned(), 5)));
    // It is not gone.
    let () = cluster.redis.ask(&["SET", &key, "0011223344556677 6"]).await;
    wait_blocked(&operator, false).await;
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    let (lineage, _) = mark(&cluster.redis).await.unwrap();
    assert_ne!(lineage, "0011223344556677");
    let lease = lease(&cluster.server, &cluster.home);
    assert!(lease["metadata"]["annotations"][MARK].as_str().unwrap().starts_with(&lineage));
}
