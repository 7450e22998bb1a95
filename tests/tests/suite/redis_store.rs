//! What only a real Redis can show: names of keys, expiry, round trips, restarts and failovers.

use std::time::Duration;

use redis::AsyncCommands;
use twofactor_core::decision::{Undecided, Verdict};
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::StoreError;
use twofactor_store::clock::Clock;
use twofactor_tests::redis::{AppendFsync, RedisServer};

use crate::world::{START, STEP, World};

const LIFETIME: Duration = Duration::from_mins(5);

async fn keys(redis: &RedisServer) -> Vec<String> {
    let mut keys: Vec<String> = redis.connect().await.keys("*").await.unwrap();
    keys.sort();
    keys
}

#[tokio::test]
async fn keys_name_nobody_and_all_but_record_and_state_expire() {
    let world = World::in_redis().await;
    let person = world.person("alice{x}", Email).await;
    world.issue(&person, "kms", LIFETIME).await.unwrap();
    world.verify(&person, "kms", &person.wrong_code(world.now())).await.unwrap();
    let mut connection = world.redis().connect().await;
    let mut seen = Vec::new();
    for key in keys(world.redis()).await {
        assert!(!key.contains("alice"), "{key}");
        let kind = key.rsplit(':').next().unwrap().to_owned();
        let expires: i64 = connection.pttl(&key).await.unwrap();
        assert_eq!(expires > 0, kind == "otp", "{key}: {expires}");
        if kind == "otp" {
            assert!(expires <= 301_000, "{expires}");
        }
        seen.push(kind);
    }
    seen.sort();
    assert_eq!(seen, ["meta", "otp", "rec", "rec", "state"].map(str::to_owned)[..seen.len()].to_vec());
    world.set_time(START + 302_000).await;
    assert!(!keys(world.redis()).await.iter().any(|key| key.ends_with(":otp")));
}

#[tokio::test]
async fn neither_codes_nor_seeds_nor_addresses_are_in_redis_in_clear() {
    let world = World::in_redis().await;
    let person = world.person("alice", Email).await;
    world.issue(&person, "kms", LIFETIME).await.unwrap();
    let code = person.code_at(world.now(), 0);
    let seed = person.record.seed.as_ref().unwrap();
    let mut connection = world.redis().connect().await;
    let mut content = Vec::new();
    for key in keys(world.redis()).await {
        content.extend(redis::cmd("DUMP").arg(&key).query_async::<Vec<u8>>(&mut connection).await.unwrap());
    }
    let contains = |needle: &[u8]| content.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"kms"), "the search works");
    assert!(!contains(code.expose_secret().as_bytes()) && !contains(b"alice"));
    assert!(!contains(seed.expose_secret()) && !contains(seed.to_base32().expose_secret().as_bytes()));
}

/// How often Redis was asked for something from outside, by command.
async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let info: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut redis.connect().await).await.unwrap();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")).map(str::to_owned));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_decision_is_one_round_trip() {
    let world = World::in_redis().await;
    let person = world.person("carol", App).await;
    let wrong = person.wrong_code(world.now());
    // The first one learns the guards and loads the script.
    world.verify(&person, "warm-up", &wrong).await.unwrap();
    let commands = ["evalsha", "eval", "get", "hgetall", "script|load"];
    let mut before = Vec::new();
    for command in commands {
        before.push(calls(world.redis(), command).await);
    }
    for number in 0..20 {
        world.verify(&person, &format!("caller-{number}"), &wrong).await.unwrap();
    }
    let mut made = Vec::new();
    for (command, before) in commands.into_iter().zip(before) {
        made.push(calls(world.redis(), command).await - before);
    }
    assert_eq!(made, [20, 0, 0, 0, 0]);
}

fn unguarded<T: std::fmt::Debug>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Undecided(Undecided::Unguarded)))
}

#[tokio::test]
async fn a_redis_that_started_again_decides_nothing_before_it_is_checked() {
    let redis = RedisServer::builder().append_only(AppendFsync::Always).start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let nobody = world.keys().pseudonym(&"nobody".parse().unwrap());
    assert!(world.store.confirm_absence(&nobody).await.unwrap());
    world.redis().restart().await;
    let answer =
        twofactor_tests::wait::eventually(Duration::from_secs(5), "Redis to answer again", async || {
            match world.store.confirm_absence(&nobody).await {
                Err(StoreError::Unavailable(error)) => Err(error.to_string()),
                other => Ok(other),
            }
        })
        .await;
    assert!(unguarded(&answer), "{answer:?}");
    world.fill(&[]).await;
    assert!(world.store.confirm_absence(&nobody).await.unwrap());
}

