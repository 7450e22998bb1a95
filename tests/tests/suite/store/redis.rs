//! Tests the store on a real Redis: names of keys, expiry, round trips, restarts and failovers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use tokio::task::JoinSet;
use twofactor_core::code::Code;
use twofactor_core::decision::{Undecided, Verdict};
use twofactor_core::limits::Allowance;
use twofactor_core::realm::RealmRecord;
use twofactor_core::seal::BEGINNING_BYTES;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::clock::Clock;
use twofactor_store::{Decisions, RealmRead, Store, StoreError};
use twofactor_tests::redis::{AppendFsync, RedisServer};

use crate::support::world::{Person, START, STEP, World, caller, names, random};

const LIFETIME: Duration = Duration::from_mins(5);
/// Duration of races.
const ROUNDS: Duration = Duration::from_secs(3);

async fn keys(redis: &RedisServer) -> Vec<String> {
    let mut keys: Vec<String> = redis.connect().await.keys("*").await.unwrap();
    keys.sort();
    keys
}

#[tokio::test]
async fn keys_contain_no_username_and_all_but_record_and_state_expire() {
    let world = World::in_redis().await;
    let person = world.person("alice{x}", Email).await;
    world.issue(&person, "kms", LIFETIME).await.unwrap();
    world.verify(&person, "kms", &person.wrong_code(world.now())).await.unwrap();
    world.store.count_delivery(&caller("kms"), 10, 5).await.unwrap();
    let mut connection = world.redis().connect().await;
    let mut seen = Vec::new();
    for key in keys(world.redis()).await {
        assert!(!key.contains("alice"), "{key}");
        let kind = key.rsplit(':').next().unwrap().to_owned();
        let expires: i64 = connection.pttl(&key).await.unwrap();
        let longest = match kind.as_str() {
            "otp" => 301_000,
            "hist" => 30 * 24 * 3_600_000,
            "sent" => 3_600_000,
            _ => 0,
        };
        assert!(
            if longest > 0 { (1..=longest).contains(&expires) } else { expires == -1 },
            "{key}: {expires}"
        );
        seen.push(kind);
    }
    seen.sort();
    assert_eq!(
        seen,
        ["hist", "meta", "otp", "rec", "rec", "sent", "state", "users", "writes"]
            .map(str::to_owned)
    );
    world.set_time(START + 302_000).await;
    assert!(!keys(world.redis()).await.iter().any(|key| key.ends_with(":otp")));
    world.set_time(START + 30 * 24 * 3_600_000 + 1).await;
    assert!(
        !keys(world.redis())
            .await
            .iter()
            .any(|key| key.ends_with(":hist") || key.ends_with(":sent"))
    );
}

#[tokio::test]
async fn a_realm_that_has_not_changed_is_not_read_again() {
    let world = World::in_redis().await;
    let service = Decisions::unobserved(Store::Redis(world.service_store(names()).await));
    world.fill(&[]).await;
    let RealmRead::Changed(sealed) = service.realm(None).await.unwrap() else { panic!() };
    let beginning = &sealed[..BEGINNING_BYTES];
    assert_eq!(service.realm(Some(beginning)).await.unwrap(), RealmRead::Unchanged);
    assert_eq!(service.realm(None).await.unwrap(), RealmRead::Changed(sealed.clone()));

    let realm = RealmRecord { issuer: "another".to_owned(), ..RealmRecord::default() };
    world.publisher.publish_realm(&realm, world.now(), &mut random()).await.unwrap();
    let RealmRead::Changed(changed) = service.realm(Some(beginning)).await.unwrap() else {
        panic!()
    };
    assert_ne!(changed, sealed);

    // A login that may not read a part reads the whole.
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg(acl_user(&world).await).arg("-getrange");
    command.exec_async(&mut world.redis().connect().await).await.unwrap();
    let beginning = &changed[..BEGINNING_BYTES];
    assert_eq!(service.realm(Some(beginning)).await.unwrap(), RealmRead::Unchanged);

    // What is shorter than a beginning is not the same.
    let key = names().realm_record();
    let _: () = world.redis().ask(&["SET", &key, "short"]).await;
    let short = RealmRead::Changed(b"short".to_vec());
    assert_eq!(service.realm(Some(beginning)).await.unwrap(), short);
    let _: i64 = world.redis().ask(&["DEL", &key]).await;
    assert_eq!(service.realm(Some(beginning)).await.unwrap(), RealmRead::Absent);
}

