//! Tests the store and sidecars on real Sentinels, with a failover under load to a replica that
//! lags behind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use twofactor_core::decision::Verdict;
use twofactor_core::totp::{Algorithm, TotpParameters};
use twofactor_core::user::DeliveryMethod::App;
use twofactor_store::clock::Clock;
use twofactor_store::redis::RedisStore;
use twofactor_store::{Decisions, Store};
use twofactor_tests::http::ApiClient;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::redis::sentinel::RedisSentinels;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;

use crate::support::sidecar::{Served, shown};
use crate::support::world::{Person, World, names, record};

const BOUND: Duration = Duration::from_mins(1);
const DOWN_AFTER: Duration = Duration::from_secs(1);
const SIDECARS: usize = 3;
const PEOPLE: usize = 20;
/// Longest answer: a second is promised, the rest is for a busy machine.
const ANSWER: Duration = Duration::from_secs(3);

/// A master with a replica, and three Sentinels.
async fn three_sentinels() -> (World, RedisServer) {
    let master =
        RedisServer::builder().password("secret").args(["--masterauth", "secret"]).start().await;
    let port = master.port().to_string();
    let replica = RedisServer::builder()
        .password("secret")
        .args(["--masterauth", "secret", "--replicaof", "127.0.0.1", &port])
        .start()
        .await;
    let sentinels = RedisSentinels::start(&master, 3, DOWN_AFTER).await;
    sentinels.wait_for_a_replica().await;
    replica.wait_in_sync(&master).await;
    let store = RedisStore::new(&sentinels.url(), names(), Clock::System).unwrap();
    let mut world = World::around(Store::Redis(store), Clock::System).await;
    (world.redis, world.sentinels) = (Some(master), Some(sentinels));
    (world, replica)
}

/// The answers under load.
#[derive(Default)]
struct Answers {
    /// Successes by user and code.
    accepted: HashMap<(String, String), u32>,
    statuses: HashMap<u16, u32>,
    /// Duration of the slowest answer.
    longest: Duration,
}

/// Submits the code of each user's app repeatedly through all sidecars until `stop` is set.
async fn load(apis: Vec<ApiClient>, people: Arc<Vec<Person>>, stop: Arc<AtomicBool>) -> Answers {
    let answers = Arc::new(Mutex::new(Answers::default()));
    let mut workers = JoinSet::new();
    for worker in 0..6 {
        let (apis, people, stop, answers) =
            (apis.clone(), people.clone(), stop.clone(), answers.clone());
        workers.spawn(async move {
            let mut turn = worker;
            // At a steady rate instead of at full speed, because other tests share the machine.
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                let person = &people[turn % people.len()];
                let (name, code) = (person.record.definition.username.to_string(), shown(person));
                let begun = Instant::now();
                let reply = apis[turn % apis.len()].verify(&name, &code).await;
                let took = begun.elapsed();
                let mut answers = answers.lock().unwrap();
                answers.longest = answers.longest.max(took);
                *answers.statuses.entry(reply.status).or_default() += 1;
                if reply.status == 200 {
                    *answers.accepted.entry((name, code)).or_default() += 1;
                }
                turn += 7;
            }
        });
    }
    workers.join_all().await;
    std::mem::take(&mut answers.lock().unwrap())
}

/// Users with short steps, because after the failover codes of two steps are refused.
async fn publish_people(world: &World) -> Vec<Person> {
    let mut people = Vec::new();
    for number in 0..PEOPLE {
        let mut record = record(&format!("user{number}"), App);
        record.definition.totp = TotpParameters::new(Algorithm::Sha1, 6, 15, 1).unwrap();
        people.push(world.publish(record, true).await);
    }
    people
}

async fn wait_for_a_success(sidecar: &SidecarProcess) {
    eventually(BOUND, "codes to be accepted", async || {
        let metrics = sidecar.admin().get("/metrics").await.body;
        let success = |line: &&str| {
            line.contains("route=\"/auth/verify\"") && line.contains("status=\"200\"")
        };
        let line = metrics
            .lines()
            .filter(|line| line.starts_with("twofactor_http_requests_total"))
            .find(success);
        line.is_some_and(|line| !line.ends_with(" 0"))
    })
    .await;
}

/// Kills the master, and waits until the Sentinels have promoted the replica.
async fn fail_over(world: &World, replica: &RedisServer) {
    world.redis().kill();
    replica.resume();
    let sentinels = world.sentinels.as_ref().unwrap();
    eventually(BOUND, "the Sentinels to choose the replica", async || {
        let master = sentinels.master().await;
        if master == replica.port() { Ok(()) } else { Err(format!("{master} is the master")) }
    })
    .await;
}

