//! Rules for every store. Each runs on memory, a real Redis, one behind a Sentinel and a Redis
//! Cluster, with movable clocks, and on Redis also with a service's login.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use twofactor_core::decision::{Issue, Undecided, Verdict};
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;
use twofactor_core::totp::{Algorithm, TotpParameters};
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::{Decisions, Publication, StoreError};

use crate::support::world::{Person, START, STEP, World};

const LIFETIME: Duration = Duration::from_mins(5);

/// Makes a test of each rule for each store, and for Redis also with a service's few permissions.
macro_rules! for_every_store {
    ($($rule:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $rule() { super::$rule(super::World::in_memory().await).await; })+
        }
        mod redis {
            $(#[tokio::test] async fn $rule() { super::$rule(super::World::in_redis().await).await; })+
        }
        mod service_in_redis {
            $(#[tokio::test] async fn $rule() { super::$rule(super::World::in_redis_as_a_service().await).await; })+
        }
        mod sentinel {
            $(#[tokio::test] async fn $rule() { super::$rule(super::World::behind_a_sentinel().await).await; })+
        }
        mod cluster {
            $(#[tokio::test] async fn $rule() { super::$rule(super::World::in_a_cluster().await).await; })+
        }
        mod service_in_cluster {
            $(#[tokio::test] async fn $rule() { super::$rule(super::World::in_a_cluster_as_a_service().await).await; })+
        }
    };
}

mod failures;
mod history;
mod limits;

for_every_store!(
    a_delivered_code_is_accepted_until_its_expiry_and_not_after,
    a_delivered_code_is_accepted_once,
    fifty_parallel_verifies_of_one_code_are_one_success,
    two_requests_in_one_step_have_one_code_and_one_expiry,
    a_consumed_code_is_not_issued_again_in_its_step,
    a_code_asked_for_by_one_service_is_not_accepted_from_another,
    a_step_is_issued_to_one_service_only,
    a_delivered_code_is_good_for_its_own_service_only_whatever_the_period,
    a_guess_of_a_code_that_was_never_issued_never_becomes_good,
    a_success_invalidates_the_callers_other_codes_and_no_other_callers,
    an_authenticators_code_is_accepted_once_a_step_and_never_an_earlier_one,
    an_authenticators_code_is_accepted_within_the_skew_only,
    a_step_used_by_mail_is_not_accepted_from_an_authenticator,
    a_longer_period_does_not_reopen_a_used_step,
    five_failures_block_the_caller_and_each_further_one_doubles_the_block,
    fifty_parallel_wrong_guesses_are_five_failures,
    a_replay_does_not_count_as_a_failure,
    a_success_resets_the_callers_failures,
    a_new_code_does_not_reset_the_callers_failures,
    a_block_is_answered_before_it_shows_whether_the_code_was_right,
    a_request_with_an_outdated_record_is_not_decided,
    a_request_from_a_clock_that_differs_is_not_decided,
    a_code_is_issued_for_the_step_of_the_stores_clock_only,
    a_changed_destination_invalidates_the_codes_in_flight,
    a_code_sent_to_an_old_address_stays_invalid_when_another_is_requested,
    a_realm_flushed_during_a_fill_is_not_complete,
    a_republished_seed_refuses_codes_that_may_have_been_used,
    no_code_is_issued_in_the_step_of_a_republication,
    only_a_completely_published_realm_confirms_that_a_user_is_absent,
    a_removed_user_leaves_no_key,
    two_publishers_do_not_overwrite_each_other,
);

fn at(world: &World) -> u64 {
    world.now().millis()
}

/// The expiry of an issued code.
#[track_caller]
fn until(issue: Issue) -> UnixMillis {
    let Issue::Issued { expires_at, .. } = issue else { panic!("not issued: {issue:?}") };
    expires_at
}

/// Issues the code of the current step, and returns it.
async fn issued(world: &World, person: &Person, from: &str) -> twofactor_core::code::Code {
    let issue = world.issue(person, from, LIFETIME).await.unwrap();
    assert!(matches!(issue, Issue::Issued { .. }), "{issue:?}");
    person.code_at(world.now(), 0)
}

async fn a_delivered_code_is_accepted_until_its_expiry_and_not_after(world: World) {
    let expires = START + 12_345 - 345 + 300_000;
    for (name, asked_at, expected) in [
        ("early", expires - 1, Verdict::Accepted),
        ("exactly", expires, Verdict::Accepted),
        ("late", expires + 1, Verdict::Expired),
    ] {
        let person = world.person(name, Email).await;
        world.set_time(START + 12_345).await;
        let code = person.code_at(world.now(), 0);
        let issue = world.issue(&person, "kms", LIFETIME).await.unwrap();
        assert_eq!(until(issue), UnixMillis::new(expires));
        world.set_time(asked_at).await;
        assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), expected, "{name}");
    }
}

async fn a_delivered_code_is_accepted_once(world: World) {
    let person = world.person("alice", Email).await;
    let code = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
    world.set_time(START + 2 * STEP).await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
}

/// Sends fifty requests at once, and returns their verdicts.
async fn fifty(
    world: &World,
    request: twofactor_core::decision::Verification,
    person: &Person,
) -> Vec<Verdict> {
    let request = Arc::new(request);
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let (store, pseudonym, request): (Decisions, _, _) =
            (world.store.clone(), person.pseudonym, request.clone());
        requests.spawn(async move { store.verify(&pseudonym, &request).await.unwrap() });
    }
    requests.join_all().await
}

fn count(verdicts: &[Verdict], expected: Verdict) -> usize {
    verdicts.iter().filter(|verdict| **verdict == expected).count()
}

async fn fifty_parallel_verifies_of_one_code_are_one_success(world: World) {
    let person = world.person("alice", Email).await;
    let code = issued(&world, &person, "kms").await;
    let verdicts = fifty(&world, world.verification(&person, "kms", &code), &person).await;
    assert_eq!((count(&verdicts, Verdict::Accepted), count(&verdicts, Verdict::Used)), (1, 49));
}

async fn two_requests_in_one_step_have_one_code_and_one_expiry(world: World) {
    let person = world.person("alice", Email).await;
    let first = until(world.issue(&person, "kms", LIFETIME).await.unwrap());
    world.set_time(START + STEP - 1).await;
    assert_eq!(until(world.issue(&person, "kms", LIFETIME).await.unwrap()), first);
    world.set_time(START + STEP).await;
    let second = until(world.issue(&person, "kms", LIFETIME).await.unwrap());
    assert_eq!(second, UnixMillis::new(START + STEP + 300_000));
}

async fn a_consumed_code_is_not_issued_again_in_its_step(world: World) {
    let person = world.person("alice", Email).await;
    let code = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    world.set_time(START + 10_000).await;
    let consumed = Issue::Consumed { retry_after: Duration::from_secs(20) };
    assert_eq!(world.issue(&person, "kms", LIFETIME).await.unwrap(), consumed);
    assert_eq!(world.issue(&person, "shop", LIFETIME).await.unwrap(), consumed);
    world.set_time(START + STEP).await;
    let code = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
}

async fn a_code_asked_for_by_one_service_is_not_accepted_from_another(world: World) {
    let person = world.person("alice", Email).await;
    let code = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "shop", &code).await.unwrap(), Verdict::NeverIssued);
    world.set_time(START + 3 * STEP).await;
    assert_eq!(world.verify(&person, "shop", &code).await.unwrap(), Verdict::Wrong);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
}

