//! Tests the operator and its services on Redis with TLS, behind Sentinel and as a Cluster.

use std::fs;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use twofactor_tests::faults::{Fault, FaultProxy};
use twofactor_tests::redis::cluster::RedisCluster;
use twofactor_tests::redis::sentinel::RedisSentinels;
use twofactor_tests::redis::{AppendFsync, RedisServer, Tls};
use twofactor_tests::scratch;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user, code_of};

/// Seven digits are never a code of a user with six; the answer shows that there was a decision.
const WRONG: &str = "0000000";

#[tokio::test]
async fn services_get_the_certificate_authority_of_a_redis_with_tls() {
    let tls = Tls::new();
    let cluster = Cluster::with_redis(RedisServer::builder().tls(tls.clone()).start().await).await;
    let folder = scratch::folder("authority");
    let file = folder.path().join("ca.crt");
    fs::write(&file, &tls.authority).unwrap();
    let operator = cluster.operator().env("REDIS_CA_FILE", file.to_str().unwrap()).start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    cluster.ask_from(&cluster.namespace);
    let authority = eventually(BOUND, "the authority", async || {
        cluster.credentials_in(&cluster.namespace, "redis-ca")
    })
    .await;
    assert_eq!(authority, tls.authority);
    let sidecar = cluster.sidecar().await;
    assert_eq!(sidecar.api.verify("carol", WRONG).await.status, 401);
    assert_eq!(sidecar.verify_seed("carol", &cluster.seed("carol")).await.status, 200);
    // The operator reports the weak settings of this Redis.
    let metrics = eventually(BOUND, "the settings of Redis", async || {
        let body = operator.admin().get("/metrics").await.body;
        body.contains("twofactor_redis_weakness{setting=\"appendfsync\"} 1").then_some(body)
    })
    .await;
    assert!(
        metrics.contains("twofactor_redis_weakness{setting=\"min-replicas-to-write\"} 0"),
        "{metrics}"
    );
    let health = operator.admin().get("/readyz?verbose").await;
    assert!(
        health.status == 200 && health.body.contains("[-] redis appendfsync failed"),
        "{}",
        health.body
    );
}

#[tokio::test]
async fn the_operator_shows_what_redis_uses_and_that_its_clock_is_off() {
    let clock = RedisServer::builder().with_movable_clock();
    let redis = clock.args(["--maxmemory", "64mb"]).start().await;
    redis.clock().advance(Duration::from_hours(1)).await;
    let cluster = Cluster::with_redis(redis).await;
    let operator = cluster.operator().start().await;
    let metrics = eventually(BOUND, "the use of Redis", async || {
        let body = operator.admin().get("/metrics").await.body;
        body.contains("twofactor_redis_memory_used_ratio 0.").then_some(body)
    })
    .await;
    let value = |name: &str| -> f64 {
        let mut lines = metrics.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("{name} is not in {metrics}"))
    };
    assert!((value("twofactor_redis_memory_limit_bytes ") - 67_108_864.0).abs() < 1.0);
    assert!(value("twofactor_redis_clients ") >= 1.0);
    assert!(value("twofactor_redis_clients_limit ") > value("twofactor_redis_clients "));
    assert!(value("twofactor_redis_evicted_keys_total ").abs() < 0.5);
    // The clock of Redis stands since it was moved, so the difference is less than an hour.
    let difference = value("twofactor_redis_clock_difference_seconds ");
    assert!((1800.0..3600.0).contains(&difference), "{difference}");
    let warning = "the clocks of Redis and of the operator differ";
    operator.process().wait_for_line(warning, BOUND).await;
}

