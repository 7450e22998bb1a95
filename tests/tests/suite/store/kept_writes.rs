//! Tests that a node which has kept every write of the publisher is used again without a fill, and
//! that one which has lost a write is not.

use std::time::Duration;

use twofactor_core::decision::{Undecided, Verdict};
use twofactor_core::time::UnixMillis;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::clock::Clock;
use twofactor_store::publisher::DesiredUser;
use twofactor_store::redis::RedisStore;
use twofactor_store::{Inspection, Store, StoreError};
use twofactor_tests::redis::cluster::RedisCluster;
use twofactor_tests::wait::eventually;

use super::cluster::one_on_each;
use crate::support::world::{Person, START, STEP, World, names, random};

const BOUND: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_mins(5);

fn redis(world: &World) -> &RedisStore {
    world.publisher.store().redis().unwrap()
}

/// A clock that stands where that of Redis stands.
fn standing() -> Clock {
    Clock::manual(UnixMillis::new(START))
}

/// Checks the realm as the operator does every second.
async fn check(world: &World) -> Inspection {
    let store = redis(world);
    let checked = eventually(BOUND, "Redis to be checked", async || {
        let nodes = store.nodes().await?;
        store.check_realms(&nodes, std::slice::from_ref(store), &mut random()).await
    })
    .await;
    checked.into_iter().next().unwrap()
}

async fn save(world: &World) {
    let _: () = world.redis().ask(&["SAVE"]).await;
}

/// Kills Redis and starts it again with what was saved last.
async fn restart(world: &World) {
    world.redis().kill();
    world.redis().restart().await;
}

fn unchecked<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Undecided(Undecided::UncheckedNode)))
}

async fn used(world: &World, person: &Person) {
    let code = person.code_at(world.now(), 0);
    assert_eq!(world.verify(person, "kms", &code).await.unwrap(), Verdict::Accepted);
}

#[tokio::test]
async fn a_restart_that_lost_nothing_needs_no_fill_and_revives_no_code() {
    let world = World::in_redis().await;
    let (carol, dora) = (world.person("carol", App).await, world.person("dora", Email).await);
    world.issue(&dora, "kms", LIFETIME).await.unwrap();
    used(&world, &carol).await;
    save(&world).await;
    restart(&world).await;
    let code = carol.code_at(world.now(), 0);
    let undecided =
        eventually(BOUND, "an answer", async || match world.verify(&carol, "kms", &code).await {
            Err(StoreError::Unavailable(error)) => Err(error.to_string()),
            other => Ok(other),
        })
        .await;
    assert!(unchecked(&undecided), "{undecided:?}");
    let inspection = check(&world).await;
    assert!(inspection.ready && inspection.kept);
    // Nothing was published again.
    assert_eq!(world.current(&carol).await.revision, carol.revision);
    assert_eq!(world.verify(&carol, "kms", &code).await.unwrap(), Verdict::Used);
    // The second check finds nothing new.
    let inspection = check(&world).await;
    assert!(inspection.ready && !inspection.kept);
    // Codes that could have been used are refused for as long as after a fill.
    let delivered = dora.code_at(world.now(), 0);
    assert_eq!(world.verify(&dora, "kms", &delivered).await.unwrap(), Verdict::Used);
    world.set_time(START + 2 * STEP).await;
    used(&world, &carol).await;
}

#[tokio::test]
async fn a_code_whose_use_was_lost_is_refused_although_no_write_of_the_publisher_was() {
    let world = World::in_redis().await;
    let (carol, dora) = (world.person("carol", App).await, world.person("dora", Email).await);
    world.issue(&dora, "kms", LIFETIME).await.unwrap();
    save(&world).await;
    used(&world, &carol).await;
    used(&world, &dora).await;
    restart(&world).await;
    assert!(check(&world).await.kept);
    for person in [&carol, &dora] {
        let code = person.code_at(world.now(), 0);
        assert_eq!(world.verify(person, "kms", &code).await.unwrap(), Verdict::Used);
    }
}

#[tokio::test]
async fn a_node_that_lost_a_publication_a_removal_or_a_policy_decides_nothing() {
    for lost in ["publication", "removal", "policy"] {
        let world = World::in_redis().await;
        let carol = world.person("carol", App).await;
        save(&world).await;
        match lost {
            "publication" => drop(world.person("dora", App).await),
            "removal" => world.publisher.remove(carol.pseudonym).await.unwrap(),
            _ => {
                let mut realm = twofactor_core::realm::RealmRecord::default();
                realm.issuer.push('!');
                let (publisher, random) = (&world.publisher, &mut random());
                assert!(publisher.publish_realm(&realm, world.now(), random).await.unwrap());
            }
        }
        restart(&world).await;
        let inspection = check(&world).await;
        assert!(!inspection.ready && inspection.complete, "{lost}");
        let code = carol.code_at(world.now(), 0);
        assert!(unchecked(&world.verify(&carol, "kms", &code).await), "{lost}");
        // Only a fill helps, and after that the next restart needs none.
        assert!(!check(&world).await.ready, "{lost}");
        world.fill(&[&carol]).await;
        assert!(check(&world).await.ready, "{lost}");
        save(&world).await;
        restart(&world).await;
        assert!(check(&world).await.kept, "{lost}");
    }
}

