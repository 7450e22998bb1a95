//! Tests the store and the sidecar with wrong certificates and passwords, missing replicas, and
//! flushed scripts.

use std::fs;
use std::time::{Duration, Instant};

use twofactor_core::decision::{Undecided, Verdict};
use twofactor_core::secret::SecretText;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::clock::Clock;
use twofactor_store::redis::{RedisAccess, RedisStore};
use twofactor_store::{Publishing, Store, StoreError};
use twofactor_tests::redis::{AppendFsync, RedisServer, Tls};
use twofactor_tests::wait::eventually;

use crate::support::sidecar::{serve, shown};
use crate::support::world::{World, names};

const BOUND: Duration = Duration::from_secs(20);
const LIFETIME: Duration = Duration::from_mins(5);

/// Access by a URL with the authority of a test's Redis.
pub(super) fn trusting(url: &str, tls: &Tls) -> RedisAccess {
    let authority = Some(tls.authority.clone());
    RedisAccess { authority, ..RedisAccess::by_url(SecretText::new(url.to_owned())) }
}

#[tokio::test]
async fn the_stores_of_all_realms_follow_another_password() {
    let redis = RedisServer::builder().password("first").start().await;
    let store = RedisStore::new(&redis.url(), names(), Clock::System).unwrap();
    let realm = Publishing::new(Store::Redis(store.for_realm(names())));
    assert_eq!(realm.users().await.unwrap(), []);
    let mut administrator = redis.connect().await;
    for words in
        [&["CONFIG", "SET", "requirepass", "second"][..], &["CLIENT", "KILL", "TYPE", "normal"]]
    {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec_async(&mut administrator).await.unwrap();
    }
    eventually(BOUND, "the login to be refused", async || {
        realm.users().await.is_err_and(|error| error.is_access_refused())
    })
    .await;
    let url = redis.url().replace("first", "second");
    store.change_access(&RedisAccess::by_url(SecretText::new(url))).unwrap();
    assert_eq!(realm.users().await.unwrap(), []);
    let invalid = RedisAccess::by_url(SecretText::new("redis+sentinel://host".to_owned()));
    assert!(store.change_access(&invalid).is_err());
    assert_eq!(realm.users().await.unwrap(), []);
}

#[tokio::test]
async fn redis_is_reached_over_tls_and_an_untrusted_server_is_refused() {
    let tls = Tls::new();
    let redis = RedisServer::builder().tls(tls.clone()).password("first").start().await;
    let _: () = redis.ask(&["ACL", "SETUSER", "another", "on", ">p:w", "~*", "+@all"]).await;
    let url = redis.url().replace("rediss://:first@", "rediss://another:p%3Aw@");
    let store = RedisStore::with_access(&trusting(&url, &tls), names(), Clock::System).unwrap();
    let world = World::around(Store::Redis(store), Clock::System).await;
    let person = world.person("carol", App).await;
    let credentials = world.credentials_for(&url, "kms");
    // The system does not trust the authority: there is no answer and no fallback, and the log says
    // why.
    let sidecar = serve(credentials.path()).await;
    sidecar.process().wait_for_line("invalid peer certificate", BOUND).await;
    let begun = Instant::now();
    let reply = sidecar.api().verify("carol", &shown(&person)).await;
    assert_eq!(reply.status, 503, "{}", reply.body);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    // Another authority does not help, and an invalid certificate is reported with its file.
    fs::write(credentials.path().join("redis-ca"), "no certificate").unwrap();
    sidecar.process().wait_for_line("redis-ca: contains no certificate", BOUND).await;
    fs::write(credentials.path().join("redis-ca"), Tls::new().authority).unwrap();
    sidecar.process().wait_for_line("the new ones are in use", BOUND).await;
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 503);
    // The right authority is loaded without a restart.
    fs::write(credentials.path().join("redis-ca"), &tls.authority).unwrap();
    eventually(BOUND, "the right authority", async || {
        sidecar.api().verify("carol", "0000000").await.status == 401
    })
    .await;
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 200);
}