#[tokio::test]
async fn after_a_restart_with_lost_writes_no_code_is_accepted_twice() {
    let world = World::in_redis().await;
    let (alice, carol) = (world.person("alice", Email).await, world.person("carol", App).await);
    world.issue(&alice, "kms", LIFETIME).await.unwrap();
    // What a restart will bring back: a moment before anything was used.
    let mut connection = world.redis().connect().await;
    redis::cmd("SAVE").exec_async(&mut connection).await.unwrap();
    let (mailed, computed) = (alice.code_at(world.now(), 0), carol.code_at(world.now(), 0));
    assert_eq!(world.verify(&alice, "kms", &mailed).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&carol, "kms", &computed).await.unwrap(), Verdict::Accepted);
    world.redis().kill();
    world.set_time(START + 5_000).await;
    world.redis().restart().await;
    let verdict =
        twofactor_tests::wait::eventually(Duration::from_secs(5), "Redis to answer again", async || {
            match world.verify(&carol, "kms", &computed).await {
                Err(StoreError::Unavailable(error)) => Err(error.to_string()),
                other => Ok(other),
            }
        })
        .await;
    assert!(unguarded(&verdict), "{verdict:?}");
    world.fill(&[&alice, &carol]).await;
    let (alice, carol) = (world.current(&alice).await, world.current(&carol).await);
    assert_eq!(world.verify(&alice, "kms", &mailed).await.unwrap(), Verdict::Used);
    assert_eq!(world.verify(&carol, "kms", &computed).await.unwrap(), Verdict::Used);
    // A minute later everything is as it was.
    world.set_time(START + 3 * STEP).await;
    assert_eq!(world.verify(&carol, "kms", &carol.code_at(world.now(), 0)).await.unwrap(), Verdict::Accepted);
}

#[tokio::test]
async fn a_node_that_was_replica_and_became_master_again_has_to_be_checked_again() {
    let world = World::in_redis().await;
    let carol = world.person("carol", App).await;
    let wrong = carol.wrong_code(world.now());
    assert_eq!(world.verify(&carol, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    let other = RedisServer::start().await;
    let mut connection = world.redis().connect().await;
    let replica_of = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).clone();
    // The same process, demoted and promoted: what it held may have been replaced meanwhile.
    replica_of("127.0.0.1", &other.port().to_string()).exec_async(&mut connection).await.unwrap();
    replica_of("NO", "ONE").exec_async(&mut connection).await.unwrap();
    let verdict = world.verify(&carol, "kms", &wrong).await;
    assert!(unguarded(&verdict), "{verdict:?}");
}

#[tokio::test]
async fn a_redis_without_memory_accepts_nothing_rather_than_without_counting() {
    let world = World::in_redis().await;
    let person = world.person("carol", App).await;
    let (wrong, right) = (person.wrong_code(world.now()), person.code_at(world.now(), 0));
    assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    let mut connection = world.redis().connect().await;
    let mut limit = async |bytes: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(bytes).exec_async(&mut connection).await.unwrap();
    };
    limit("1mb").await;
    for code in [&wrong, &right, &wrong, &right] {
        let verdict = world.verify(&person, "kms", code).await;
        assert!(matches!(verdict, Err(StoreError::Unavailable(_))), "{verdict:?}");
    }
    limit("0").await;
    assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Accepted);
}

#[tokio::test]
async fn a_login_that_was_refused_is_tried_again() {
    let redis = RedisServer::start().await;
    let url = redis.url().replace("redis://", "redis://late:a-password@");
    let store = twofactor_store::redis::RedisStore::new(&url, crate::world::names(), Clock::System).unwrap();
    let store = twofactor_store::Store::Redis(store);
    let refused = store.realm().await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("late").arg("on").arg(">a-password").arg("~*").arg("+@all");
    command.exec_async(&mut redis.connect().await).await.unwrap();
    twofactor_tests::wait::eventually(Duration::from_secs(10), "the login", async || store.realm().await)
        .await;
}
