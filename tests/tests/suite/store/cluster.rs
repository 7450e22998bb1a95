//! Tests the store on a real Redis Cluster: masters that are flushed or replaced, and slots that
//! move.

use std::time::Duration;

use twofactor_core::decision::{Undecided, Verdict};
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::acl::{AclUser, Separation};
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisStore;
use twofactor_store::{Decisions, Store, StoreError};
use twofactor_tests::redis::cluster::RedisCluster;
use twofactor_tests::redis::{RedisServer, Tls};
use twofactor_tests::wait::eventually;

use crate::support::world::{Person, World, names};

const BOUND: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_mins(5);

async fn with_real_time() -> World {
    World::on_cluster(RedisCluster::start().await, Clock::System).await
}

fn cluster(world: &World) -> &RedisCluster {
    world.cluster.as_ref().unwrap()
}

async fn slot_of(world: &World, person: &Person) -> u16 {
    let state = names().user(&person.pseudonym).state;
    cluster(world).masters[0].ask(&["CLUSTER", "KEYSLOT", &state]).await
}

/// Index of the master that has a user's keys; each master has an equal range of slots.
async fn master_of(world: &World, person: &Person) -> usize {
    usize::from(slot_of(world, person).await) / 16384_usize.div_ceil(3)
}

/// One user on each of the masters.
pub(super) async fn one_on_each(world: &World) -> Vec<Person> {
    let mut found: [Option<Person>; 3] = Default::default();
    for number in 0.. {
        let person = world.person(&format!("user{number}"), App).await;
        let master = master_of(world, &person).await;
        found[master].get_or_insert(person);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.into_iter().flatten().collect()
}

fn unchecked<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Undecided(Undecided::UncheckedNode)))
}

#[tokio::test]
async fn a_flushed_master_is_an_outage_for_its_users_until_it_is_filled() {
    let world = with_real_time().await;
    let people = one_on_each(&world).await;
    for (number, person) in people.iter().enumerate() {
        world.fill(&people.iter().collect::<Vec<_>>()).await;
        assert!(world.publisher.store().inspect().await.unwrap().ready);
        cluster(&world).masters[number].flush_all().await;
        let inspection = world.publisher.store().inspect().await.unwrap();
        assert!(!inspection.ready, "master {number} was emptied");
        // The store must not confirm that the user is absent, because a service may skip the second
        // factor for unknown users.
        let absence = world.store.confirm_absence(&person.pseudonym).await;
        assert!(matches!(absence, Err(StoreError::Undecided(_))), "{absence:?}");
    }
}

#[tokio::test]
async fn the_publisher_notices_a_master_flushed_during_a_fill() {
    let world = with_real_time().await;
    for master in &cluster(&world).masters {
        world.empty().await;
        let inspection = world
            .publisher
            .begin_fill(Some(&[]), &mut crate::support::world::random())
            .await
            .unwrap();
        master.flush_all().await;
        assert!(world.publisher.store().complete_fill(&inspection).await.is_err());
        assert!(!world.publisher.store().inspect().await.unwrap().ready);
    }
    world.fill(&[]).await;
    assert!(world.publisher.store().inspect().await.unwrap().ready);
}