#[tokio::test]
async fn data_of_yesterday_are_not_taken_for_those_of_today() {
    let world = World::in_redis().await;
    let carol = world.person("carol", App).await;
    save(&world).await;
    world.redis().flush_all().await;
    assert!(!check(&world).await.complete);
    world.fill(&[&carol]).await;
    restart(&world).await;
    assert!(!check(&world).await.ready);
}

#[tokio::test]
async fn a_new_publisher_proves_only_what_happened_since_it_started() {
    let world = World::in_redis().await;
    let carol = world.person("carol", App).await;
    let store = || RedisStore::new(&world.redis().url(), names(), standing()).unwrap();
    // It was not there before the restart, so it cannot know what was lost.
    let late = World::of(&world, Store::Redis(store()));
    save(&world).await;
    restart(&world).await;
    assert!(!check(&late).await.ready);
    assert!(check(&world).await.kept);
    // It finds the realm complete, and begins to count.
    let second = World::of(&world, Store::Redis(store()));
    assert!(check(&second).await.ready);
    second.publisher.remove(carol.pseudonym).await.unwrap();
    save(&world).await;
    // The first publisher counts no more, because the second one does.
    world.publisher.remove(carol.pseudonym).await.unwrap();
    restart(&world).await;
    assert!(!check(&world).await.ready);
    assert!(check(&second).await.kept);
}

#[tokio::test]
async fn what_another_publisher_has_declared_checked_is_taken_back_if_own_writes_are_missing() {
    let world = World::in_redis().await;
    let carol = world.person("carol", App).await;
    save(&world).await;
    let _dora = world.person("dora", App).await;
    restart(&world).await;
    // A former leader that has not noticed its end fills the realm as it was.
    let store = RedisStore::new(&world.redis().url(), names(), standing()).unwrap();
    World::of(&world, Store::Redis(store)).fill(&[&carol]).await;
    assert!(!check(&world).await.ready);
    let code = carol.code_at(world.now(), 0);
    assert!(world.verify(&world.current(&carol).await, "kms", &code).await.is_err());
}

#[tokio::test]
async fn a_write_to_a_node_that_is_not_checked_does_not_count() {
    let world = World::in_redis().await;
    let carol = world.person("carol", App).await;
    save(&world).await;
    restart(&world).await;
    let desired =
        || DesiredUser { record: carol.record.clone(), fresh: false, reset: None, disabled: false };
    let publish = async || world.publisher.renew(&[desired()], world.now(), &mut random()).await;
    let early = eventually(BOUND, "an answer", async || match publish().await {
        Err(StoreError::Unavailable(error)) => Err(error.to_string()),
        other => Ok(other),
    })
    .await;
    assert!(unchecked(&early), "{early:?}");
    assert!(unchecked(&world.publisher.remove(carol.pseudonym).await));
    assert!(check(&world).await.kept);
    publish().await.unwrap();
    world.publisher.remove(carol.pseudonym).await.unwrap();
}

async fn wait_for_a_new_master(world: &World) {
    let before = redis(world).nodes().await.map(|nodes| nodes.identity()).unwrap_or_default();
    eventually(BOUND, "another master", async || {
        let nodes = redis(world).nodes().await.map_err(|error| error.to_string())?;
        if nodes.identity() == before { Err("the former one answers".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn a_promoted_replica_of_a_cluster_is_used_at_once_unless_it_missed_a_write() {
    let cluster = RedisCluster::builder().with_replicas().start().await;
    let world = World::on_cluster(cluster, Clock::System).await;
    let cluster = world.cluster.as_ref().unwrap();
    // Only a master with a user can miss a write.
    let people = one_on_each(&world).await;
    // A master gets a new identity with its first replica.
    assert!(check(&world).await.ready);
    cluster.wait_in_sync().await;
    cluster.masters[0].kill();
    wait_for_a_new_master(&world).await;
    let inspection = check(&world).await;
    assert!(inspection.ready && inspection.kept, "{inspection:?}");
    for person in &people {
        let wrong = person.wrong_code(world.now());
        let verdict = eventually(BOUND, "a decision", async || {
            world.verify(person, "kms", &wrong).await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(verdict, Verdict::Wrong);
    }
    // The replica of another master misses a write.
    cluster.replicas[1].pause().await;
    let _: i64 = cluster.masters[1].ask(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    world.fill(&people.iter().collect::<Vec<_>>()).await;
    for person in &people {
        let desired = DesiredUser {
            record: person.record.clone(),
            fresh: false,
            reset: None,
            disabled: false,
        };
        world.publisher.renew(&[desired], world.now(), &mut random()).await.unwrap();
    }
    cluster.masters[1].kill();
    cluster.replicas[1].resume();
    wait_for_a_new_master(&world).await;
    assert!(!check(&world).await.ready);
}
