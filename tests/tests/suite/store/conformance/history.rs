//! What is remembered of every request.

use std::time::Duration;

use twofactor_core::audit::{AuditContext, Entry};
use twofactor_core::decision::{DeliveryReport, Event, Issue, Verdict};
use twofactor_core::limits::Limits;
use twofactor_core::user::DeliveryMethod::{App, Email};

use super::LIFETIME;
use crate::support::world::{Person, START, STEP, World, audit_context, caller};

both_stores!(
    every_decision_and_delivery_leaves_an_entry,
    what_a_service_passed_on_is_kept_only_where_it_was_given,
    what_nothing_bounds_is_written_once_and_then_counted,
    entries_go_when_they_are_too_old_and_all_of_them_with_their_user,
    nothing_is_written_of_somebody_who_is_gone,
);

async fn history(world: &World, person: &Person) -> Vec<Entry> {
    world.publisher.store().history(&person.pseudonym).await.unwrap()
}

fn told(entries: &[Entry]) -> Vec<(&str, &str, &str, Option<&str>)> {
    entries
        .iter()
        .map(|entry| {
            let words = (entry.operation.as_str(), entry.outcome.as_str(), entry.caller.as_str());
            (words.0, words.1, words.2, entry.repeated.as_deref())
        })
        .collect()
}

async fn conclude(world: &World, person: &Person, event: Event) {
    let report = DeliveryReport { caller: caller("kms"), event, audit: audit_context(Email) };
    world.store.record_delivery(&person.pseudonym, &report).await.unwrap();
}

async fn every_decision_and_delivery_leaves_an_entry(world: World) {
    let person = world.person("alice", Email).await;
    let issue = world.issue(&person, "kms", LIFETIME).await.unwrap();
    let Issue::Issued { asked_at, .. } = issue else { panic!("{issue:?}") };
    conclude(&world, &person, Event::Refused { asked_at }).await;
    conclude(&world, &person, Event::Sent).await;
    let code = person.code_at(world.now(), 0);
    world.set_time(START + 1_500).await;
    let wrong = person.wrong_code(world.now());
    assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    assert_eq!(world.verify(&person, "shop", &code).await.unwrap(), Verdict::NeverIssued);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&person, "kms", &code).await.unwrap(), Verdict::Used);
    let entries = history(&world, &person).await;
    assert_eq!(
        told(&entries),
        [
            ("generate", "issued", "kms", None),
            ("delivery", "refused", "kms", None),
            ("delivery", "sent", "kms", None),
            ("verify", "wrong", "kms", None),
            ("verify", "never-issued", "shop", None),
            ("verify", "accepted", "kms", None),
            ("verify", "used", "kms", None),
        ]
    );
    let moments: Vec<u64> = entries.iter().map(|entry| entry.at.millis() - START).collect();
    assert_eq!(moments, [0, 0, 0, 1500, 1500, 1500, 1500]);
    assert!(entries.iter().all(|entry| entry.channel == "email"));
    let text = format!("{entries:?}");
    assert!(
        !text.contains(code.expose_secret()) && !text.contains(wrong.expose_secret()),
        "{text}"
    );
}

async fn what_a_service_passed_on_is_kept_only_where_it_was_given(world: World) {
    let person = world.person("carol", App).await;
    let mut request = world.verification(&person, "kms", &person.wrong_code(world.now()));
    request.audit = AuditContext {
        address: Some("203.0.113.7".to_owned()),
        user_agent: Some("a \"program\"\u{0} = 1".to_owned()),
        ..audit_context(App)
    };
    world.store.verify(&person.pseudonym, &request).await.unwrap();
    world.verify(&person, "kms", &person.wrong_code(world.now())).await.unwrap();
    let entries = history(&world, &person).await;
    assert_eq!(entries[0].address.as_deref(), Some("203.0.113.7"));
    assert_eq!(entries[0].user_agent.as_deref(), Some("a \"program\"\u{0} = 1"));
    assert_eq!((&entries[1].address, &entries[1].user_agent), (&None, &None));
}

async fn what_nothing_bounds_is_written_once_and_then_counted(world: World) {
    let person = world.person("alice", Email).await;
    let mut request = world.issuance(&person, "kms", person.step(world.now()), LIFETIME);
    request.limits = Limits::default();
    world.store.issue(&person.pseudonym, &request).await.unwrap();
    for _ in 0..5 {
        world.verify(&person, "kms", &person.wrong_code(world.now())).await.unwrap();
    }
    // Two kinds in turn: neither fills the history.
    for _ in 0..20 {
        world.verify(&person, "kms", &person.wrong_code(world.now())).await.unwrap();
        world.store.issue(&person.pseudonym, &request).await.unwrap();
    }
    // Another namespace's are its own.
    let mut other = world.issuance(&person, "shop", person.step(world.now()), LIFETIME);
    other.limits = Limits::default();
    world.store.issue(&person.pseudonym, &other).await.unwrap();
    let right = person.code_at(world.now(), 0);
    world.set_time(START + STEP).await;
    assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Accepted);
    let entries = history(&world, &person).await;
    assert_eq!(
        told(&entries)[6..],
        [
            ("verify", "blocked", "kms", None),
            ("generate", "too-soon", "kms", None),
            ("generate", "too-soon", "shop", None),
            ("verify", "accepted", "kms", Some("verify/blocked=19 generate/too-soon=19")),
        ]
    );
    // After an hour the same is written again, here with something else.
    for seconds in [0, 60] {
        world.set_time(START + STEP + seconds * 1000).await;
        assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Used);
    }
    world.set_time(START + STEP + 3_600_000).await;
    conclude(&world, &person, Event::NoDeliveryMethod).await;
    let entries = history(&world, &person).await;
    assert_eq!(
        told(&entries)[10..],
        [
            ("verify", "used", "kms", None),
            ("generate", "no-delivery-method", "kms", Some("verify/used=1")),
        ]
    );
}

async fn entries_go_when_they_are_too_old_and_all_of_them_with_their_user(world: World) {
    let person = world.person("carol", App).await;
    let day = Duration::from_hours(24);
    let fail = async |at: u64| {
        world.set_time(at).await;
        let mut request = world.verification(&person, "kms", &person.wrong_code(world.now()));
        request.audit.retention = day;
        assert_eq!(world.store.verify(&person.pseudonym, &request).await.unwrap(), Verdict::Wrong);
    };
    let millis = u64::try_from(day.as_millis()).unwrap();
    for at in [START, START + 1000, START + millis] {
        fail(at).await;
    }
    assert_eq!(history(&world, &person).await.len(), 3);
    fail(START + millis + 500).await;
    let moments: Vec<u64> =
        history(&world, &person).await.iter().map(|entry| entry.at.millis() - START).collect();
    assert_eq!(moments, [1000, millis, millis + 500]);
    world.publisher.remove(person.pseudonym).await.unwrap();
    assert_eq!(history(&world, &person).await, []);
}

async fn nothing_is_written_of_somebody_who_is_gone(world: World) {
    let person = world.person("alice", Email).await;
    world.publisher.remove(person.pseudonym).await.unwrap();
    let report =
        DeliveryReport { caller: caller("kms"), event: Event::Sent, audit: audit_context(Email) };
    assert!(world.store.record_delivery(&person.pseudonym, &report).await.is_err());
    assert_eq!(world.publisher.store().users().await.unwrap(), []);
}
