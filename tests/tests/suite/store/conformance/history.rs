//! Rules about the history of requests.

use std::time::Duration;

use twofactor_core::audit::{AuditContext, Entry, MAXIMUM_ENTRIES};
use twofactor_core::decision::{DeliveryReport, Event, Issue, Verdict};
use twofactor_core::limits::Limits;
use twofactor_core::user::DeliveryMethod::{App, Email};

use super::LIFETIME;
use crate::support::world::{Person, START, STEP, World, audit_context, caller};

for_every_store!(
    every_decision_and_delivery_adds_a_history_entry,
    history_keeps_the_end_users_address_and_agent_only_if_they_were_passed_on,
    outcomes_without_a_limit_are_recorded_once_and_then_counted,
    history_entries_expire_and_all_are_removed_with_their_user,
    a_history_has_a_maximum_length,
    no_history_is_written_for_a_removed_user,
);

async fn history(world: &World, person: &Person) -> Vec<Entry> {
    world.publisher.store().history(&person.pseudonym).await.unwrap()
}

fn summary(entries: &[Entry]) -> Vec<(&str, &str, &str, Option<&str>)> {
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

async fn every_decision_and_delivery_adds_a_history_entry(world: World) {
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
        summary(&entries),
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

async fn history_keeps_the_end_users_address_and_agent_only_if_they_were_passed_on(world: World) {
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

async fn outcomes_without_a_limit_are_recorded_once_and_then_counted(world: World) {
    let person = world.person("alice", Email).await;
    let mut request = world.issuance(&person, "kms", person.step(world.now()), LIFETIME);
    request.limits = Limits::default();
    world.store.issue(&person.pseudonym, &request).await.unwrap();
    for _ in 0..5 {
        world.verify(&person, "kms", &person.wrong_code(world.now())).await.unwrap();
    }
    // Two outcomes that alternate do not fill the history either.
    for _ in 0..20 {
        world.verify(&person, "kms", &person.wrong_code(world.now())).await.unwrap();
        world.store.issue(&person.pseudonym, &request).await.unwrap();
    }
    // Outcomes of another namespace are recorded separately.
    let mut other = world.issuance(&person, "shop", person.step(world.now()), LIFETIME);
    other.limits = Limits::default();
    world.store.issue(&person.pseudonym, &other).await.unwrap();
    let right = person.code_at(world.now(), 0);
    world.set_time(START + STEP).await;
    assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Accepted);
    let entries = history(&world, &person).await;
    assert_eq!(
        summary(&entries)[6..],
        [
            ("verify", "blocked", "kms", None),
            ("generate", "too-soon", "kms", None),
            ("generate", "too-soon", "shop", None),
            ("verify", "accepted", "kms", Some("verify/blocked=19 generate/too-soon=19")),
        ]
    );
    // After an hour the same outcome is recorded again, here with another detail.
    for seconds in [0, 60] {
        world.set_time(START + STEP + seconds * 1000).await;
        assert_eq!(world.verify(&person, "kms", &right).await.unwrap(), Verdict::Used);
    }
    world.set_time(START + STEP + 3_600_000).await;
    conclude(&world, &person, Event::NoDeliveryMethod).await;
    let entries = history(&world, &person).await;
    assert_eq!(
        summary(&entries)[10..],
        [
            ("verify", "used", "kms", None),
            ("generate", "no-delivery-method", "kms", Some("verify/used=1")),
        ]
    );
}

async fn history_entries_expire_and_all_are_removed_with_their_user(world: World) {
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

async fn a_history_has_a_maximum_length(world: World) {
    let person = world.person("alice", Email).await;
    for _ in 0..MAXIMUM_ENTRIES + 20 {
        conclude(&world, &person, Event::Sent).await;
    }
    world.set_time(START + 1).await;
    conclude(&world, &person, Event::NoSecret).await;
    let entries = history(&world, &person).await;
    assert_eq!(entries.len(), usize::from(MAXIMUM_ENTRIES));
    assert_eq!(entries.last().unwrap().outcome, "no-secret");
}

async fn no_history_is_written_for_a_removed_user(world: World) {
    let person = world.person("alice", Email).await;
    world.publisher.remove(person.pseudonym).await.unwrap();
    let report =
        DeliveryReport { caller: caller("kms"), event: Event::Sent, audit: audit_context(Email) };
    assert!(world.store.record_delivery(&person.pseudonym, &report).await.is_err());
    assert_eq!(world.publisher.store().users().await.unwrap(), []);
}
