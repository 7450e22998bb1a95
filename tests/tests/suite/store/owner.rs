//! Tests that one operator owns the data of an installation, whatever Redis holds in the place of
//! its mark, and that services cannot touch it.

use redis::Client;
use twofactor_core::owner::OwnerMark;
use twofactor_store::acl::Separation;

use crate::support::world::{World, names};

const LEASE: &str = "twofactor-system/twofactor-operator";

fn mark(text: &str) -> OwnerMark {
    text.parse().unwrap()
}

async fn only_the_owner_and_its_successors_claim(world: World) {
    let store = world.publisher.store().redis().unwrap().clone();
    let claim =
        async |text: &str, replaced| store.claim(LEASE, &mark(text), replaced).await.unwrap();
    let (first, other) = ("00112233445566aa", "00112233445566bb");
    assert_eq!(claim(&format!("{first} 5"), None).await, None, "nothing is there");
    assert_eq!(claim(&format!("{first} 5"), None).await, None, "the next leader");
    assert_eq!(claim(&format!("{first} 6"), None).await, None);
    let held = Some(format!("{first} 6"));
    assert_eq!(claim(&format!("{first} 5"), None).await, held, "the leader of a copy");
    assert_eq!(claim(&format!("{other} 9"), None).await, held, "another cluster");
    assert_eq!(claim(&format!("{other} 9"), Some("00112233445566aa 5")).await, held, "it lives");
    assert_eq!(store.owner(LEASE).await.unwrap(), held);
    assert_eq!(claim(&format!("{other} 1"), held.as_deref()).await, None, "it takes over");
    assert_eq!(claim(&format!("{first} 7"), None).await, Some(format!("{other} 1")));
    // An operator with another Lease does not concern them.
    let beside = store.claim("blue-system/blue", &mark("00112233445566cc 1"), None).await;
    assert_eq!(beside.unwrap(), None);
    assert_eq!(claim(&format!("{other} 2"), None).await, None);
}

#[tokio::test]
async fn only_the_owner_and_its_successors_claim_the_data() {
    only_the_owner_and_its_successors_claim(World::in_redis().await).await;
}

#[tokio::test]
async fn only_the_owner_and_its_successors_claim_the_data_in_a_cluster() {
    only_the_owner_and_its_successors_claim(World::in_a_cluster_as_a_service().await).await;
}

#[tokio::test]
async fn what_is_no_mark_is_replaced() {
    let world = World::in_redis().await;
    let store = world.publisher.store().redis().unwrap().clone();
    let key = names().owner(LEASE);
    for spoil in [
        vec!["SET", &key, "damaged"],
        vec!["SET", &key, "00112233445566aa"],
        vec!["HSET", &key, "field", "value"],
    ] {
        let mut connection = world.redis().connect().await;
        redis::cmd("DEL").arg(&key).exec_async(&mut connection).await.unwrap();
        let mut command = redis::cmd(spoil[0]);
        for argument in &spoil[1..] {
            command.arg(*argument);
        }
        command.exec_async(&mut connection).await.unwrap();
        let claimed = store.claim(LEASE, &mark("00112233445566bb 1"), None).await.unwrap();
        assert_eq!(claimed, None, "{spoil:?}");
        let held = store.owner(LEASE).await.unwrap();
        assert_eq!(held.as_deref(), Some("00112233445566bb 1"), "{spoil:?}");
    }
}

#[tokio::test]
async fn a_service_can_neither_read_nor_forge_the_mark() {
    let world = World::in_redis().await;
    let key = names().owner(LEASE);
    for separation in [Separation::RealmsOnly, Separation::ReadAndWrite] {
        let url = world.service_url_in(names(), separation).await;
        let client = Client::open(url).unwrap();
        let mut service = client.get_multiplexed_async_connection().await.unwrap();
        for command in [vec!["GET", &key], vec!["HSET", &key, "field", "value"]] {
            let mut call = redis::cmd(command[0]);
            for argument in &command[1..] {
                call.arg(*argument);
            }
            let refused = call.exec_async(&mut service).await.unwrap_err();
            assert_eq!(refused.code(), Some("NOPERM"), "{command:?}");
        }
    }
}
