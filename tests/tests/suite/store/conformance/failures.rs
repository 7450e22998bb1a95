//! Rules about a hundred failures in a row, and about their reset.

use std::time::Duration;

use twofactor_core::decision::{Issue, Verdict, Verification};
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::publisher::DesiredUser;

use super::LIFETIME;
use crate::support::world::{Person, START, STEP, World, random};

for_every_store!(
    a_hundred_failures_of_all_callers_together_disable_the_user,
    a_success_resets_the_failures_of_its_caller_and_of_no_other,
    a_disabled_user_gets_no_code_and_a_correct_code_is_refused,
    a_success_does_not_refill_the_failures_of_a_day,
    failures_older_than_thirty_days_do_not_count,
    failures_are_reset_once_for_each_request_even_if_the_realm_is_filled_again,
);

/// Fails `count` times from a namespace, and waits for the end of each block.
async fn fail(world: &World, person: &Person, from: &str, times: usize) {
    for _ in 0..times {
        loop {
            let wrong = person.wrong_code(world.now());
            match world.verify(person, from, &wrong).await.unwrap() {
                Verdict::Wrong => break,
                Verdict::Blocked { retry_after } => {
                    let wait = u64::try_from(retry_after.as_millis()).unwrap();
                    world.set_time(world.now().millis() + wait).await;
                }
                verdict => panic!("{verdict:?}"),
            }
        }
    }
}

async fn is_disabled(world: &World, person: &Person) -> bool {
    world.publisher.store().disabled(&[person.pseudonym]).await.unwrap() == [true]
}

async fn a_hundred_failures_of_all_callers_together_disable_the_user(world: World) {
    let person = world.person("carol", App).await;
    // Five failures from each of nineteen namespaces, without a block to wait for.
    for number in 0..19 {
        fail(&world, &person, &format!("ns-{number}"), 5).await;
    }
    fail(&world, &person, "last", 4).await;
    assert!(!is_disabled(&world, &person).await);
    fail(&world, &person, "last", 1).await;
    assert!(is_disabled(&world, &person).await);
    let right = person.code_at(world.now(), 0);
    for from in ["ns-0", "last", "new"] {
        assert_eq!(world.verify(&person, from, &right).await.unwrap(), Verdict::Disabled);
    }
    // Waiting does not help.
    world.set_time(START + 30 * 24 * 3_600_000).await;
    let right = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "new", &right).await.unwrap(), Verdict::Disabled);
}

async fn a_success_resets_the_failures_of_its_caller_and_of_no_other(world: World) {
    let person = world.person("carol", App).await;
    for number in 0..19 {
        fail(&world, &person, &format!("ns-{number}"), 5).await;
    }
    // A success in one namespace resets its own failures, and not those of others.
    fail(&world, &person, "kms", 4).await;
    world.set_time(world.now().millis() + STEP).await;
    let right = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Accepted);
    fail(&world, &person, "kms", 4).await;
    assert!(!is_disabled(&world, &person).await);
    fail(&world, &person, "shop", 1).await;
    assert!(is_disabled(&world, &person).await);
}

async fn disable(world: &World, person: &Person) {
    for number in 0..20 {
        fail(world, person, &format!("ns-{number}"), 5).await;
    }
    assert!(is_disabled(world, person).await);
}

async fn a_disabled_user_gets_no_code_and_a_correct_code_is_refused(world: World) {
    let person = world.person("alice", Email).await;
    world.issue(&person, "kms", LIFETIME).await.unwrap();
    let right = person.code_at(world.now(), 0);
    disable(&world, &person).await;
    assert_eq!(world.issue(&person, "kms", LIFETIME).await.unwrap(), Issue::Disabled);
    assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Disabled);
    // An edit, such as a new address, does not enable a user.
    let mut record = person.record.clone();
    record.definition.issuer = Some("Another".to_owned());
    let person = world.publish(record, false).await;
    assert_eq!(world.issue(&person, "kms", LIFETIME).await.unwrap(), Issue::Disabled);
}

async fn publish_with_reset(world: &World, person: &Person, request: &str) -> Person {
    let reset = Some(request.to_owned());
    let desired =
        DesiredUser { record: person.record.clone(), fresh: false, reset, disabled: false };
    world.publisher.publish(&[desired], world.now(), &mut random()).await.unwrap();
    world.current(person).await
}