async fn a_step_is_issued_to_one_service_only(world: World) {
    let person = world.person("alice", Email).await;
    let code = issued(&world, &person, "kms").await;
    world.set_time(START + 10_000).await;
    let consumed = Issue::Consumed { retry_after: Duration::from_secs(20) };
    assert_eq!(world.issue(&person, "shop", LIFETIME).await.unwrap(), consumed);
    // Its own service gets the same code again.
    assert_eq!(issued(&world, &person, "kms").await.expose_secret(), code.expose_secret());
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.issue(&person, "shop", LIFETIME).await.unwrap(), consumed);
    assert_eq!(world.verify(&person, "shop", &code).await.unwrap(), Verdict::NeverIssued);
    world.set_time(START + 2 * STEP).await;
    let code = issued(&world, &person, "shop").await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::NeverIssued);
    assert_eq!(world.verify(&person, "shop", &code).await.unwrap(), Verdict::Accepted);
}

async fn a_delivered_code_is_good_for_its_own_service_only_whatever_the_period(world: World) {
    for (index, period) in [15_u64, 30, 60, 120].into_iter().enumerate() {
        let mut record = crate::support::world::record(&format!("period{period}"), Email);
        let seconds = u32::try_from(period).unwrap();
        let totp = TotpParameters::new(Algorithm::Sha1, 6, seconds, 1).unwrap();
        record.definition.totp = totp;
        let person = world.publish(record, true).await;
        // Intervals shorter and longer than the step, and one that is no multiple of it.
        for (number, pause) in [1, 7, period - 1, period, period + 1, 2 * period].iter().enumerate()
        {
            // Callers of their own, because each guess is a failure.
            let own = |name: &str| format!("{name}-{number}");
            let (kms, shop) = (own("kms"), own("shop"));
            let begin = START + (index as u64 * 100 + number as u64 + 1) * 3_600_000;
            world.set_time(begin).await;
            let first = issued(&world, &person, &kms).await;
            world.set_time(begin + pause * 1000).await;
            let second = world.issue(&person, &shop, LIFETIME).await.unwrap();
            let same_step = begin / 1000 / period == (begin / 1000 + pause) / period;
            assert_eq!(
                matches!(second, Issue::Consumed { .. }),
                same_step,
                "{period} s, {pause} s later: {second:?}"
            );
            let refused = world.verify(&person, &shop, &first).await.unwrap();
            assert!(matches!(refused, Verdict::NeverIssued | Verdict::Wrong), "{refused:?}");
            if !same_step {
                let second = person.code_at(world.now(), 0);
                let refused = world.verify(&person, &kms, &second).await.unwrap();
                assert_eq!(refused, Verdict::NeverIssued);
                let accepted = world.verify(&person, &shop, &second).await.unwrap();
                assert_eq!(accepted, Verdict::Accepted, "{period} s, {pause} s later");
            }
            let accepted = world.verify(&person, &kms, &first).await.unwrap();
            assert_eq!(accepted, Verdict::Accepted, "{period} s, {pause} s later");
        }
    }
}

