//! Brings about causes that Redis, its clock and the operator's own Secrets have.

use data_encoding::BASE64;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::{Map, Value, json};
use twofactor_core::time::UnixMillis;
use twofactor_operator::testing::certificates::SECRET;
use twofactor_operator::testing::{Authorities, Lifetimes};
use twofactor_store::clock::Clock;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::monitoring::alarms::Alarms;
use crate::monitoring::observed::{Observed, of_system};
use crate::support::cluster::{BOUND, app_user};

/// More connections than the programs open and close meanwhile.
const MANY_CLIENTS: usize = 30;
const MEBIBYTE: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_fire_about_a_stopped_controller_a_full_redis_and_what_the_operator_cannot_use() {
    let redis = RedisServer::builder().with_movable_clock();
    let system = Observed::start_with(redis, Alarms::start).await;
    let (alarms, cluster) = (&system.alarms, &system.cluster);
    let kill = async || {
        let _ = system.controller.process().kill();
    };
    alarms.fire(&["TwoFactorControllerAbsent", "TwoFactorHeartbeatOld"], kill).await;

    let behind = async |by: u64| {
        cluster.redis.clock().set_unix_millis(Clock::System.now().millis() - 1000 * by).await;
        let controller = cluster.operator().clock_behind_by(by).start().await;
        system.observe(&[of_system("controller", controller.admin_port())]);
        controller
    };
    let mut late = None;
    alarms.fire(&["TwoFactorChecksStalled"], async || late = Some(behind(180).await)).await;
    alarms.wait_firing("TwoFactorClockDiffers").await;
    let _ = late.unwrap().process().kill();

    let mut connection = cluster.redis.connect().await;
    cluster.redis.clock().set_unix_millis(Clock::System.now().millis() + 60_000).await;
    fill(&mut connection).await;
    set(&mut connection, "appendfsync", "everysec").await;
    overwrite_names_of_users(&mut connection).await;
    // The leader looks at these each minute, and when it begins to lead.
    let controller = cluster.operator().start().await;
    let observe = async || {
        system.observe(&[of_system("controller", controller.admin_port())]);
    };
    let all = [
        "TwoFactorClockDiffers",
        "TwoFactorRedisFull",
        "TwoFactorRedisMemoryHigh",
        "TwoFactorRedisWeak",
    ];
    // No comparison of this controller has succeeded.
    let failed = "twofactor_sweeps_total{result=\"error\"} > 0 \
                  unless ignoring (result) twofactor_sweeps_total{result=\"success\"} > 0";
    let observe = async || alarms.fire(&all, observe).await;
    alarms.stall("TwoFactorComparisonsStalled", failed, observe).await;
    let last = "twofactor_last_pass_timestamp_seconds{pass=\"comparison\"}";
    let stood = alarms.prometheus.query(last).await.unwrap()[0]["value"][1].clone();
    delete_names_of_users(&mut connection).await;
    eventually(BOUND, "a comparison after what the runbook says", async || {
        let found = alarms.prometheus.query(last).await?;
        if found[0]["value"][1] == stood { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;

    let mut many = Vec::new();
    let limit = async || {
        for _ in 0..MANY_CLIENTS {
            many.push(cluster.redis.connect().await);
        }
        let clients = info(&mut connection, "clients", "connected_clients:").await;
        set(&mut connection, "maxclients", &(clients + 1).to_string()).await;
    };
    alarms.fire(&["TwoFactorRedisClientsHigh"], limit).await;
    set(&mut connection, "maxclients", "1000").await;
    drop(many);
    let evict = async || {
        set(&mut connection, "maxmemory-policy", "allkeys-random").await;
        for number in 0..8 {
            write(&mut connection, &format!("more-{number}")).await;
        }
    };
    alarms.fire(&["TwoFactorRedisEvicts"], evict).await;
    let lose = async || {
        set(&mut connection, "maxmemory-policy", "noeviction").await;
        set(&mut connection, "maxmemory", "1").await;
        let () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
        cluster.apply(&app_user("erin"));
    };
    let all = ["TwoFactorRealmsFilling", "TwoFactorUsersParked", "TwoFactorRefillsFail"];
    alarms.fire(&all, lose).await;
    let _ = controller.process().kill();

    let damage = json!({ "data": { "master-key": "AAAA" } }).to_string();
    let blocked = async || {
        in_home(
            &system,
            &["patch", "secret", "twofactor-master-key", "--type=merge", "-p", &damage],
        );
        let controller = cluster.operator().start().await;
        system.observe(&[of_system("controller", controller.admin_port())]);
        controller
    };
    let mut kept = None;
    alarms.fire(&["TwoFactorLeaderBlocked"], async || kept = Some(blocked().await)).await;
    certificates(&system).await;
    alarms.assert_fire_in_time();
}

/// An authority that is not renewed, because the right to write it is missing, and a webhook that
/// no API server knows.
async fn certificates(system: &Observed) {
    let (alarms, cluster) = (&system.alarms, &system.cluster);
    let rules = json!([{ "op": "replace", "path": "/rules/0/verbs", "value": ["get"] }]);
    let role = ["patch", "role", "twofactor-operator-admission", "--type=json", "-p"];
    in_home(system, &[&role[..], &[&rules.to_string()]].concat());
    let patch = json!({ "data": old_authority() }).to_string();
    in_home(system, &["patch", "secret", SECRET, "--type=merge", "-p", &patch]);
    let configuration = "mutatingwebhookconfiguration/twofactor-operator";
    let _ = cluster.server.kubectl(&["delete", configuration]);
    let _ = system.admission.process.process().kill();
    let admission = cluster.launch_admission();
    let observe = async || system.observe(&[of_system("admission", admission.admin_port())]);
    alarms.fire(&["TwoFactorCertificateEnds", "TwoFactorWebhookNotTrusted"], observe).await;
}

/// The data of a Secret with an authority that has used up five sixths of its year.
fn old_authority() -> Map<String, Value> {
    let lifetimes = Lifetimes::default();
    let age = lifetimes.authority / 6 * 5;
    let begin = UnixMillis::from_seconds(Clock::System.now().seconds() - age.as_secs());
    let authorities = Authorities::start(Vec::new(), &lifetimes, begin).unwrap();
    let encoded = |value: Vec<u8>| Value::from(BASE64.encode(&value));
    authorities.data().into_iter().map(|(key, value)| (key, encoded(value.0))).collect()
}

fn in_home(system: &Observed, args: &[&str]) {
    let home = ["--namespace", &system.cluster.home];
    let _ = system.cluster.server.kubectl(&[&home, args].concat());
}

/// Puts a text in the place of the set with the names of the users.
async fn overwrite_names_of_users(redis: &mut MultiplexedConnection) {
    let sets: Vec<String> = redis.keys("*:users").await.unwrap();
    assert!(!sets.is_empty());
    for set in sets {
        let () = redis.set(set, "no set").await.unwrap();
    }
}

/// Deletes what was put there, and what says that the realm is complete.
async fn delete_names_of_users(redis: &mut MultiplexedConnection) {
    for pattern in ["*:users", "*:meta"] {
        let keys: Vec<String> = redis.keys(pattern).await.unwrap();
        let () = redis.del(keys).await.unwrap();
    }
}

/// Fills Redis, and lowers its limit to slightly more than it uses.
async fn fill(redis: &mut MultiplexedConnection) {
    for number in 0..40 {
        write(redis, &format!("ballast-{number}")).await;
    }
    let used = info(redis, "memory", "used_memory:").await;
    set(redis, "maxmemory", &(used * 100 / 98).to_string()).await;
}

async fn write(redis: &mut MultiplexedConnection, key: &str) {
    let value = "x".repeat(MEBIBYTE);
    let () = redis::cmd("SET").arg(key).arg(value).query_async(redis).await.unwrap();
}

async fn set(redis: &mut MultiplexedConnection, setting: &str, value: &str) {
    let mut command = redis::cmd("CONFIG");
    let () = command.arg("SET").arg(setting).arg(value).query_async(redis).await.unwrap();
}

/// A number of a section of `INFO`.
async fn info(redis: &mut MultiplexedConnection, section: &str, name: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg(section).query_async(redis).await.unwrap();
    let value = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    value.trim().parse().unwrap()
}