#[tokio::test]
async fn a_wrong_redis_password_is_reported_and_the_right_one_needs_no_restart() {
    let redis = RedisServer::builder().password("right").start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let person = world.person("carol", App).await;
    let url = world.redis().url();
    let credentials = world.credentials_for(&url.replace(":right@", ":wr0ng-one@"), "kms");
    let sidecar = serve(credentials.path()).await;
    sidecar.process().wait_for_line("Redis refuses access to this sidecar", BOUND).await;
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 503);
    assert!(!sidecar.process().output().contains("wr0ng-one"));
    fs::write(credentials.path().join("redis-url"), url).unwrap();
    eventually(BOUND, "the right password", async || {
        sidecar.api().verify("carol", "0000000").await.status == 401
    })
    .await;
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 200);
}

#[tokio::test]
async fn a_script_that_redis_has_flushed_is_loaded_again() {
    let world = World::in_redis().await;
    let (alice, carol) = (world.person("alice", Email).await, world.person("carol", App).await);
    for _ in 0..2 {
        world.issue(&alice, "kms", LIFETIME).await.unwrap();
        world.verify(&carol, "kms", &carol.wrong_code(world.now())).await.unwrap();
        let _: () = world.redis().ask(&["SCRIPT", "FLUSH"]).await;
    }
    let code = alice.code_at(world.now(), 0);
    assert_eq!(world.verify(&alice, "kms", &code).await.unwrap(), Verdict::Accepted);
    let _: () = world.redis().ask(&["SCRIPT", "FLUSH"]).await;
    world.publish(alice.record.clone(), false).await;
    let _: () = world.redis().ask(&["SCRIPT", "FLUSH"]).await;
    world.fill(&[&alice, &carol]).await;
    let alice = world.current(&alice).await;
    assert_eq!(world.verify(&alice, "kms", &code).await.unwrap(), Verdict::Used);
}