#[tokio::test]
async fn a_user_and_a_login_cost_redis_few_bytes() {
    let world = World::in_redis().await;
    let person = world.person("carol", App).await;
    let size = async || {
        let mut bytes = 0;
        for key in keys(world.redis()).await {
            if key.contains(&person.pseudonym.to_string()) {
                bytes += world.redis().ask::<i64>(&["MEMORY", "USAGE", &key]).await;
            }
        }
        bytes
    };
    let user = size().await;
    assert!((1..=900).contains(&user), "{user} bytes for a user who never logged in");
    // The longest common user agents have some 150 characters.
    let day = async |number: u64| {
        world.set_time(START + number * 24 * 3_600_000).await;
        let code = person.code_at(world.now(), 0);
        let mut request = world.verification(&person, "kms", &code);
        request.audit.address = Some("2001:db8:0:1:2:3:4:5".to_owned());
        request.audit.user_agent = Some("x".repeat(150));
        let verdict = world.store.verify(&person.pseudonym, &request).await.unwrap();
        assert_eq!(verdict, Verdict::Accepted);
    };
    for number in 1..=20 {
        day(number).await;
    }
    let login = (size().await - user) / 20;
    assert!((1..=300).contains(&login), "{login} bytes for a login");
    for number in 21..=90 {
        day(number).await;
    }
    // Entries older than 30 days were removed.
    let bytes = size().await;
    assert!(bytes <= user + 32 * 300, "{bytes} bytes after 90 days");
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
        content.extend(
            redis::cmd("DUMP").arg(&key).query_async::<Vec<u8>>(&mut connection).await.unwrap(),
        );
    }
    let contains = |needle: &[u8]| content.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"kms"), "the search works");
    assert!(!contains(code.expose_secret().as_bytes()) && !contains(b"alice"));
    assert!(
        !contains(seed.expose_secret()) && !contains(seed.to_base32().expose_secret().as_bytes())
    );
}

/// The number of calls of a command by clients.
async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut redis.connect().await)
        .await
        .unwrap();
    let line = info.lines().find_map(|line| {
        line.strip_prefix(&format!("cmdstat_{command}:calls=")).map(str::to_owned)
    });
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_delivery_reads_the_counts_of_the_hour_once_a_minute_for_each_caller() {
    let world = World::in_redis().await;
    let take = async |from: &str, deliveries: u32| {
        for _ in 0..deliveries {
            let counted = world.store.count_delivery(&caller(from), 20, 8).await.unwrap();
            assert_eq!(counted, Allowance::Granted, "{from}");
        }
    };
    for minute in 0..2 {
        world.set_time(START + minute * 60_000).await;
        let before = calls(world.redis(), "hgetall").await;
        for from in ["kms", "shop", "kms", "shop"] {
            take(from, 2).await;
        }
        assert_eq!(calls(world.redis(), "hgetall").await - before, 2);
    }
    // Both limits hold for sums that are remembered.
    let counted = world.store.count_delivery(&caller("kms"), 20, 8).await.unwrap();
    assert!(matches!(counted, Allowance::ShareUsedUp { .. }), "{counted:?}");
    take("vault", 4).await;
    let counted = world.store.count_delivery(&caller("vault"), 20, 8).await.unwrap();
    assert!(matches!(counted, Allowance::LimitReached { .. }), "{counted:?}");
}