/// Checks and fills the new master, as the operator does.
async fn check_and_fill(world: &World, people: &[Person]) {
    use twofactor_store::publisher::{DesiredUser, UnlistedUsers};
    let unchecked = eventually(BOUND, "the publisher to reach the new master", async || {
        world.publisher.store().inspect().await.map_err(|error| error.to_string())
    })
    .await;
    assert!(!unchecked.ready, "the promoted replica must be checked before it decides");
    eventually(BOUND, "the refill", async || {
        let users: Vec<DesiredUser> = people
            .iter()
            .map(|person| DesiredUser {
                record: person.record.clone(),
                fresh: false,
                reset: None,
                disabled: false,
            })
            .collect();
        let (realm, now) = (twofactor_core::realm::RealmRecord::default(), Clock::System.now());
        world
            .publisher
            .fill(&realm, &users, UnlistedUsers::Remove, now, &mut crate::support::world::random())
            .await
    })
    .await;
}

async fn wait_for_decisions(apis: &[ApiClient]) {
    for api in apis {
        eventually(BOUND, "a decision", async || {
            let reply = api.verify("user0", "0000000").await;
            if reply.status == 503 { Err(reply.body) } else { Ok(()) }
        })
        .await;
    }
}

async fn wait_for_an_accepted_code(api: &ApiClient, people: &[Person]) {
    eventually(Duration::from_mins(2), "a code to be accepted again", async || {
        let mut accepted = false;
        for person in people {
            let name = person.record.definition.username.as_str();
            accepted |= api.verify(name, &shown(person)).await.status == 200;
        }
        accepted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_lagging_replica_under_load_accepts_no_code_twice_and_needs_no_restart() {
    let (world, replica) = three_sentinels().await;
    let people = Arc::new(publish_people(&world).await);
    let sidecars = Served::start_many(&world, "kms", SIDECARS).await;
    let apis: Vec<ApiClient> = sidecars.iter().map(|sidecar| sidecar.api()).collect();
    let stop = Arc::new(AtomicBool::new(false));

    // From here on the replica misses all writes, so that only the master knows the accepted codes.
    replica.pause().await;
    let _: i64 = world.redis().ask(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    let loading = tokio::spawn(load(apis.clone(), people.clone(), stop.clone()));
    wait_for_a_success(&sidecars[0]).await;
    let killed = Instant::now();
    fail_over(&world, &replica).await;
    check_and_fill(&world, &people).await;
    // Every sidecar decides again without a restart, and accepts codes again after about a minute.
    wait_for_decisions(&apis).await;
    eprintln!("deciding again {:?} after the master was killed", killed.elapsed());
    wait_for_an_accepted_code(&apis[0], &people).await;

    stop.store(true, Ordering::Relaxed);
    let Answers { accepted, statuses, longest } = loading.await.unwrap();
    eprintln!("answers: {statuses:?}; the longest took {longest:?}");
    assert!(accepted.values().all(|count| *count == 1), "{accepted:?}");
    assert!(statuses.keys().all(|status| [200, 400, 429, 503].contains(status)), "{statuses:?}");
    assert!(longest < ANSWER, "{longest:?}");
}

#[tokio::test]
async fn a_promoted_replica_has_the_scripts_when_sidecars_decide_on_it() {
    let (world, replica) = three_sentinels().await;
    let person = world.person("user0", App).await;
    replica.wait_in_sync(world.redis()).await;
    fail_over(&world, &replica).await;
    check_and_fill(&world, std::slice::from_ref(&person)).await;
    let person = world.current(&person).await;
    let service = Decisions::unobserved(Store::Redis(world.service_store(names()).await));
    let used = eventually(BOUND, "a decision", async || {
        let code = person.code_at(world.now(), 0);
        let verification = world.verification(&person, "kms", &code);
        let verdict = service.verify(&person.pseudonym, &verification).await;
        verdict.map_err(|error| format!("{error:?}"))
    })
    .await;
    // It could have been used before the failover.
    assert_eq!(used, Verdict::Used);
    let log: Vec<redis::Value> = replica.ask(&["ACL", "LOG"]).await;
    assert_eq!(log, []);
}

#[tokio::test]
async fn an_unknown_master_name_is_reported_as_such() {
    let master = RedisServer::start().await;
    let sentinels = RedisSentinels::start(&master, 1, DOWN_AFTER).await;
    let url = sentinels.url().replace("/main", "/other");
    let store = Store::Redis(RedisStore::new(&url, names(), Clock::System).unwrap());
    let Err(error) = Decisions::unobserved(store).realm(None).await else { panic!() };
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("the Sentinels know no master of this name"), "{cause}");
}
