//! Tests that sidecars see how long ago an operator has worked, by the clock of Redis.

use std::time::Duration;

use crate::support::world::{START, World};

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
async fn a_sidecar_sees_the_age_of_the_heartbeat() {
    age_follows_the_clock_of_redis(World::in_redis_as_a_service().await).await;
}

#[tokio::test]
async fn a_sidecar_sees_the_age_of_the_heartbeat_in_a_cluster() {
    age_follows_the_clock_of_redis(World::in_a_cluster_as_a_service().await).await;
}
