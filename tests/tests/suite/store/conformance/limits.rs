//! Rules about how often codes are issued and sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use twofactor_core::decision::{DeliveryReport, Event, Issue, Verdict};
use twofactor_core::limits::{Allowance, Limits, MAXIMUM_CODES_IN_FLIGHT};
use twofactor_core::names::{Caller, CodeTag};
use twofactor_core::time::UnixMillis;
use twofactor_core::user::DeliveryMethod::Email;

use super::{LIFETIME, until};
use crate::support::world::{Person, START, STEP, World, audit_context, caller};

for_every_store!(
    a_user_gets_one_code_a_minute_from_all_services_together,
    a_user_gets_ten_codes_within_any_hour,
    no_caller_uses_more_than_its_share_of_a_users_codes,
    no_caller_uses_more_than_its_share_of_a_realms_deliveries,
    a_request_that_comes_too_soon_changes_nothing_about_the_code_in_flight,
    fifty_parallel_requests_for_a_code_are_one_code,
    a_refused_delivery_frees_the_minute_and_counts_for_the_hour,
    a_request_refused_by_the_delivery_limit_counts_for_the_users_limits,
    a_caller_has_a_limited_number_of_codes_in_flight,
    a_late_refusal_frees_no_limit_that_another_request_has_taken,
    a_clock_set_back_locks_no_user_out_permanently,
    a_realm_sends_a_limited_number_of_codes_an_hour,
);

async fn ask(world: &World, person: &Person, from: &str, limits: Limits) -> Issue {
    let mut request = world.issuance(person, from, person.step(world.now()), LIFETIME);
    request.limits = limits;
    world.store.issue(&person.pseudonym, &request).await.unwrap()
}

async fn conclude(world: &World, person: &Person, event: Event) {
    let report = DeliveryReport { caller: caller("kms"), event, audit: audit_context(Email) };
    world.store.record_delivery(&person.pseudonym, &report).await.unwrap();
}

fn too_soon(seconds: u64, in_flight: Option<u64>) -> Issue {
    Issue::TooSoon {
        retry_after: Duration::from_secs(seconds),
        in_flight: in_flight.map(UnixMillis::new),
    }
}

fn asked_at(issue: Issue) -> UnixMillis {
    let Issue::Issued { asked_at, .. } = issue else { panic!("not issued: {issue:?}") };
    asked_at
}

async fn a_user_gets_one_code_a_minute_from_all_services_together(world: World) {
    let person = world.person("alice", Email).await;
    let expires = until(ask(&world, &person, "kms", Limits::default()).await).millis();
    assert_eq!(ask(&world, &person, "kms", Limits::default()).await, too_soon(60, Some(expires)));
    world.set_time(START + 59_000).await;
    assert_eq!(ask(&world, &person, "kms", Limits::default()).await, too_soon(1, Some(expires)));
    assert_eq!(ask(&world, &person, "shop", Limits::default()).await, too_soon(1, None));
    world.set_time(START + 60_000).await;
    until(ask(&world, &person, "shop", Limits::default()).await);
    // Another user has a separate minute.
    let other = world.person("bob", Email).await;
    until(ask(&world, &other, "shop", Limits::default()).await);
}

async fn a_user_gets_ten_codes_within_any_hour(world: World) {
    let person = world.person("alice", Email).await;
    for number in 0..10 {
        world.set_time(START + number * 300_000).await;
        until(ask(&world, &person, "kms", Limits::default()).await);
    }
    world.set_time(START + 3_000_000).await;
    // The last code is valid in exactly this millisecond, and expires after it.
    let in_flight = Some(START + 3_000_000);
    assert_eq!(ask(&world, &person, "kms", Limits::default()).await, too_soon(600, in_flight));
    world.set_time(START + 3_599_000).await;
    assert_eq!(ask(&world, &person, "kms", Limits::default()).await, too_soon(1, None));
    world.set_time(START + 3_600_000).await;
    until(ask(&world, &person, "kms", Limits::default()).await);
    // The second of the ten leaves the hour five minutes later.
    world.set_time(START + 3_700_000).await;
    let in_flight = Some(START + 3_900_000);
    assert_eq!(ask(&world, &person, "kms", Limits::default()).await, too_soon(200, in_flight));
}