#[tokio::test]
async fn a_user_is_found_while_and_after_their_slot_moves() {
    let world = with_real_time().await;
    let person = world.person("alice", Email).await;
    let (slot, from) = (slot_of(&world, &person).await, master_of(&world, &person).await);
    let masters = &cluster(&world).masters;
    let (from, to) = (&masters[from], &masters[(from + 1) % 3]);
    let (from_id, to_id): (String, String) =
        (from.ask(&["CLUSTER", "MYID"]).await, to.ask(&["CLUSTER", "MYID"]).await);
    let slot = slot.to_string();
    let wrong = person.wrong_code(world.now());
    // All kinds of keys of a user exist.
    world.issue(&person, "kms", LIFETIME).await.unwrap();
    let code = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "before", &wrong).await.unwrap(), Verdict::Wrong);
    let _: () = to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
    let _: () = from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
    assert_eq!(world.verify(&person, "announced", &wrong).await.unwrap(), Verdict::Wrong);
    let port = to.port().to_string();
    let keys: Vec<String> = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
    let (first, rest) = keys.split_first().unwrap();
    let migrate = async |key: &str| {
        let _: () = from.ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]).await;
    };
    migrate(first).await;
    // While the keys are split between two nodes, Redis runs no script and there is no decision.
    let torn = world.verify(&person, "torn", &wrong).await;
    assert!(matches!(torn, Ok(Verdict::Wrong) | Err(StoreError::Unavailable(_))), "{torn:?}");
    for key in rest {
        migrate(key).await;
    }
    // The keys are on the new node before it owns the slot: the old node redirects, and the client
    // has to send ASKING.
    assert_eq!(world.verify(&person, "moved", &wrong).await.unwrap(), Verdict::Wrong);
    assert!(world.store.record(&person.pseudonym).await.unwrap().is_some());
    for node in masters {
        let _: () = node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
    }
    assert_eq!(world.verify(&person, "arrived", &wrong).await.unwrap(), Verdict::Wrong);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
    // A publisher finds the user after it has read the slots again.
    eventually(BOUND, "the publisher to find the user", async || {
        world
            .publisher
            .store()
            .published(&[person.pseudonym])
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(world.publisher.store().users().await.unwrap(), [person.pseudonym]);
}

#[tokio::test]
async fn a_promoted_replica_decides_nothing_before_it_is_checked_and_revives_no_code() {
    let cluster = RedisCluster::builder().with_replicas().start().await;
    let world = World::on_cluster(cluster, Clock::System).await;
    let cluster = world.cluster.as_ref().unwrap();
    let people = one_on_each(&world).await;
    let all: Vec<&Person> = people.iter().collect();
    let (lost, others) = people.split_first().unwrap();
    let code = lost.code_at(world.now(), 0);
    // The replica misses the next accepted code.
    cluster.replicas[0].pause().await;
    let _: i64 = cluster.masters[0].ask(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    assert_eq!(world.verify(lost, "kms", &code).await.unwrap(), Verdict::Accepted);
    cluster.masters[0].kill();
    cluster.replicas[0].resume();
    let verdict = eventually(BOUND, "the replica to take over", async || {
        match world.verify(lost, "kms", &code).await {
            Err(StoreError::Unavailable(error)) => Err(error.to_string()),
            other => Ok(other),
        }
    })
    .await;
    assert!(unchecked(&verdict), "{verdict:?}");
    // Users on other masters are still served.
    for person in others {
        let wrong = person.wrong_code(world.now());
        assert_eq!(world.verify(person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    }
    eventually(BOUND, "the publisher to find the new master", async || {
        match world.publisher.store().inspect().await {
            Ok(inspection) if !inspection.ready => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    world.fill(&all).await;
    let lost = world.current(lost).await;
    assert_eq!(world.verify(&lost, "kms", &code).await.unwrap(), Verdict::Used);
    // Users on other masters lose nothing.
    for person in others {
        let person = world.current(person).await;
        let code = person.code_at(world.now(), 0);
        assert_eq!(world.verify(&person, "other", &code).await.unwrap(), Verdict::Accepted);
    }
}

#[tokio::test]
async fn logins_are_created_and_removed_on_every_node_including_replicas() {
    let cluster = RedisCluster::builder().with_replicas().start().await;
    let world = World::on_cluster(cluster, Clock::System).await;
    let cluster = world.cluster.as_ref().unwrap();
    let admin = world.publisher.store().redis().unwrap();
    let known = async |node: &RedisServer| -> Vec<String> { node.ask(&["ACL", "USERS"]).await };
    let user = AclUser {
        name: names().login(&[1; 16]),
        // Hash of the empty password.
        password_hash: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            .to_owned(),
        realm: names(),
    };
    // A master reports a replica only after the first synchronization, so this is repeated, as the
    // operator does every minute.
    eventually(BOUND, "every node to know the login", async || {
        admin.acl_set(&user, Separation::ReadAndWrite).await.map_err(|error| error.to_string())?;
        for node in cluster.nodes() {
            if !known(node).await.contains(&user.name) {
                return Err(format!("the node at port {} does not", node.port()));
            }
        }
        Ok(())
    })
    .await;
    // A login that one node has lost is known somewhere, but not everywhere.
    let _: i64 = cluster.replicas[1].ask(&["ACL", "DELUSER", &user.name]).await;
    let names_known = admin.acl_users().await.unwrap();
    assert!(
        names_known.anywhere.contains(&user.name) && !names_known.everywhere.contains(&user.name)
    );
    admin.acl_delete(std::slice::from_ref(&user.name)).await.unwrap();
    for node in cluster.nodes() {
        assert_eq!(known(node).await, ["default"]);
    }
    // An unavailable replica delays nothing.
    cluster.replicas[0].kill();
    admin.acl_set(&user, Separation::ReadAndWrite).await.unwrap();
    for master in &cluster.masters {
        assert!(known(master).await.contains(&user.name));
    }
}

#[tokio::test]
async fn a_removed_realm_leaves_no_key_on_any_node() {
    let world = with_real_time().await;
    let people = one_on_each(&world).await;
    world.issue(&people[0], "kms", LIFETIME).await.unwrap();
    let store = world.publisher.store().redis().unwrap();
    store.remove_realm(&[]).await.unwrap();
    for master in &cluster(&world).masters {
        let keys: Vec<String> = master.ask(&["KEYS", "*"]).await;
        assert_eq!(keys, [""; 0]);
    }
}

#[tokio::test]
async fn a_cluster_is_reached_over_tls_with_an_authority_of_its_own() {
    let tls = Tls::new();
    let cluster = RedisCluster::builder().tls(tls.clone()).start().await;
    let store = RedisStore::with_access(
        &super::outages::trusting(&cluster.url(), &tls),
        names(),
        Clock::System,
    )
    .unwrap();
    let world = World::around(Store::Redis(store), Clock::System).await;
    let person = world.person("alice", Email).await;
    world.issue(&person, "kms", LIFETIME).await.unwrap();
    let code = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    // Without the authority, the server is not trusted.
    let store = RedisStore::new(&cluster.url(), names(), Clock::System).unwrap();
    let refused = Decisions::unobserved(Store::Redis(store)).realm(None).await;
    let Err(StoreError::Unavailable(error)) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("certificate"), "{error}");
}