#[tokio::test]
async fn histories_give_way_before_the_memory_of_redis_is_full() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    operator.process().kill();
    let mut connection = cluster.redis.connect().await;
    let states: Vec<String> = connection.keys("*:state").await.unwrap();
    let history = states[0].replace(":state", ":hist");
    let entry = format!("1798000000000 verify wrong kms app\n\n{}", "x".repeat(3000));
    let entries = vec![entry; 500];
    let () = connection.rpush(&history, &entries).await.unwrap();
    let memory: String = cluster.redis.ask(&["INFO", "memory"]).await;
    let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let limit = used.trim().parse::<u64>().unwrap() * 100 / 95;
    let _: String = cluster.redis.ask(&["CONFIG", "SET", "maxmemory", &limit.to_string()]).await;
    let operator = cluster.operator().start().await;
    eventually(Duration::from_secs(75), "a shorter history", async || {
        let length: u64 = connection.clone().llen(&history).await.unwrap();
        if length <= 100 { Ok(()) } else { Err(length) }
    })
    .await;
    let warning = "histories shortened, because the memory of Redis is almost full";
    operator.process().wait_for_line(warning, BOUND).await;
    cluster.wait_ready("carol").await;
}

#[tokio::test]
async fn services_have_logins_on_a_cluster_and_a_flushed_master_is_filled() {
    let cluster = Cluster::start().await;
    let redis = RedisCluster::start().await;
    let _operator = cluster.operator().env("REDIS_URL", &redis.url()).start().await;
    let names = ["alice", "bob", "carol", "dora", "erin", "frank"];
    cluster.apply(&names.map(app_user).concat());
    for name in names {
        cluster.wait_ready(name).await;
    }
    let sidecar = cluster.sidecar().await;
    let url = cluster.credentials_in(&cluster.namespace, "redis-url").unwrap();
    assert!(
        url.starts_with("redis+cluster://2fa1")
            && url.ends_with(&redis.url()["redis+cluster://".len()..])
    );
    for name in names {
        let code = code_of(&cluster.seed(name));
        assert_eq!(sidecar.api.verify(name, &code).await.status, 200, "{name}");
        assert_eq!(sidecar.api.verify(name, &code).await.status, 400, "{name}");
    }
    for master in &redis.masters {
        master.flush_all().await;
        for name in names {
            eventually(BOUND, format_args!("{name} to be decided about"), async || {
                let reply = sidecar.api.verify(name, "12345678").await;
                match reply.status {
                    401 | 429 => Ok(()),
                    503 => Err(reply.body),
                    status => panic!("{status}: {}", reply.body),
                }
            })
            .await;
        }
        eventually(BOUND, "the realm to be complete", async || {
            let reply = sidecar.api.verify("unknown", WRONG).await;
            if reply.status == 404 { Ok(()) } else { Err(reply.body) }
        })
        .await;
    }
}

#[tokio::test]
async fn services_have_their_logins_after_each_of_two_failovers_by_sentinel() {
    let master = RedisServer::start().await;
    let port = master.port().to_string();
    let replica = RedisServer::builder().args(["--replicaof", "127.0.0.1", &port]).start().await;
    let sentinels = RedisSentinels::start(&master, 3, Duration::from_secs(1)).await;
    sentinels.wait_for_a_replica().await;
    replica.wait_in_sync(&master).await;
    let cluster = Cluster::with_redis(master).await;
    let operator = cluster.operator().env("REDIS_URL", &sentinels.url()).start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    let code = code_of(&cluster.seed("carol"));
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 200);
    let servers = [(&cluster.redis, &replica), (&replica, &cluster.redis)];
    for (failovers, (old, new)) in servers.into_iter().enumerate() {
        // Logins are on the replica before it is promoted, scripts before it is a checked node.
        eventually(BOUND, "the login on the replica", async || {
            let users: Vec<String> = new.try_ask(&["ACL", "USERS"]).await.unwrap_or_default();
            users.iter().any(|user| user.starts_with("2fa1:"))
        })
        .await;
        let before = operator.process().output();
        old.kill();
        eventually(Duration::from_mins(1), "a decision on the new master", async || {
            let reply = sidecar.api.verify("carol", &code).await;
            match reply.status {
                // The code of a step that is over is wrong.
                400 | 401 => Ok(()),
                503 => Err(reply.body),
                status => panic!("{status}: {}", reply.body),
            }
        })
        .await;
        assert_eq!(sentinels.master().await, new.port());
        // Nothing was published again, because the replica had everything.
        let log = operator.process().output();
        let since = &log[before.len()..];
        assert!(!since.contains("realm filled in Redis"), "{since}");
        let kept = operator.admin().get("/metrics").await.body;
        let kept = kept.lines().find_map(|line| line.strip_prefix("twofactor_realms_kept_total "));
        assert!(kept.unwrap().parse::<usize>().unwrap() > failovers, "{kept:?}");
        if failovers == 0 {
            // The former master returns as a replica, whose first synchronization gives the new
            // master no other identity.
            old.restart().await;
            old.wait_in_sync(new).await;
        }
    }
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;
}