async fn a_request_that_comes_too_soon_changes_nothing_about_the_code_in_flight(world: World) {
    let person = world.person("alice", Email).await;
    until(ask(&world, &person, "kms", Limits::default()).await);
    let code = person.code_at(world.now(), 0);
    for millis in [1_000, STEP, 59_999] {
        world.set_time(START + millis).await;
        let limited = ask(&world, &person, "kms", Limits::default()).await;
        assert!(matches!(limited, Issue::TooSoon { in_flight: Some(_), .. }), "{limited:?}");
    }
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    // The code is used, so none is in flight, and the minute continues.
    assert!(matches!(
        ask(&world, &person, "kms", Limits::default()).await,
        Issue::TooSoon { in_flight: None, .. }
    ));
}

async fn fifty_parallel_requests_for_a_code_are_one_code(world: World) {
    let person = world.person("alice", Email).await;
    let mut request = world.issuance(&person, "kms", person.step(world.now()), LIFETIME);
    request.limits = Limits::default();
    let request = Arc::new(request);
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let (store, user, request) = (world.store.clone(), person.pseudonym, request.clone());
        requests.spawn(async move { store.issue(&user, &request).await.unwrap() });
    }
    let outcomes = requests.join_all().await;
    let issued = outcomes.iter().filter(|issue| matches!(issue, Issue::Issued { .. })).count();
    assert_eq!(issued, 1, "{outcomes:?}");
}

async fn a_refused_delivery_frees_the_minute_and_counts_for_the_hour(world: World) {
    let person = world.person("alice", Email).await;
    let limits = Limits { generates_per_hour: 3, ..Limits::default() };
    let first = ask(&world, &person, "kms", limits).await;
    conclude(&world, &person, Event::Refused { asked_at: asked_at(first) }).await;
    world.set_time(START + 1_000).await;
    // Within the step it is the same code, with the promised expiry.
    let second = ask(&world, &person, "kms", limits).await;
    assert_eq!(until(second), until(first));
    conclude(&world, &person, Event::Refused { asked_at: asked_at(second) }).await;
    world.set_time(START + 2_000).await;
    let third = ask(&world, &person, "kms", limits).await;
    conclude(&world, &person, Event::Refused { asked_at: asked_at(third) }).await;
    assert_eq!(
        ask(&world, &person, "kms", limits).await,
        too_soon(3598, Some(until(first).millis()))
    );
}

async fn a_request_refused_by_the_delivery_limit_counts_for_the_users_limits(world: World) {
    let person = world.person("alice", Email).await;
    let limits = Limits { generates_per_hour: 2, ..Limits::default() };
    for minute in 0..2 {
        world.set_time(START + minute * 60_000).await;
        until(ask(&world, &person, "kms", limits).await);
        conclude(&world, &person, Event::DeliveryLimitReached).await;
        assert!(matches!(ask(&world, &person, "kms", limits).await, Issue::TooSoon { .. }));
    }
    world.set_time(START + 2 * 60_000).await;
    let issue = ask(&world, &person, "kms", limits).await;
    let Issue::TooSoon { retry_after, .. } = issue else { panic!("{issue:?}") };
    assert_eq!(retry_after, Duration::from_mins(58));
}

async fn a_caller_has_a_limited_number_of_codes_in_flight(world: World) {
    let person = world.person("alice", Email).await;
    let mut request = world.issuance(&person, "kms", person.step(world.now()), LIFETIME);
    request.limits = Limits::NONE;
    for number in 0..MAXIMUM_CODES_IN_FLIGHT {
        // Each with another tag, as for another context.
        request.tag = CodeTag::from_bytes([u8::try_from(number).unwrap(); 16]);
        until(world.store.issue(&person.pseudonym, &request).await.unwrap());
    }
    let known = request.clone();
    request.tag = CodeTag::from_bytes([255; 16]);
    let issue = world.store.issue(&person.pseudonym, &request).await.unwrap();
    let Issue::TooSoon { retry_after, in_flight: Some(_) } = issue else { panic!("{issue:?}") };
    assert!(
        (Duration::from_secs(1)..=LIFETIME + Duration::from_secs(1)).contains(&retry_after),
        "{retry_after:?}"
    );
    // One of them can be sent again, and another caller has its own limit.
    until(world.store.issue(&person.pseudonym, &known).await.unwrap());
    world.set_time(START + STEP).await;
    until(ask(&world, &person, "shop", Limits::NONE).await);
}

async fn a_late_refusal_frees_no_limit_that_another_request_has_taken(world: World) {
    let person = world.person("alice", Email).await;
    let first = asked_at(ask(&world, &person, "kms", Limits::default()).await);
    world.set_time(START + 60_000).await;
    until(ask(&world, &person, "kms", Limits::default()).await);
    conclude(&world, &person, Event::Refused { asked_at: first }).await;
    assert!(matches!(ask(&world, &person, "kms", Limits::default()).await, Issue::TooSoon { .. }));
}

