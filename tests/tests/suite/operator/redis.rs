//! Tests the operator and its services on Redis with TLS, behind Sentinel and as a Cluster.

use std::fs;
use std::time::Duration;

use twofactor_tests::redis::cluster::RedisCluster;
use twofactor_tests::redis::sentinel::RedisSentinels;
use twofactor_tests::redis::{RedisServer, Tls};
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
async fn services_have_their_logins_after_a_failover_by_sentinel() {
    let master = RedisServer::start().await;
    let port = master.port().to_string();
    let replica = RedisServer::builder().args(["--replicaof", "127.0.0.1", &port]).start().await;
    let sentinels = RedisSentinels::start(&master, 3, Duration::from_secs(1)).await;
    sentinels.wait_for_a_replica().await;
    eventually(BOUND, "the replica to follow its master", async || {
        replica.ask::<String>(&["INFO", "replication"]).await.contains("master_link_status:up")
    })
    .await;
    let cluster = Cluster::with_redis(master).await;
    let _operator = cluster.operator().env("REDIS_URL", &sentinels.url()).start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    let code = code_of(&cluster.seed("carol"));
    assert_eq!(sidecar.api.verify("carol", &code).await.status, 200);
    cluster.redis.kill();
    eventually(Duration::from_mins(1), "a decision on the new master", async || {
        let reply = sidecar.api.verify("carol", &code).await;
        match reply.status {
            400 => Ok(()),
            503 => Err(reply.body),
            status => panic!("{status}: {}", reply.body),
        }
    })
    .await;
    assert_eq!(sentinels.master().await, replica.port());
}