async fn a_guess_of_a_code_that_was_never_issued_never_becomes_good(world: World) {
    for (name, steps, wait) in [("earlier", -1, 0), ("current", 0, 30), ("next", 1, 60)] {
        let person = world.person(name, Email).await;
        let guess = person.code_at(world.now(), steps);
        // From one service, and for another.
        assert_eq!(world.verify(&person, "shop", &guess).await.unwrap(), Verdict::NeverIssued);
        for from in ["shop", "kms"] {
            if wait > 0 {
                let consumed = world.issue(&person, from, LIFETIME).await.unwrap();
                assert!(matches!(consumed, Issue::Consumed { .. }), "{name}: {consumed:?}");
                assert_eq!(
                    world.verify(&person, from, &guess).await.unwrap(),
                    Verdict::NeverIssued
                );
            }
        }
        world.set_time(at(&world) + wait * 1000).await;
        let code = issued(&world, &person, "kms").await;
        assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted, "{name}");
        world.set_time(at(&world) + 10 * STEP).await;
    }
    // A code in flight stays valid for its own service.
    let person = world.person("in-flight", Email).await;
    let code = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "shop", &code).await.unwrap(), Verdict::NeverIssued);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
}

async fn a_success_invalidates_the_callers_other_codes_and_no_other_callers(world: World) {
    let person = world.person("alice", Email).await;
    let older = issued(&world, &person, "kms").await;
    world.set_time(START + STEP).await;
    let of_shop = issued(&world, &person, "shop").await;
    world.set_time(START + 2 * STEP).await;
    let newer = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "kms", &newer).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&person, "kms", &older).await.unwrap(), Verdict::Used);
    assert_eq!(world.verify(&person, "shop", &of_shop).await.unwrap(), Verdict::Accepted);
}

async fn an_authenticators_code_is_accepted_once_a_step_and_never_an_earlier_one(world: World) {
    let person = world.person("carol", App).await;
    let (a, b) = (person.code_at(world.now(), 0), person.code_at(world.now(), 1));
    for (code, expected) in
        [(&a, Verdict::Accepted), (&b, Verdict::Accepted), (&a, Verdict::Used), (&b, Verdict::Used)]
    {
        assert_eq!(world.verify(&person, "kms", code).await.unwrap(), expected);
    }
    assert_eq!(world.verify(&person, "shop", &b).await.unwrap(), Verdict::Used);
    // The step before was never used, but is earlier than a used one.
    let earlier = person.code_at(world.now(), -1);
    assert_eq!(world.verify(&person, "kms", &earlier).await.unwrap(), Verdict::Used);
}