#[tokio::test]
async fn a_decision_takes_one_round_trip() {
    let world = World::in_redis().await;
    let person = world.person("carol", App).await;
    let wrong = person.wrong_code(world.now());
    // The first request reads the checked nodes and loads the script.
    world.verify(&person, "warm-up", &wrong).await.unwrap();
    // There are no calls except those of the script, which are counted too.
    let commands = ["evalsha", "eval", "get", "multi", "script|load"];
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

/// The results of fifty requests at once, through three stores with separate connections.
async fn fifty(world: &World, person: &Person, code: &Code) -> Vec<Verdict> {
    let stores: Vec<Decisions> = vec![
        Decisions::unobserved(Store::Redis(world.service_store(names()).await)),
        Decisions::unobserved(Store::Redis(world.service_store(names()).await)),
        world.store.clone(),
    ];
    let request = Arc::new(world.verification(person, "kms", code));
    let mut requests = JoinSet::new();
    for number in 0..50 {
        let (store, user, request) =
            (stores[number % stores.len()].clone(), person.pseudonym, request.clone());
        requests.spawn(async move { store.verify(&user, &request).await.unwrap() });
    }
    requests.join_all().await
}

#[tokio::test]
async fn of_fifty_parallel_verifies_one_succeeds_and_of_fifty_guesses_five_count() {
    let world = World::in_redis().await;
    let count = |verdicts: &[Verdict], is: fn(&Verdict) -> bool| {
        verdicts.iter().filter(|it| is(it)).count()
    };
    let began = Instant::now();
    let mut rounds = 0;
    while began.elapsed() < ROUNDS {
        rounds += 1;
        let person = world.person(&format!("carol-{rounds}"), App).await;
        let verdicts = fifty(&world, &person, &person.code_at(world.now(), 0)).await;
        let (accepted, used) = (
            count(&verdicts, |verdict| matches!(verdict, Verdict::Accepted)),
            count(&verdicts, |verdict| matches!(verdict, Verdict::Used)),
        );
        assert_eq!((accepted, used), (1, 49), "round {rounds}: {verdicts:?}");
        let verdicts = fifty(&world, &person, &person.wrong_code(world.now())).await;
        let (wrong, blocked) = (
            count(&verdicts, |verdict| matches!(verdict, Verdict::Wrong)),
            count(&verdicts, |verdict| matches!(verdict, Verdict::Blocked { .. })),
        );
        assert_eq!((wrong, blocked), (5, 45), "round {rounds}: {verdicts:?}");
        // The history has the success, the five failures, and one entry for each repeated outcome.
        let outcomes: Vec<(String, Option<String>)> = world
            .publisher
            .store()
            .history(&person.pseudonym)
            .await
            .unwrap()
            .into_iter()
            .map(|entry| (entry.outcome, entry.repeated))
            .collect();
        let words: Vec<&str> = outcomes.iter().map(|(outcome, _)| outcome.as_str()).collect();
        assert_eq!(
            words,
            ["accepted", "used", "wrong", "wrong", "wrong", "wrong", "wrong", "blocked"]
        );
        assert_eq!(outcomes[2].1.as_deref(), Some("verify/used=48"));
    }
    assert!(rounds > 3, "only {rounds} rounds");
}

#[tokio::test]
async fn a_login_of_the_previous_version_still_gets_decisions() {
    let world = World::in_redis().await;
    let person = world.person("carol", App).await;
    let store = Decisions::unobserved(Store::Redis(world.service_store(names()).await));
    let admin = world.redis().connect().await;
    let name = acl_user(&world).await;
    let acl = async |rule: &str| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg(&name).arg(rule).exec_async(&mut admin.clone()).await.unwrap();
    };
    // As a previous version of the operator sets it: without histories and without the realm's
    // count.
    acl("-rpush").await;
    acl("resetkeys").await;
    for pattern in names().keys_to_read().into_iter().chain(names().keys_to_write()) {
        if pattern != names().realm_deliveries() {
            acl(&format!("~{pattern}")).await;
        }
    }
    assert!(store.count_delivery(&caller("kms"), 1, 0).await.unwrap_err().is_access_refused());
    let right = person.code_at(world.now(), 0);
    let verify = async |code: &Code| {
        let request = world.verification(&person, "kms", code);
        store.verify(&person.pseudonym, &request).await.unwrap()
    };
    assert_eq!(verify(&right).await, Verdict::Accepted);
    assert_eq!(verify(&right).await, Verdict::Used);
    assert_eq!(world.publisher.store().history(&person.pseudonym).await.unwrap(), []);
    acl("+rpush").await;
    assert_eq!(verify(&person.wrong_code(world.now())).await, Verdict::Wrong);
    assert_eq!(world.publisher.store().history(&person.pseudonym).await.unwrap().len(), 1);
}

async fn acl_user(world: &World) -> String {
    let mut command = redis::cmd("ACL");
    let users: Vec<String> =
        command.arg("USERS").query_async(&mut world.redis().connect().await).await.unwrap();
    users.into_iter().find(|name| name != "default").unwrap()
}

