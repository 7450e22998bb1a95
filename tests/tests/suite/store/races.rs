//! Tests that one code is accepted once under parallel requests through several sidecars, and while
//! Redis fails. The programs and Redis are real.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use twofactor_core::user::DeliveryMethod::App;
use twofactor_tests::http::ApiClient;
use twofactor_tests::redis::{AppendFsync, RedisServer};
use twofactor_tests::wait::eventually;

use crate::support::sidecar::{Served, shown};
use crate::support::world::World;

const BOUND: Duration = Duration::from_secs(10);
const SIDECARS: usize = 3;
const PARALLEL: usize = 50;
const ROUNDS: usize = 1000;
/// Number of rounds in which Redis is killed.
const RESTARTS: usize = 20;
/// Maximum age of codes that are refused after a restart.
const SAFE: Duration = Duration::from_secs(90);

/// Submits one code many times at once through all sidecars.
fn submit(apis: &[ApiClient], name: &str, code: &str) -> JoinSet<u16> {
    let mut requests = JoinSet::new();
    for number in 0..PARALLEL {
        let (api, name, code) =
            (apis[number % apis.len()].clone(), name.to_owned(), code.to_owned());
        requests.spawn(async move { api.verify(&name, &code).await.status });
    }
    requests
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|found| **found == status).count()
}

#[tokio::test]
async fn fifty_parallel_verifies_through_three_sidecars_are_one_success_in_each_of_a_thousand_rounds()
 {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let sidecars = Served::start_many(&world, "kms", SIDECARS).await;
    let apis: Vec<_> = sidecars.iter().map(|sidecar| sidecar.api()).collect();
    for round in 0..ROUNDS {
        let person = world.person(&format!("user{round}"), App).await;
        let statuses = submit(&apis, person.record.definition.username.as_str(), &shown(&person))
            .join_all()
            .await;
        assert_eq!(
            (count(&statuses, 200), count(&statuses, 400)),
            (1, PARALLEL - 1),
            "round {round}: {statuses:?}"
        );
    }
}

#[tokio::test]
async fn fifty_parallel_wrong_guesses_through_three_sidecars_are_five_failures() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let sidecars = Served::start_many(&world, "kms", SIDECARS).await;
    let apis: Vec<_> = sidecars.iter().map(|sidecar| sidecar.api()).collect();
    for round in 0..RESTARTS {
        let person = world.person(&format!("user{round}"), App).await;
        let name = person.record.definition.username.as_str();
        // Seven digits are never a code of a user with six.
        let statuses = submit(&apis, name, "0000000").join_all().await;
        assert_eq!(
            (count(&statuses, 401), count(&statuses, 429)),
            (5, PARALLEL - 5),
            "round {round}: {statuses:?}"
        );
        // The right code is refused as well.
        assert_eq!(apis[0].verify(name, &shown(&person)).await.status, 429);
    }
}

#[tokio::test]
async fn a_redis_killed_during_verifies_causes_no_second_success() {
    let builder = RedisServer::builder().append_only(AppendFsync::Always);
    let world = World::in_redis_of(builder).await;
    let sidecars = Served::start_many(&world, "kms", SIDECARS).await;
    let apis: Vec<_> = sidecars.iter().map(|sidecar| sidecar.api()).collect();
    let redis = world.redis.as_ref().unwrap();
    let mut decided = 0;
    for round in 0..RESTARTS {
        // Later than all codes that the check of the restarted node refuses.
        let safe = u64::try_from(SAFE.as_millis()).unwrap();
        world.set_time(world.now().millis() + safe).await;
        let now = world.now();
        let person = world.person(&format!("user{round}"), App).await;
        let (name, code) = (
            person.record.definition.username.to_string(),
            person.code_at(now, 0).expose_secret().to_owned(),
        );
        let mut requests = submit(&apis, &name, &code);
        // After the first answer, other requests are still in progress.
        let mut statuses = vec![requests.join_next().await.unwrap().unwrap()];
        redis.kill();
        statuses.extend(requests.join_all().await);
        redis.restart().await;
        // The publisher has to reconnect first.
        eventually(BOUND, "Redis to answer again", async || {
            world.publisher.store().inspect().await.map_err(|error| error.to_string())
        })
        .await;
        world.fill(&[&person]).await;
        statuses.extend(submit(&apis, &name, &code).join_all().await);
        assert!(count(&statuses, 200) <= 1, "round {round}: {statuses:?}");
        assert!(
            statuses.iter().all(|status| [200, 400, 503].contains(status)),
            "round {round}: {statuses:?}"
        );
        decided += count(&statuses, 200);
    }
    assert!(decided > RESTARTS / 2, "only {decided} codes were accepted at all: little was shown");
}

#[tokio::test]
async fn a_redis_paused_for_five_seconds_is_an_outage_and_causes_no_second_success() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let sidecars = Served::start_many(&world, "kms", SIDECARS).await;
    let apis: Vec<_> = sidecars.iter().map(|sidecar| sidecar.api()).collect();
    let person = world.person("carol", App).await;
    let code = shown(&person);
    let mut requests = submit(&apis, "carol", &code);
    let mut statuses = vec![requests.join_next().await.unwrap().unwrap()];
    world.redis().pause().await;
    let held = Instant::now();
    statuses.extend(requests.join_all().await);
    while held.elapsed() < Duration::from_secs(5) {
        let asked = Instant::now();
        let answers = submit(&apis, "carol", &code).join_all().await;
        assert!(answers.iter().all(|status| *status == 503), "{answers:?}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    }
    world.redis().resume();
    let after = eventually(BOUND, "decisions again", async || {
        let answers = submit(&apis, "carol", &code).join_all().await;
        if answers.contains(&503) { Err(format!("{answers:?}")) } else { Ok(answers) }
    })
    .await;
    statuses.extend(after);
    // There is none if the answer to the accepted one was lost.
    assert!(count(&statuses, 200) <= 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 400, 503].contains(status)), "{statuses:?}");
}