async fn an_authenticators_code_is_accepted_within_the_skew_only(world: World) {
    world.set_time(START + 100 * STEP).await;
    for (steps, expected) in [
        (-2, Verdict::Wrong),
        (-1, Verdict::Accepted),
        (0, Verdict::Accepted),
        (1, Verdict::Accepted),
        (2, Verdict::Wrong),
    ] {
        let person = world.person(&format!("skew{steps}"), App).await;
        let code = person.code_at(world.now(), steps);
        assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), expected, "{steps} steps");
    }
}

async fn a_step_used_by_mail_is_not_accepted_from_an_authenticator(world: World) {
    let person = world.person("alice", Email).await;
    let code = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    let mut record = person.record.clone();
    record.definition.delivery_method = App;
    let person = world.publish(record, false).await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
}

async fn a_longer_period_does_not_reopen_a_used_step(world: World) {
    let person = world.person("carol", App).await;
    let code = person.code_at(world.now(), 1);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    let mut record = person.record.clone();
    record.definition.totp = TotpParameters::new(Algorithm::Sha1, 6, 60, 1).unwrap();
    let person = world.publish(record, false).await;
    // The minute that contains the used half minute began before the end of that half minute.
    let code = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
}

async fn five_failures_block_the_caller_and_each_further_one_doubles_the_block(world: World) {
    let person = world.person("carol", App).await;
    let wrong = person.wrong_code(world.now());
    for _ in 0..5 {
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    }
    for seconds in [30, 60, 120] {
        let blocked = Verdict::Blocked { retry_after: Duration::from_secs(seconds) };
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), blocked);
        // A request while blocked does not count, and others are not blocked.
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), blocked);
        world.set_time(at(&world) + seconds * 1000).await;
        let wrong = person.wrong_code(world.now());
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    }
    let right = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "shop", &right).await.unwrap(), Verdict::Accepted);
}

async fn fifty_parallel_wrong_guesses_are_five_failures(world: World) {
    let person = world.person("carol", App).await;
    let wrong = person.wrong_code(world.now());
    let verdicts = fifty(&world, world.verification(&person, "kms", &wrong), &person).await;
    let blocked = Verdict::Blocked { retry_after: Duration::from_secs(30) };
    assert_eq!((count(&verdicts, Verdict::Wrong), count(&verdicts, blocked)), (5, 45));
}

async fn a_replay_does_not_count_as_a_failure(world: World) {
    let person = world.person("carol", App).await;
    let code = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    for _ in 0..20 {
        assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
    }
}

async fn a_success_resets_the_callers_failures(world: World) {
    let person = world.person("carol", App).await;
    for step in 0..3 {
        let (wrong, right) = (person.wrong_code(world.now()), person.code_at(world.now(), 0));
        for _ in 0..4 {
            assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
        }
        assert_eq!(
            world.verify(&person, "kms", &right).await.unwrap(),
            Verdict::Accepted,
            "step {step}"
        );
        world.set_time(at(&world) + STEP).await;
    }
}

async fn a_new_code_does_not_reset_the_callers_failures(world: World) {
    let person = world.person("alice", Email).await;
    for _ in 0..4 {
        let wrong = person.wrong_code(world.now());
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
        issued(&world, &person, "kms").await;
        world.set_time(at(&world) + STEP).await;
    }
    let wrong = person.wrong_code(world.now());
    assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    let code = issued(&world, &person, "kms").await;
    assert!(matches!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Blocked { .. }));
}

async fn a_block_is_answered_before_it_shows_whether_the_code_was_right(world: World) {
    let person = world.person("alice", Email).await;
    let right = issued(&world, &person, "kms").await;
    let wrong = person.wrong_code(world.now());
    for _ in 0..5 {
        world.verify(&person, "kms", &wrong).await.unwrap();
    }
    let blocked = Verdict::Blocked { retry_after: Duration::from_secs(30) };
    assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), blocked);
    assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), blocked);
    // The submission during the block did not consume the code.
    world.set_time(START + 30_000).await;
    assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Accepted);
}

fn undecided<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Undecided {
    match result {
        Err(StoreError::Undecided(reason)) => reason,
        other => panic!("decided: {other:?}"),
    }
}

