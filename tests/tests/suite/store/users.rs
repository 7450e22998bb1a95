//! Tests which users of a realm the store knows, and the search that finds what it does not know.

use redis::AsyncCommands;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::publisher::{DesiredUser, UnlistedUsers};
use twofactor_store::redis::RedisStore;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::redis::cluster::RedisCluster;

use crate::support::world::{Person, World, installation, names, random, realm_id, record};

fn redis(world: &World) -> &RedisStore {
    world.publisher.store().redis().unwrap()
}

async fn scans(server: &RedisServer) -> u64 {
    server.commands().await.get("scan").copied().unwrap_or_default()
}

#[tokio::test]
async fn a_publisher_fills_lists_and_removes_users_without_a_scan() {
    let world = World::in_redis().await;
    let people = [world.person("alice", Email).await, world.person("bob", App).await];
    world.fill(&[&people[0]]).await;
    assert_eq!(world.publisher.store().users().await.unwrap(), [people[0].pseudonym]);
    // A realm that is filled again beside the keys of others needs none either.
    let _: () = world.redis().ask(&["SET", "of-another-program", "1"]).await;
    let _: () = world.redis().ask(&["DEL", &names().realm_meta()]).await;
    world.fill(&[&people[0], &people[1]]).await;
    world.publisher.remove(people[0].pseudonym).await.unwrap();
    redis(&world).remove_realm(&[]).await.unwrap();
    let keys: Vec<String> = world.redis().ask(&["KEYS", "*"]).await;
    assert_eq!(keys, ["of-another-program"]);
    assert_eq!(scans(world.redis()).await, 0);
}

#[tokio::test]
async fn a_user_whose_name_cannot_be_remembered_gets_no_key() {
    let world = World::in_redis().await;
    let set = names().realm_users();
    let _: () = world.redis().ask(&["SET", &set, "damaged"]).await;
    let user =
        DesiredUser { record: record("alice", Email), fresh: true, reset: None, disabled: false };
    let refused = world.publisher.publish(&[user], world.now(), &mut random()).await;
    assert!(refused.is_err(), "{refused:?}");
    let states: Vec<String> = world.redis().connect().await.keys("*:state").await.unwrap();
    assert_eq!(states, [""; 0]);
}

/// Publishes two users as a version before the sets has: their keys exist, but no set.
async fn published_by_an_earlier_version(world: &World) -> [Person; 2] {
    let people = [world.person("alice", Email).await, world.person("bob", App).await];
    let _: () = redis::AsyncCommands::del(
        &mut owner_of_the_set(world).await.connect().await,
        names().realm_users(),
    )
    .await
    .unwrap();
    assert_eq!(world.publisher.store().users().await.unwrap(), []);
    people
}

async fn owner_of_the_set(world: &World) -> &RedisServer {
    let Some(cluster) = &world.cluster else { return world.redis() };
    let slot: usize = cluster.masters[0].ask(&["CLUSTER", "KEYSLOT", &names().realm_users()]).await;
    &cluster.masters[slot / 16384_usize.div_ceil(3)]
}

#[tokio::test]
async fn a_search_finds_users_that_an_earlier_version_has_published() {
    for world in [World::in_redis().await, World::in_a_cluster().await] {
        // A Redis without users is searched too.
        assert!(!redis(&world).search(&installation()).await.unwrap()[&realm_id()].users_added);
        let mut people =
            published_by_an_earlier_version(&world).await.map(|person| person.pseudonym);
        people.sort();
        let found = redis(&world).search(&installation()).await.unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&realm_id()]);
        assert!(found[&realm_id()].users_added);
        assert_eq!(world.publisher.store().users().await.unwrap(), people);
        // The next search has nothing to add.
        let found = redis(&world).search(&installation()).await.unwrap();
        assert!(!found[&realm_id()].users_added);
        assert_eq!(found[&realm_id()].node_keys.is_empty(), world.cluster.is_none());
    }
}

#[tokio::test]
async fn a_realm_found_by_a_search_leaves_no_key_in_a_cluster_either() {
    let world =
        World::on_cluster(RedisCluster::start().await, twofactor_store::clock::Clock::System).await;
    published_by_an_earlier_version(&world).await;
    // A fill before a slot moved used another tag.
    let stale = names().node_fill_id("99999");
    let store = redis(&world);
    let cluster = world.cluster.as_ref().unwrap();
    let slot: usize = cluster.masters[0].ask(&["CLUSTER", "KEYSLOT", &stale]).await;
    let _: () = cluster.masters[slot / 16384_usize.div_ceil(3)].ask(&["SET", &stale, "old"]).await;
    let found = store.search(&installation()).await.unwrap();
    store.remove_realm(&found[&realm_id()].node_keys).await.unwrap();
    for master in &cluster.masters {
        let keys: Vec<String> = master.ask(&["KEYS", "*"]).await;
        assert_eq!(keys, [""; 0]);
    }
}

#[tokio::test]
async fn codes_of_users_that_an_earlier_version_has_published_may_have_been_used() {
    let world = World::in_redis().await;
    let people = published_by_an_earlier_version(&world).await;
    // The node was restarted, so it has to be checked again; it holds states.
    let _: () = world.redis().ask(&["DEL", &names().realm_meta()]).await;
    let users: Vec<_> = people.iter().map(|person| person.pseudonym).collect();
    let inspection = world.publisher.begin_fill(Some(&users), &mut random()).await.unwrap();
    assert!(!inspection.nodes[0].empty);
    let unknown = world.publisher.begin_fill(None, &mut random()).await.unwrap();
    assert!(!unknown.nodes[0].empty);
    let unlisted = UnlistedUsers::Keep;
    let desired: Vec<DesiredUser> = people
        .iter()
        .map(|person| DesiredUser {
            record: person.record.clone(),
            fresh: false,
            reset: None,
            disabled: false,
        })
        .collect();
    let realm = twofactor_core::realm::RealmRecord::default();
    world.publisher.fill(&realm, &desired, unlisted, world.now(), &mut random()).await.unwrap();
    let bob = world.current(&people[1]).await;
    let code = bob.code_at(world.now(), 0);
    assert_eq!(
        world.verify(&bob, "kms", &code).await.unwrap(),
        twofactor_core::decision::Verdict::Used
    );
}