async fn failures_are_reset_once_for_each_request_even_if_the_realm_is_filled_again(world: World) {
    let person = world.person("carol", App).await;
    disable(&world, &person).await;
    let person = publish_with_reset(&world, &person, "1").await;
    assert!(!is_disabled(&world, &person).await);
    // The reset removes blocks and counts, so it takes five failures until the next block.
    for _ in 0..5 {
        let wrong = person.wrong_code(world.now());
        assert_eq!(world.verify(&person, "ns-0", &wrong).await.unwrap(), Verdict::Wrong);
    }
    assert!(matches!(
        world.verify(&person, "ns-0", &person.wrong_code(world.now())).await.unwrap(),
        Verdict::Blocked { .. }
    ));
    // The same request again, with an edit and with a refill, changes nothing.
    let person = publish_with_reset(&world, &person, "1").await;
    let reset = Some("1".to_owned());
    let desired =
        [DesiredUser { record: person.record.clone(), fresh: false, reset, disabled: false }];
    world.publisher.renew(&desired, world.now(), &mut random()).await.unwrap();
    let person = world.current(&person).await;
    assert!(matches!(
        world.verify(&person, "ns-0", &person.wrong_code(world.now())).await.unwrap(),
        Verdict::Blocked { .. }
    ));
    let person = publish_with_reset(&world, &person, "2").await;
    world.set_time(world.now().millis() + STEP).await;
    let right = person.code_at(world.now(), 0);
    assert_eq!(world.verify(&person, "ns-0", &right).await.unwrap(), Verdict::Accepted);
    // A loss removes the failures, and the request is already recorded in the new state.
    world.empty().await;
    world.fill(&[]).await;
    let person = publish_with_reset(&world, &person, "2").await;
    let published = world.publisher.store().published(&[person.pseudonym]).await.unwrap();
    assert_eq!(published[0].reset.as_deref(), Some("2"));
}

async fn a_success_does_not_refill_the_failures_of_a_day(world: World) {
    let person = world.person("carol", App).await;
    let verify = async |from: &str, right: bool| {
        let now = world.now();
        let code = if right { person.code_at(now, 0) } else { person.wrong_code(now) };
        let request = world.verification(&person, from, &code);
        let request = Verification { failures_per_day: 6, ..request };
        world.store.verify(&person.pseudonym, &request).await.unwrap()
    };
    let hour = 3_600_000;
    for number in 0..6 {
        world.set_time(START + number * hour).await;
        assert_eq!(verify("kms", false).await, Verdict::Wrong);
        world.set_time(START + number * hour + STEP).await;
        let expected = if number < 5 {
            Verdict::Accepted
        } else {
            Verdict::FailuresUsedUp { retry_after: Duration::from_millis(19 * hour - STEP) }
        };
        assert_eq!(verify("kms", true).await, expected, "{number}");
    }
    // Another service has failures of its own.
    assert_eq!(verify("shop", true).await, Verdict::Accepted);
    world.set_time(START + 24 * hour - 1).await;
    let last = Verdict::FailuresUsedUp { retry_after: Duration::from_millis(1) };
    assert_eq!(verify("kms", true).await, last);
    world.set_time(START + 24 * hour).await;
    assert_eq!(verify("kms", true).await, Verdict::Accepted);
    // A reset gives them back.
    for _ in 0..5 {
        assert_eq!(verify("new", false).await, Verdict::Wrong);
    }
    world.set_time(START + 25 * hour).await;
    assert_eq!(verify("new", false).await, Verdict::Wrong);
    assert!(matches!(verify("new", false).await, Verdict::FailuresUsedUp { .. }));
    let person = publish_with_reset(&world, &person, "1").await;
    let code = person.wrong_code(world.now());
    let request = world.verification(&person, "new", &code);
    let request = Verification { failures_per_day: 6, ..request };
    assert_eq!(world.store.verify(&person.pseudonym, &request).await.unwrap(), Verdict::Wrong);
}

async fn failures_older_than_thirty_days_do_not_count(world: World) {
    let person = world.person("carol", App).await;
    let day = 24 * 3_600_000;
    for number in 0..19 {
        fail(&world, &person, &format!("ns-{number}"), 5).await;
    }
    world.set_time(START + 29 * day).await;
    fail(&world, &person, "later", 4).await;
    assert!(!is_disabled(&world, &person).await);
    // The first ninety-five are forgotten, those of the same services too.
    world.set_time(START + 31 * day).await;
    for number in 0..19 {
        fail(&world, &person, &format!("ns-{number}"), 5).await;
    }
    assert!(!is_disabled(&world, &person).await);
    fail(&world, &person, "later", 1).await;
    assert!(is_disabled(&world, &person).await);
}
