//! Tests that sidecars see how long ago an operator has worked, by the clock of Redis.

use std::time::Duration;

use redis::Client;
use twofactor_store::acl::Separation;
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisStore;
use twofactor_store::{Decisions, Store};

use crate::support::world::{START, World, names};

async fn age_follows_the_clock_of_redis(world: World) {
    assert_eq!(world.store.heartbeat_age().await.unwrap(), None, "no operator has worked");
    let publisher = world.publisher.store().redis().unwrap().clone();
    publisher.write_heartbeat(&publisher.nodes().await.unwrap()).await.unwrap();
    assert_eq!(world.store.heartbeat_age().await.unwrap(), Some(Duration::ZERO));
    world.set_time(START + 90_000).await;
    assert_eq!(world.store.heartbeat_age().await.unwrap(), Some(Duration::from_secs(90)));
    publisher.write_heartbeat(&publisher.nodes().await.unwrap()).await.unwrap();
    assert_eq!(world.store.heartbeat_age().await.unwrap(), Some(Duration::ZERO));
}

#[tokio::test]
async fn in_redis_6_2_a_service_reads_the_heartbeat_of_its_realm_and_writes_no_other() {
    let world = World::in_redis().await;
    let url = world.service_url_in(names(), Separation::RealmsOnly).await;
    let service = RedisStore::new(&url, names(), Clock::manual(world.now())).unwrap();
    let service = Decisions::unobserved(Store::Redis(service.with_scripts_of_the_publisher()));
    let publisher = world.publisher.store().redis().unwrap().clone();
    publisher.write_heartbeat(&publisher.nodes().await.unwrap()).await.unwrap();
    assert_eq!(service.heartbeat_age().await.unwrap(), None, "it may be forged");
    publisher.write_realm_heartbeats(std::slice::from_ref(&publisher)).await.unwrap();
    world.set_time(START + 90_000).await;
    assert_eq!(service.heartbeat_age().await.unwrap(), Some(Duration::from_secs(90)));
    let mut hostile = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let shared = names().heartbeat("alive");
    let mut forge = redis::cmd("HSET");
    let refused = forge.arg(shared).arg("x").arg("y").exec_async(&mut hostile).await.unwrap_err();
    assert_eq!(refused.code(), Some("NOPERM"));
}

#[tokio::test]
async fn a_sidecar_sees_the_age_of_the_heartbeat() {
    age_follows_the_clock_of_redis(World::in_redis_as_a_service().await).await;
}

#[tokio::test]
async fn a_sidecar_sees_the_age_of_the_heartbeat_in_a_cluster() {
    age_follows_the_clock_of_redis(World::in_a_cluster_as_a_service().await).await;
}