fn unguarded<T: std::fmt::Debug>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Undecided(Undecided::UncheckedNode)))
}

#[tokio::test]
async fn a_restarted_redis_decides_nothing_before_it_is_checked() {
    let redis = RedisServer::builder().append_only(AppendFsync::Always).start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let unknown = world.keys().pseudonym(&"unknown".parse().unwrap());
    assert!(world.store.confirm_absence(&unknown).await.unwrap());
    world.redis().restart().await;
    let answer = twofactor_tests::wait::eventually(
        Duration::from_secs(5),
        "Redis to answer again",
        async || match world.store.confirm_absence(&unknown).await {
            Err(StoreError::Unavailable(error)) => Err(error.to_string()),
            other => Ok(other),
        },
    )
    .await;
    assert!(unguarded(&answer), "{answer:?}");
    world.fill(&[]).await;
    assert!(world.store.confirm_absence(&unknown).await.unwrap());
}

#[tokio::test]
async fn no_code_is_accepted_twice_after_a_restart_with_lost_writes() {
    let world = World::in_redis().await;
    let (alice, carol) = (world.person("alice", Email).await, world.person("carol", App).await);
    world.issue(&alice, "kms", LIFETIME).await.unwrap();
    // The snapshot that a restart restores is from before any code was used.
    let mut connection = world.redis().connect().await;
    redis::cmd("SAVE").exec_async(&mut connection).await.unwrap();
    let (mailed, computed) = (alice.code_at(world.now(), 0), carol.code_at(world.now(), 0));
    assert_eq!(world.verify(&alice, "kms", &mailed).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&carol, "kms", &computed).await.unwrap(), Verdict::Accepted);
    world.redis().kill();
    world.set_time(START + 5_000).await;
    world.redis().restart().await;
    let verdict = twofactor_tests::wait::eventually(
        Duration::from_secs(5),
        "Redis to answer again",
        async || match world.verify(&carol, "kms", &computed).await {
            Err(StoreError::Unavailable(error)) => Err(error.to_string()),
            other => Ok(other),
        },
    )
    .await;
    assert!(unguarded(&verdict), "{verdict:?}");
    world.fill(&[&alice, &carol]).await;
    let (alice, carol) = (world.current(&alice).await, world.current(&carol).await);
    assert_eq!(world.verify(&alice, "kms", &mailed).await.unwrap(), Verdict::Used);
    assert_eq!(world.verify(&carol, "kms", &computed).await.unwrap(), Verdict::Used);
    // A minute later codes are accepted again.
    world.set_time(START + 3 * STEP).await;
    assert_eq!(
        world.verify(&carol, "kms", &carol.code_at(world.now(), 0)).await.unwrap(),
        Verdict::Accepted
    );
}

#[tokio::test]
async fn a_node_that_becomes_master_again_has_to_be_checked_again() {
    let world = World::in_redis().await;
    let carol = world.person("carol", App).await;
    let wrong = carol.wrong_code(world.now());
    assert_eq!(world.verify(&carol, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    let other = RedisServer::start().await;
    let mut connection = world.redis().connect().await;
    let replica_of = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).clone();
    // The same process was demoted and promoted again, and its data may have been replaced in
    // between.
    replica_of("127.0.0.1", &other.port().to_string()).exec_async(&mut connection).await.unwrap();
    replica_of("NO", "ONE").exec_async(&mut connection).await.unwrap();
    let verdict = world.verify(&carol, "kms", &wrong).await;
    assert!(unguarded(&verdict), "{verdict:?}");
}

#[tokio::test]
async fn a_redis_without_memory_accepts_no_code_without_counting_it() {
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
async fn a_refused_login_is_tried_again() {
    let redis = RedisServer::start().await;
    let url = redis.url().replace("redis://", "redis://late:a-password@");
    let store = twofactor_store::redis::RedisStore::new(&url, names(), Clock::System).unwrap();
    let store = Decisions::unobserved(Store::Redis(store));
    let refused = store.realm(None).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("late").arg("on").arg(">a-password").arg("~*").arg("+@all");
    command.exec_async(&mut redis.connect().await).await.unwrap();
    twofactor_tests::wait::eventually(Duration::from_secs(10), "the login", async || {
        store.realm(None).await
    })
    .await;
}
