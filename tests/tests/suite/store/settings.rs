//! Tests that the operator and sidecars report weak settings of Redis, if their login may read
//! them.

use std::time::Duration;

use twofactor_store::clock::Clock;
use twofactor_store::redis::{RedisStore, Strength};
use twofactor_tests::redis::cluster::RedisCluster;
use twofactor_tests::redis::sentinel::RedisSentinels;
use twofactor_tests::redis::{AppendFsync, RedisServer};
use twofactor_tests::wait::eventually;

use crate::support::sidecar::Served;
use crate::support::world::{World, names};

const BOUND: Duration = Duration::from_secs(20);

/// maxmemory-policy, appendfsync, min-replicas-to-write.
async fn strengths(store: &RedisStore) -> [Strength; 3] {
    store.settings().await.unwrap().map(|(_, strength)| strength)
}

async fn set(redis: &RedisServer, name: &str, value: &str) {
    let _: () = redis.ask(&["CONFIG", "SET", name, value]).await;
}

#[tokio::test]
async fn the_settings_of_redis_are_evaluated_each_time() {
    use Strength::{Enough, Unknown, Weak};
    let redis = RedisServer::builder().append_only(AppendFsync::Always).start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let store = world.publisher.store().redis().unwrap();
    let redis = world.redis();
    assert_eq!(strengths(store).await, [Enough; 3]);
    set(redis, "appendfsync", "everysec").await;
    set(redis, "maxmemory-policy", "allkeys-lru").await;
    assert_eq!(strengths(store).await, [Weak, Weak, Enough]);
    set(redis, "maxmemory-policy", "noeviction").await;
    set(redis, "appendfsync", "always").await;
    // With a replica, two masters are possible during a failover.
    let port = redis.port().to_string();
    let _replica = RedisServer::builder().args(["--replicaof", "127.0.0.1", &port]).start().await;
    eventually(BOUND, "the replica to be noticed", async || {
        strengths(store).await == [Enough, Enough, Weak]
    })
    .await;
    set(redis, "min-replicas-to-write", "1").await;
    assert_eq!(strengths(store).await, [Enough; 3]);
    // A service's login may not read all settings and tries only once, because Redis logs each
    // refusal.
    let service = world.service_store(names()).await;
    for _ in 0..3 {
        assert_eq!(strengths(&service).await, [Enough, Unknown, Enough]);
    }
    let statistics: String = redis.ask(&["INFO", "commandstats"]).await;
    let line = statistics.lines().find(|line| line.starts_with("cmdstat_config|get:")).unwrap();
    assert!(line.contains("rejected_calls=1,"), "{line}");
}

#[tokio::test]
async fn min_replicas_to_write_is_required_wherever_a_failover_is_possible() {
    let master = RedisServer::builder().append_only(AppendFsync::Always).start().await;
    let sentinels = RedisSentinels::start(&master, 1, Duration::from_mins(1)).await;
    let store = RedisStore::new(&sentinels.url(), names(), Clock::System).unwrap();
    assert_eq!(strengths(&store).await, [Strength::Enough, Strength::Enough, Strength::Weak]);
}

#[tokio::test]
async fn the_weakest_master_of_a_cluster_counts() {
    let cluster = RedisCluster::builder()
        .args(["--appendonly", "yes", "--appendfsync", "always"])
        .start()
        .await;
    let store = RedisStore::new(&cluster.url(), names(), Clock::System).unwrap();
    assert_eq!(strengths(&store).await, [Strength::Enough; 3]);
    set(&cluster.masters[2], "maxmemory-policy", "volatile-lru").await;
    assert_eq!(strengths(&store).await, [Strength::Weak, Strength::Enough, Strength::Enough]);
}

#[tokio::test]
async fn a_sidecar_reports_weak_settings_of_redis_and_stays_ready() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let sidecar = Served::start(&world, "kms").await;
    sidecar.process().wait_for_line("appendonly is not yes or appendfsync not always", BOUND).await;
    let verbose = eventually(BOUND, "the health check", async || {
        let body = sidecar.admin().get("/readyz?verbose").await.body;
        if body.contains("[-] redis appendfsync failed") { Ok(body) } else { Err(body) }
    })
    .await;
    assert!(verbose.contains("[+] redis maxmemory-policy ok"), "{verbose}");
    assert_eq!(sidecar.admin().get("/readyz").await.status, 200);
    let metrics = sidecar.admin().get("/metrics").await.body;
    for line in [
        "twofactor_redis_weakness{setting=\"appendfsync\"} 1",
        "twofactor_redis_weakness{setting=\"maxmemory-policy\"} 0",
        "twofactor_redis_weakness{setting=\"min-replicas-to-write\"} 0",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}