async fn a_request_with_an_outdated_record_is_not_decided(world: World) {
    let old = world.person("carol", App).await;
    let wrong = old.wrong_code(world.now());
    let mut record = old.record.clone();
    record.definition.issuer = Some("Another".to_owned());
    let new = world.publish(record, false).await;
    assert!(new.revision > old.revision);
    for _ in 0..10 {
        let stale = Undecided::Stale { current: new.revision };
        assert_eq!(undecided(world.verify(&old, "kms", &wrong).await), stale);
        assert_eq!(undecided(world.issue(&old, "kms", LIFETIME).await), stale);
    }
    // Nothing was counted.
    assert_eq!(
        world.verify(&new, "kms", &new.code_at(world.now(), 0)).await.unwrap(),
        Verdict::Accepted
    );
}

async fn a_request_from_a_clock_that_differs_is_not_decided(world: World) {
    let person = world.person("carol", App).await;
    world.set_time(START + 3_600_000).await;
    let code = person.code_at(world.now(), 0);
    for offset in [-3_600_000, -2001, 2001, 3_600_000] {
        let mut request = world.verification(&person, "kms", &code);
        request.asked_at = world.now().offset(offset);
        let refused = undecided(world.store.verify(&person.pseudonym, &request).await);
        assert_eq!(refused, Undecided::ClockOff { now: world.now() }, "{offset} ms");
    }
    for offset in [-2000, 2000] {
        let person = world.person(&format!("near{offset}"), App).await;
        let mut request = world.verification(&person, "kms", &person.code_at(world.now(), 0));
        request.asked_at = world.now().offset(offset);
        assert_eq!(
            world.store.verify(&person.pseudonym, &request).await.unwrap(),
            Verdict::Accepted,
            "{offset} ms"
        );
    }
}

async fn a_code_is_issued_for_the_step_of_the_stores_clock_only(world: World) {
    let person = world.person("alice", Email).await;
    for steps in [-1_i64, 1] {
        let step = person.step(world.now()).number().checked_add_signed(steps).unwrap();
        let request =
            world.issuance(&person, "kms", twofactor_core::time::Step::new(step), LIFETIME);
        let refused = undecided(world.store.issue(&person.pseudonym, &request).await);
        assert_eq!(refused, Undecided::ClockOff { now: world.now() });
    }
}

async fn a_changed_destination_invalidates_the_codes_in_flight(world: World) {
    let person = world.person("alice", Email).await;
    let code = issued(&world, &person, "kms").await;
    let mut record = person.record.clone();
    record.definition.email = Some("alice@elsewhere.example".to_owned().try_into().unwrap());
    let person = world.publish(record, false).await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
    // Another issuer does not change the destination of the code.
    world.set_time(START + STEP).await;
    let code = issued(&world, &person, "kms").await;
    let mut record = person.record.clone();
    record.definition.issuer = Some("Another".to_owned());
    let person = world.publish(record, false).await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
}

async fn a_code_sent_to_an_old_address_stays_invalid_when_another_is_requested(world: World) {
    let person = world.person("alice", Email).await;
    let to_old_address = issued(&world, &person, "kms").await;
    let mut record = person.record.clone();
    record.definition.email = Some("alice@elsewhere.example".to_owned().try_into().unwrap());
    let person = world.publish(record.clone(), false).await;
    // A step has only one code, so another caller would be sent the digits that the old address
    // has.
    let consumed = Issue::Consumed { retry_after: Duration::from_secs(30) };
    for caller in ["kms", "hub"] {
        assert_eq!(world.issue(&person, caller, LIFETIME).await.unwrap(), consumed);
    }
    assert_ne!(world.verify(&person, "hub", &to_old_address).await.unwrap(), Verdict::Accepted);
    record.definition.delivery_method = App;
    let person = world.publish(record, false).await;
    assert_eq!(world.verify(&person, "kms", &to_old_address).await.unwrap(), Verdict::Used);
}

async fn a_realm_flushed_during_a_fill_is_not_complete(world: World) {
    let alice = world.person("alice", Email).await;
    world.empty().await;
    let inspection =
        world.publisher.begin_fill(Some(&[]), &mut crate::support::world::random()).await.unwrap();
    world.publish(alice.record.clone(), false).await;
    world.empty().await;
    assert!(world.publisher.store().complete_fill(&inspection).await.is_err());
    assert!(world.store.confirm_absence(&alice.pseudonym).await.is_err());
    assert!(!world.publisher.store().inspect().await.unwrap().ready);
    // A fill that began before another one cannot complete it.
    let first =
        world.publisher.begin_fill(Some(&[]), &mut crate::support::world::random()).await.unwrap();
    let second =
        world.publisher.begin_fill(Some(&[]), &mut crate::support::world::random()).await.unwrap();
    assert!(world.publisher.store().complete_fill(&first).await.is_err());
    world.publisher.store().complete_fill(&second).await.unwrap();
}

