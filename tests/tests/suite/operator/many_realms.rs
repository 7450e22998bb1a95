//! Tests what hundreds of realms cost: what each pass asks Redis for, and that one realm that
//! cannot be filled delays no other.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use twofactor_tests::faults::{Fault, FaultProxy};
use twofactor_tests::operator::{OperatorBuilder, OperatorProcess};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user};

const LONG: Duration = Duration::from_mins(2);

/// Namespaces `realm-0`, `realm-1` and so on with one user each.
fn realms(count: usize) -> String {
    let mut manifest = String::new();
    for number in 0..count {
        let namespace = format!("realm-{number}");
        let kind = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name:";
        write!(manifest, "{kind} {namespace}\n---\n").unwrap();
        manifest.push_str(&in_namespace("carol", &namespace));
    }
    manifest
}

fn in_namespace(user: &str, namespace: &str) -> String {
    let name = format!("  name: {user}\n");
    app_user(user).replace(&name, &format!("{name}  namespace: {namespace}\n"))
}

/// An operator for all namespaces.
fn operator(cluster: &Cluster, kubeconfig: &std::path::Path) -> OperatorBuilder {
    OperatorProcess::builder(kubeconfig)
        .args(["--operator-namespace", &cluster.home])
        .env("REDIS_URL", &cluster.redis.url())
        .env("POD_NAME", "operator-0")
}

async fn records(redis: &RedisServer) -> usize {
    redis.connect().await.keys::<_, Vec<String>>("*:state").await.unwrap().len()
}

async fn wait_for_records(redis: &RedisServer, count: usize) {
    eventually(LONG, format_args!("{count} users in Redis"), async || {
        let found = records(redis).await;
        if found == count { Ok(()) } else { Err(format!("{found} are there")) }
    })
    .await;
}

async fn complete_realms(redis: &RedisServer) -> usize {
    let mut connection = redis.connect().await;
    let metas: Vec<String> = connection.keys("*:meta").await.unwrap();
    let mut complete = 0;
    for meta in metas {
        complete += usize::from(connection.hexists::<_, _, bool>(meta, "complete").await.unwrap());
    }
    complete
}

/// Waits until the commands that were called in at least three more passes are as `expected`. A
/// pass asks once for the number of keys.
async fn wait_for_passes(
    redis: &RedisServer,
    expected: impl Fn(&dyn Fn(&str) -> u64) -> Result<(), String>,
) {
    let before = redis.commands().await;
    eventually(BOUND, "passes", async || {
        let now = redis.commands().await;
        let called = |commands: &HashMap<String, u64>, name: &str| {
            commands.get(name).copied().unwrap_or_default()
        };
        let calls = |name: &str| called(&now, name) - called(&before, name);
        // A probe in the middle of a pass is repeated.
        if calls("dbsize") < 3 { Err("too few passes".to_owned()) } else { expected(&calls) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_realm_that_cannot_be_filled_costs_the_others_nothing() {
    const REALMS: usize = 200;
    const TURNS: u64 = 64;
    let cluster = Cluster::on_own_server(&[]).await;
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let operator = operator(&cluster, &kubeconfig).start().await;
    cluster.apply_anywhere(&realms(REALMS + 1));
    let redis = &cluster.redis;
    wait_for_records(redis, REALMS + 1).await;
    eventually(LONG, "all realms to be complete", async || {
        complete_realms(redis).await == REALMS + 1
    })
    .await;
    // The users' records are there before their statuses are.
    let ready = format!("twofactor_users{{ready=\"true\"}} {}", REALMS + 1);
    eventually(LONG, "all users to be ready", async || {
        operator.admin().get("/metrics").await.body.contains(&ready)
    })
    .await;

    // At rest, a pass checks two keys of 64 realms, and nothing searches Redis.
    wait_for_passes(redis, |calls| {
        let turns = TURNS * calls("dbsize");
        let found = (calls("hmget"), calls("exists"), calls("scan"));
        if found == (turns, turns, 0) { Ok(()) } else { Err(format!("{found:?}, not {turns}")) }
    })
    .await;

    // One realm's Secrets cannot be read any more, and Redis loses everything.
    proxy.set(Some(Fault::Path("/namespaces/realm-7/secrets", 500)));
    redis.flush_all().await;
    eventually(LONG, "the other realms", async || complete_realms(redis).await == REALMS).await;
    // In addition, the broken realm is checked when its delay is over, and once more when its
    // refill begins, which also reads the number of keys and the size of its set.
    wait_for_passes(redis, |calls| {
        let refills = calls("scard");
        let passes = calls("dbsize") - refills;
        let (least, most) = (TURNS * passes, TURNS * passes + 2 * refills + 1);
        let found = (calls("hmget"), calls("scan"));
        let is_right = refills <= passes && (least..=most).contains(&found.0) && found.1 == 0;
        if is_right {
            Ok(())
        } else {
            Err(format!("{found:?}, {refills} refills, {passes} passes"))
        }
    })
    .await;

    // Users in a new realm and in old realms do not wait for it. The machine is busy with other
    // tests, so the bound is that of the fastest.
    let mut fastest = BOUND;
    let new_users = (0..4).map(|number| in_namespace("dora", &format!("realm-{number}")));
    for manifest in [realms(REALMS + 2)].into_iter().chain(new_users) {
        let before = records(redis).await;
        cluster.apply_anywhere(&manifest);
        let began = Instant::now();
        eventually(BOUND, "the new user", async || records(redis).await == before + 1).await;
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_millis(200), "{fastest:?}");
    // A deletion in the realm that cannot be filled takes effect too.
    proxy.set(None);
    wait_for_records(redis, REALMS + 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_takes_effect_while_the_realm_is_being_filled() {
    let cluster = Cluster::start().await;
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let _operator = cluster.operator_with(&kubeconfig).start().await;
    cluster.apply(&[app_user("carol"), app_user("dora")].concat());
    cluster.wait_ready("carol").await;
    cluster.wait_ready("dora").await;
    // The list of Secrets is not answered, so the refill does not end.
    let secrets = format!("/namespaces/{}/secrets?", cluster.namespace);
    let secrets: &'static str = Box::leak(secrets.into_boxed_str());
    proxy.set(Some(Fault::Held(secrets)));
    let meta: Vec<String> = cluster.redis.connect().await.keys("*:meta").await.unwrap();
    let _: () = cluster.redis.ask(&["DEL", &meta[0]]).await;
    eventually(BOUND, "the refill to read Secrets", async || proxy.hits() > 0).await;
    let _ = cluster.kubectl(&["delete", "tfu", "carol", "--wait=false"]);
    let began = Instant::now();
    eventually(BOUND, "carol to be removed", async || {
        cluster.user_keys().await.iter().filter(|key| key.ends_with(":rec")).count() == 1
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    proxy.set(None);
    cluster.wait_ready("dora").await;
}