#[tokio::test]
async fn a_restart_that_lost_nothing_publishes_nothing_again() {
    let redis = RedisServer::builder().append_only(AppendFsync::Always).start().await;
    let cluster = Cluster::with_redis(redis).await;
    let operator = cluster.operator().start().await;
    cluster.apply(&[app_user("carol"), app_user("dora")].concat());
    cluster.wait_ready("carol").await;
    cluster.wait_ready("dora").await;
    let (sidecar, seed) = (cluster.sidecar().await, cluster.seed("carol"));
    let code = code_of(&seed);
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 200);
    let published = async || -> Vec<Vec<u8>> {
        let mut connection = cluster.redis.connect().await;
        let mut records = Vec::new();
        for key in cluster.user_keys().await {
            if key.ends_with(":rec") {
                records.push(connection.get(&key).await.unwrap());
            }
        }
        records.sort();
        records
    };
    let before = published().await;
    assert_eq!(before.len(), 2);
    cluster.redis.kill();
    cluster.redis.restart().await;
    let began = Instant::now();
    eventually(BOUND, "a decision", async || {
        let reply = sidecar.api.verify("carol", &code).await;
        match reply.status {
            400 | 401 => Ok(()),
            503 => Err(reply.body),
            status => panic!("{status}: {}", reply.body),
        }
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(published().await, before);
    let metrics = operator.admin().get("/metrics").await.body;
    assert!(metrics.contains("twofactor_realms_kept_total 1"), "{metrics}");
    assert!(metrics.contains("twofactor_refills_total{result=\"success\"} 1"), "{metrics}");
    // A deletion that happens after it is published, and a lost record is noticed.
    let _ = cluster.kubectl(&["delete", "tfu", "dora", "--wait=false"]);
    eventually(BOUND, "dora to be unknown", async || {
        sidecar.api.verify("dora", WRONG).await.status == 404
    })
    .await;
    sidecar.wait_accepted("carol", &seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_killed_in_the_middle_of_a_refill_is_followed_by_one_that_completes_it() {
    let cluster = Cluster::start().await;
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let operator = cluster.operator_with(&kubeconfig).start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let (sidecar, seed) = (cluster.sidecar().await, cluster.seed("carol"));
    let code = code_of(&seed);
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 200);
    let secrets = format!("/namespaces/{}/secrets?", cluster.namespace);
    proxy.set(Some(Fault::Held(Box::leak(secrets.into_boxed_str()))));
    let hits = proxy.hits();
    cluster.redis.flush_all().await;
    eventually(BOUND, "the refill to read Secrets", async || proxy.hits() > hits).await;
    operator.process().kill();
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 503);
    let _operator = cluster.operator().start().await;
    eventually(BOUND, "a decision", async || {
        let reply = sidecar.api.verify("carol", &code).await;
        match reply.status {
            400 | 401 => Ok(()),
            503 => Err(reply.body),
            status => panic!("{status}: {}", reply.body),
        }
    })
    .await;
    sidecar.wait_accepted("carol", &seed).await;
}