async fn a_republished_seed_refuses_codes_that_may_have_been_used(world: World) {
    world.set_time(START + 10 * STEP + 7_000).await;
    let person = world.publish(crate::support::world::record("carol", App), false).await;
    // All steps up to the skew after the publication may have been used before.
    for steps in [-1, 0, 1] {
        let code = person.code_at(world.now(), steps);
        assert_eq!(
            world.verify(&person, "kms", &code).await.unwrap(),
            Verdict::Used,
            "{steps} steps"
        );
    }
    world.set_time(START + 12 * STEP - 1).await;
    let next = person.code_at(world.now(), 1);
    assert_eq!(world.verify(&person, "kms", &next).await.unwrap(), Verdict::Accepted);
}

async fn no_code_is_issued_in_the_step_of_a_republication(world: World) {
    world.set_time(START + 10_000).await;
    let person = world.publish(crate::support::world::record("alice", Email), false).await;
    let consumed = Issue::Consumed { retry_after: Duration::from_secs(20) };
    assert_eq!(world.issue(&person, "kms", LIFETIME).await.unwrap(), consumed);
    world.set_time(START + STEP).await;
    let code = issued(&world, &person, "kms").await;
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
}

async fn only_a_completely_published_realm_confirms_that_a_user_is_absent(world: World) {
    let person = world.person("alice", Email).await;
    let absent = world.keys().pseudonym(&"unknown".parse().unwrap());
    assert!(world.store.confirm_absence(&absent).await.unwrap());
    assert!(!world.store.confirm_absence(&person.pseudonym).await.unwrap());
    world.empty().await;
    let missing = world.store.confirm_absence(&absent).await;
    assert!(matches!(undecided(missing), Undecided::NoState | Undecided::UncheckedNode));
    let code = person.code_at(world.now(), 0);
    assert!(matches!(
        undecided(world.verify(&person, "kms", &code).await),
        Undecided::NoState | Undecided::UncheckedNode
    ));
    world.fill(&[&person]).await;
    assert!(world.store.confirm_absence(&absent).await.unwrap());
}

async fn a_removed_user_leaves_no_key(world: World) {
    let (alice, bob) = (world.person("alice", Email).await, world.person("bob", Email).await);
    for person in [&alice, &bob] {
        issued(&world, person, "kms").await;
        world.verify(person, "kms", &person.wrong_code(world.now())).await.unwrap();
    }
    world.publisher.remove(alice.pseudonym).await.unwrap();
    assert_eq!(world.publisher.store().users().await.unwrap(), [bob.pseudonym]);
    let code = alice.code_at(world.now(), 0);
    assert_eq!(undecided(world.verify(&alice, "kms", &code).await), Undecided::NoState);
    assert!(world.store.confirm_absence(&alice.pseudonym).await.unwrap());
    let swept = world.publisher.remove_unlisted(&[alice.pseudonym].into()).await.unwrap();
    assert_eq!((swept, world.publisher.store().users().await.unwrap()), (1, vec![]));
}

async fn two_publishers_do_not_overwrite_each_other(world: World) {
    let person = world.person("alice", Email).await;
    let publication = |expected, revision| Publication {
        pseudonym: person.pseudonym,
        expected,
        revision: Revision(revision),
        sealed: person.record.seal(
            &world.keys(),
            person.pseudonym,
            Revision(revision),
            &mut crate::support::world::random(),
        ),
        fresh: false,
        revoke: false,
        disabled: false,
        reset: None,
    };
    let next = person.revision.0 + 1;
    let batch = [
        publication(None, next),
        publication(Some(Revision(1)), next),
        publication(Some(person.revision), next),
    ];
    let results = world.publisher.store().publish(&batch).await.unwrap();
    assert!(
        matches!(results[..], [Err(StoreError::Conflict), Err(StoreError::Conflict), Ok(())]),
        "{results:?}"
    );
    assert_eq!(world.current(&person).await.revision, Revision(next));
}