async fn a_clock_set_back_locks_no_user_out_permanently(world: World) {
    world.set_time(START + 100 * 3_600_000).await;
    let person = world.person("alice", Email).await;
    let limits = Limits { generates_per_hour: 1, ..Limits::default() };
    until(ask(&world, &person, "kms", limits).await);
    world.set_time(START).await;
    until(ask(&world, &person, "kms", limits).await);
    world.set_time(START - 1_000).await;
    assert!(matches!(ask(&world, &person, "kms", limits).await, Issue::TooSoon { .. }));
}

async fn a_realm_sends_a_limited_number_of_codes_an_hour(world: World) {
    let kms = caller("kms");
    let take = async || world.store.count_delivery(&kms, 3, 0).await.unwrap();
    let used_up = |seconds| Allowance::LimitReached { retry_after: Duration::from_secs(seconds) };
    for minutes in [0, 0, 10] {
        world.set_time(START + minutes * 60_000).await;
        assert_eq!(take().await, Allowance::Granted);
    }
    assert_eq!(take().await, used_up(3000));
    world.set_time(START + 3_599_000).await;
    assert_eq!(take().await, used_up(1));
    world.set_time(START + 3_600_000).await;
    assert_eq!(take().await, Allowance::Granted);
    assert_eq!(world.store.count_delivery(&kms, 1, 0).await.unwrap(), used_up(3600));
    // The count expires when it has no more effect.
    world.set_time(START + 3 * 3_600_000).await;
    if let Some(redis) = &world.redis {
        let key = crate::support::world::names().realm_deliveries();
        let there: bool =
            ::redis::AsyncCommands::exists(&mut redis.connect().await, key).await.unwrap();
        assert!(!there);
    }
    assert_eq!(take().await, Allowance::Granted);
}

async fn no_caller_uses_more_than_its_share_of_a_realms_deliveries(world: World) {
    let (kms, shop, vault) = (caller("kms"), caller("shop"), caller("vault"));
    let limits = Limits { deliveries_per_hour: 5, ..Limits::NONE };
    let (all, share) = (limits.deliveries_per_hour, limits.share_of_deliveries(2));
    let take = async |caller: &Caller, minute: u64| {
        world.set_time(START + minute * 60_000).await;
        world.store.count_delivery(caller, all, share).await.unwrap()
    };
    for minute in [0, 0, 1] {
        assert_eq!(take(&kms, minute).await, Allowance::Granted);
    }
    let share_used_up = Allowance::ShareUsedUp { retry_after: Duration::from_mins(58) };
    assert_eq!(take(&kms, 2).await, share_used_up);
    for minute in [2, 3] {
        assert_eq!(take(&shop, minute).await, Allowance::Granted);
    }
    // All five are used, so that the limit of all decides for a third service.
    let limit_reached =
        |minutes| Allowance::LimitReached { retry_after: Duration::from_mins(minutes) };
    assert_eq!(take(&vault, 4).await, limit_reached(56));
    assert_eq!(take(&kms, 4).await, limit_reached(56));
    for caller in [&kms, &vault] {
        assert_eq!(take(caller, 60).await, Allowance::Granted);
    }
    assert_eq!(limits.share_of_deliveries(1), 5);
}

async fn no_caller_uses_more_than_its_share_of_a_users_codes(world: World) {
    let person = world.person("alice", Email).await;
    let limits = Limits { generates_per_hour: 4, ..Limits::NONE };
    let ask = async |from: &str, number: u64| {
        world.set_time(START + number * STEP).await;
        let mut request = world.issuance(&person, from, person.step(world.now()), LIFETIME);
        (request.limits, request.own_per_hour) = (limits, limits.share_of_generates(2));
        world.store.issue(&person.pseudonym, &request).await.unwrap()
    };
    until(ask("kms", 0).await);
    until(ask("kms", 1).await);
    let wait = Duration::from_millis(3_600_000 - 2 * STEP);
    assert_eq!(ask("kms", 2).await, Issue::ShareUsedUp { retry_after: wait });
    until(ask("shop", 3).await);
    until(ask("shop", 4).await);
    // All four are used now, so a third service waits for the limit of all.
    assert!(matches!(ask("third", 5).await, Issue::TooSoon { .. }));
    until(ask("kms", 3_600_000 / STEP).await);
}