#[tokio::test]
async fn a_replica_decides_nothing_until_it_is_a_checked_master() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let carol = world.person("carol", App).await;
    let port = world.redis().port().to_string();
    let replica = RedisServer::builder().args(["--replicaof", "127.0.0.1", &port]).start().await;
    replica.wait_in_sync(world.redis()).await;
    // A service's URL leads to the replica.
    let store = Store::Redis(RedisStore::new(&replica.url(), names(), Clock::System).unwrap());
    let on_replica = World::of(&world, store);
    for _ in 0..2 {
        let code = carol.code_at(world.now(), 0);
        let verdict = on_replica.verify(&carol, "kms", &code).await;
        assert!(
            matches!(verdict, Err(StoreError::Undecided(Undecided::UncheckedNode))),
            "{verdict:?}"
        );
    }
    let refused =
        on_replica.publisher.begin_fill(Some(&[]), &mut crate::support::world::random()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let _: () = replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
    eventually(BOUND, "a check of the new master", async || {
        on_replica
            .publisher
            .begin_fill(Some(&[]), &mut crate::support::world::random())
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    on_replica.fill(&[&carol]).await;
    let carol = on_replica.current(&carol).await;
    let wrong = carol.wrong_code(world.now());
    assert_eq!(on_replica.verify(&carol, "kms", &wrong).await.unwrap(), Verdict::Wrong);
}

#[tokio::test]
async fn an_accepted_code_stays_used_after_a_restart_from_the_append_only_file() {
    let redis = RedisServer::builder().append_only(AppendFsync::Always).start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let carol = world.person("carol", App).await;
    let code = carol.code_at(world.now(), 0);
    assert_eq!(world.verify(&carol, "kms", &code).await.unwrap(), Verdict::Accepted);
    world.redis().kill();
    world.redis().restart().await;
    eventually(BOUND, "Redis to answer", async || {
        world.publisher.store().inspect().await.map_err(|error| error.to_string())
    })
    .await;
    world.fill(&[&carol]).await;
    let carol = world.current(&carol).await;
    assert_eq!(world.verify(&carol, "kms", &code).await.unwrap(), Verdict::Used);
}

/// A master with a synchronized replica.
async fn with_replica() -> (World, RedisServer) {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let port = world.redis().port().to_string();
    let replica = RedisServer::builder().args(["--replicaof", "127.0.0.1", &port]).start().await;
    replica.wait_in_sync(world.redis()).await;
    // The first replica changes the replication id of a master, which then has to be checked again.
    world.fill(&[]).await;
    (world, replica)
}

#[tokio::test]
async fn an_accepted_code_is_confirmed_once_enough_replicas_have_it_and_stays_used_if_not() {
    let (world, replica) = with_replica().await;
    let carol = world.person("carol", App).await;
    let mut confirmed = None;
    for name in ["alice", "bob", "frank"] {
        world.store.require_replicas(0);
        let person = world.person(name, App).await;
        world.store.require_replicas(1);
        let verdict = world.verify(&person, "kms", &person.code_at(world.now(), 0)).await;
        // On a busy machine, the replica may be late.
        if !matches!(verdict, Err(StoreError::Unacknowledged)) {
            assert_eq!(verdict.unwrap(), Verdict::Accepted);
            confirmed = Some(person);
            break;
        }
    }
    let alice = confirmed.expect("a code that is confirmed");
    // The replica has the state.
    let state = names().user(&alice.pseudonym).state;
    let until: u64 = replica.ask(&["HGET", &state, "until"]).await;
    assert!(until > 0);
    replica.pause().await;
    let (wrong, right) = (carol.wrong_code(world.now()), carol.code_at(world.now(), 0));
    let begun = Instant::now();
    let (unacknowledged, beside) = tokio::join!(world.verify(&carol, "kms", &right), async {
        // Only a request that needs replicas waits for them.
        let verdict = world.verify(&alice, "kms", &wrong).await;
        (verdict, begun.elapsed())
    });
    assert!(matches!(unacknowledged, Err(StoreError::Unacknowledged)), "{unacknowledged:?}");
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(beside.0.is_ok() && beside.1 < Duration::from_millis(400), "{beside:?}");
    replica.resume();
    assert_eq!(world.verify(&carol, "kms", &right).await.unwrap(), Verdict::Used);
    // One replica is too few if two are required, and no request waits if none is required.
    let dora = world.person("dora", App).await;
    world.store.require_replicas(2);
    let code = dora.code_at(world.now(), 0);
    assert!(matches!(world.verify(&dora, "kms", &code).await, Err(StoreError::Unacknowledged)));
    world.store.require_replicas(0);
    let erin = world.person("erin", App).await;
    assert_eq!(
        world.verify(&erin, "kms", &erin.code_at(world.now(), 0)).await.unwrap(),
        Verdict::Accepted
    );
}

#[tokio::test]
async fn a_code_verified_fifty_times_with_replicas_is_accepted_once() {
    let (world, _replica) = with_replica().await;
    world.store.require_replicas(1);
    let alice = world.person("alice", App).await;
    let request =
        std::sync::Arc::new(world.verification(&alice, "kms", &alice.code_at(world.now(), 0)));
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (store, pseudonym, request) = (world.store.clone(), alice.pseudonym, request.clone());
        requests.spawn(async move { store.verify(&pseudonym, &request).await.unwrap() });
    }
    let verdicts = requests.join_all().await;
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Accepted).count(), 1);
}

#[tokio::test]
async fn a_sidecar_says_that_redis_has_too_many_clients() {
    let redis = RedisServer::start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let person = world.person("carol", App).await;
    let mut administrator = world.redis().connect().await;
    let mut limit = async |clients: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxclients").arg(clients);
        set.exec_async(&mut administrator).await.unwrap();
    };
    limit("1").await;
    let credentials = world.credentials("kms");
    let sidecar = serve(credentials.path()).await;
    sidecar.process().wait_for_line("Redis has too many clients", BOUND).await;
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 503);
    let metrics = sidecar.admin().get("/metrics").await.body;
    let failures = "twofactor_store_failures_total{reason=\"too-many-clients\"}";
    assert!(metrics.contains(failures), "{metrics}");
    assert!(!sidecar.process().output().contains("Redis does not answer"));
    limit("1000").await;
    eventually(BOUND, "the sidecar to verify", async || {
        let reply = sidecar.api().verify("carol", &shown(&person)).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    })
    .await;
}
