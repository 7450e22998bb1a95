//! Tests data that a service may write and no sidecar writes: only its user is affected, and the
//! next check of the publisher repairs it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd};
use twofactor_core::decision::{Issue, Verdict};
use twofactor_core::limits::{Allowance, Limits};
use twofactor_core::names::{RealmNames, UserNames};
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::acl::Separation;
use twofactor_store::publisher::{DesiredUser, PublishOutcome};
use twofactor_store::redis::scripts::{Issue as IssueScript, RecordDelivery, ScriptCall, Verify};
use twofactor_store::{Found, Store, StoreError};

use crate::support::world::{Person, START, STEP, World, caller, installation, names, random};

/// Values that no script writes.
const VALUES: [&str; 14] = [
    "",
    "x",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "0x10",
    "1.5",
    " 7",
    "99999999999999999999",
    "9007199254740993",
    "\u{0}",
    "1 2 3 4 5",
];

/// Fields of a state that scripts read.
const FIELDS: [&str; 14] = [
    "revision",
    "since",
    "until",
    "disabled",
    "counted:kms",
    "failures:kms",
    "failures:other",
    "blocked:kms",
    "asked",
    "hour",
    "ahead",
    "recent:kms",
    "day:kms",
    "hour:kms",
];

async fn send(world: &World, command: &Cmd) {
    command.exec_async(&mut world.redis().connect().await).await.unwrap();
}

fn command(words: &[&str]) -> Cmd {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
}

/// Does what the operator does every half minute. Returns what was found of the user.
async fn check(world: &World, person: &Person) -> (Found, Person) {
    let store = world.publisher.store();
    let found = store.check_users(&[person.pseudonym]).await.unwrap()[0].found;
    store.check_counts().await.unwrap();
    if found != Found::Fine {
        let desired = DesiredUser {
            record: person.record.clone(),
            fresh: false,
            reset: None,
            disabled: false,
        };
        let published =
            world.publisher.publish(&[desired], world.now(), &mut random()).await.unwrap();
        assert_ne!(published, [PublishOutcome::Conflict]);
        let again = store.check_users(&[person.pseudonym]).await.unwrap()[0].found;
        assert_eq!(again, Found::Fine);
    }
    (found, world.current(person).await)
}

/// Whether a decision was made. Only the user's own state may be lost or outdated.
fn is_contained<T>(result: Result<T, StoreError>, what: &str) {
    match result {
        Ok(_) | Err(StoreError::Undecided(_)) => {}
        Err(error) => panic!("{what}: {error:?}"),
    }
}

/// Makes every request about a user.
async fn use_all(world: &World, person: &Person, what: &str) {
    let code = person.code_at(world.now(), 0);
    is_contained(world.issue(person, "kms", Duration::from_mins(5)).await, what);
    is_contained(world.verify(person, "kms", &code).await, what);
    is_contained(world.verify(person, "kms", &person.wrong_code(world.now())).await, what);
    world.publisher.store().history(&person.pseudonym).await.unwrap();
    world.publisher.store().published(&[person.pseudonym]).await.unwrap();
    world.publisher.store().disabled(&[person.pseudonym]).await.unwrap();
}

/// Asserts that the user can be verified within two minutes.
async fn verifies_again(world: &World, person: &Person, what: &str) {
    for _ in 0..8 {
        world.set_time(world.now().millis() + STEP / 2).await;
        if person.record.definition.delivery_method == Email {
            let lifetime = Duration::from_mins(5);
            let issue = world.issue(person, "new", lifetime).await;
            if !matches!(
                issue.unwrap_or_else(|error| panic!("{what}: {error:?}")),
                Issue::Issued { .. }
            ) {
                continue;
            }
        }
        let code = person.code_at(world.now(), 0);
        match world.verify(person, "new", &code).await.unwrap() {
            Verdict::Accepted => return,
            Verdict::Used => {}
            verdict => panic!("{what}: {verdict:?}"),
        }
    }
    panic!("{what}: not verified within two minutes");
}

#[tokio::test]
async fn a_spoilt_field_of_a_state_affects_its_user_only_and_is_repaired() {
    let world = World::in_redis_as_a_service().await;
    let other = world.person("bob", App).await;
    for (method, name) in [(App, "app"), (Email, "mail")] {
        for field in FIELDS {
            for (index, value) in VALUES.into_iter().enumerate() {
                let what = format!("{field} = {value:?} ({name})");
                let person = world
                    .person(&format!("{name}-{}-{index}", field.replace(':', "-")), method)
                    .await;
                let UserNames { state, .. } = names().user(&person.pseudonym);
                send(&world, &command(&["HSET", &state, field, value])).await;
                use_all(&world, &person, &what).await;
                let (_, person) = check(&world, &person).await;
                if field == "disabled" {
                    continue;
                }
                // An attacker can also fail a hundred times.
                let disabled = world.publisher.store().disabled(&[person.pseudonym]).await.unwrap();
                if disabled == [true] {
                    assert!(field.starts_with("failures"), "{what}");
                    continue;
                }
                verifies_again(&world, &person, &what).await;
            }
        }
    }
    world.set_time(world.now().millis() + STEP).await;
    let code = other.code_at(world.now(), 0);
    assert_eq!(world.verify(&other, "kms", &code).await.unwrap(), Verdict::Accepted);
}

#[tokio::test]
async fn a_key_of_another_type_or_size_affects_its_user_only_and_is_repaired() {
    let world = World::in_redis_as_a_service().await;
    let other = world.person("bob", Email).await;
    let big = "x".repeat(3 << 20);
    for method in [App, Email] {
        for kind in ["state", "otp", "hist", "log"] {
            for (name, words) in [
                ("string", &["SET", "", "x"][..]),
                ("list", &["RPUSH", "", "x", "y"]),
                ("hash", &["HSET", "", "x", "y"]),
                ("stream", &["XADD", "", "*", "a", "b"]),
                ("set", &["SADD", "", "a"]),
                ("big-hash", &["HSET", "", "x", &big]),
                ("big-list", &["RPUSH", "", &big]),
            ] {
                let what = format!("{kind} as {name} of {method:?}");
                let person =
                    world.person(&format!("{kind}-{name}-{}", method.name()), method).await;
                use_all(&world, &person, &what).await;
                let UserNames { state, otp, history, log, .. } = names().user(&person.pseudonym);
                let key = match kind {
                    "state" => &state,
                    "otp" => &otp,
                    "hist" => &history,
                    _ => &log,
                };
                send(&world, &command(&["DEL", key])).await;
                let words: Vec<&str> =
                    words.iter().map(|word| if word.is_empty() { key } else { *word }).collect();
                send(&world, &command(&words)).await;
                use_all(&world, &person, &what).await;
                // One check reads users of all kinds at once.
                let users = [person.pseudonym, other.pseudonym];
                world.publisher.store().published(&users).await.unwrap();
                let (_, person) = check(&world, &person).await;
                use_all(&world, &person, &what).await;
                verifies_again(&world, &person, &what).await;
                assert_eq!(check(&world, &person).await.0, Found::Fine, "{what}");
            }
        }
    }
    assert_eq!(check(&world, &other).await.0, Found::Fine);
}

/// A generator of numbers that begins alike in every run (`SplitMix64`).
struct Sequence(u64);

impl Sequence {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }

    fn value(&mut self) -> String {
        let now = START.to_string();
        let pieces = [&now, " 5 ", "kms:", "verify/used=3", "1798000000", " 30 0", "="];
        let mut text = VALUES[self.below(VALUES.len())].to_owned();
        for _ in 0..self.below(4) {
            text.push_str(pieces[self.below(pieces.len())]);
        }
        text
    }
}

#[tokio::test]
async fn random_data_and_arguments_of_scripts_affect_no_other_user() {
    let world = World::in_redis_as_a_service().await;
    let mut person = world.person("alice", Email).await;
    let other = world.person("bob", App).await;
    let user = names().user(&person.pseudonym);
    let keys = [&user.state, &user.otp, &user.history];
    let scripts = [
        (Verify::text(), Verify::ARGUMENTS.len(), 3),
        (IssueScript::text(), IssueScript::ARGUMENTS.len(), 3),
        (RecordDelivery::text(), RecordDelivery::ARGUMENTS.len(), 2),
    ];
    let mut random = Sequence(1);
    let mut connection = world.redis().connect().await;
    for round in 0..60 {
        for _ in 0..50 {
            let (field, value) = (FIELDS[random.below(FIELDS.len())], random.value());
            let (key, words) = match random.below(4) {
                0 => (&user.state, vec!["HSET", field, &value]),
                1 => (&user.otp, vec!["HSET", "kms:ab", &value]),
                2 => (&user.history, vec!["RPUSH", &value]),
                _ => (keys[random.below(3)], vec!["PEXPIRE", "86400000"]),
            };
            let mut write = redis::cmd(words[0]);
            // A key of another type refuses it.
            let _ = write.arg(key).arg(&words[1..]).exec_async(&mut connection).await;
            let (text, arguments, count) = &scripts[random.below(scripts.len())];
            let names: Vec<&String> =
                if *count == 3 { keys.to_vec() } else { vec![keys[0], keys[2]] };
            let mut call = redis::cmd("EVAL");
            call.arg(text).arg(*count).arg(names);
            for _ in 0..*arguments {
                call.arg(random.value());
            }
            // Arguments that are no numbers are an error of the caller.
            let _ = call.exec_async(&mut connection).await;
            use_all(&world, &person, "random data").await;
        }
        world.set_time(world.now().millis() + STEP).await;
        let code = other.code_at(world.now(), 0);
        let verdict = world.verify(&other, "kms", &code).await.unwrap();
        assert_eq!(verdict, Verdict::Accepted, "round {round}");
        person = check(&world, &person).await.1;
        use_all(&world, &person, "repaired data").await;
    }
    assert_eq!(check(&world, &other).await.0, Found::Fine);
}

#[tokio::test]
async fn a_state_that_expires_or_is_gone_is_published_again() {
    let world = World::in_redis_as_a_service().await;
    let person = world.person("alice", App).await;
    let UserNames { state, record, .. } = names().user(&person.pseudonym);
    send(&world, &command(&["PEXPIRE", &state, "3600000"])).await;
    assert_eq!(check(&world, &person).await.0, Found::Repaired);
    let left: i64 = world.redis().ask(&["PTTL", &state]).await;
    assert_eq!(left, -1);
    let person = world.current(&person).await;
    for key in [&state, &record] {
        send(&world, &command(&["DEL", key])).await;
        let (found, person) = check(&world, &person).await;
        assert_eq!(found, Found::Incomplete, "{key}");
        verifies_again(&world, &person, key).await;
    }
    // A removed user is in order.
    world.publisher.remove(person.pseudonym).await.unwrap();
    let found = world.publisher.store().check_users(&[person.pseudonym]).await.unwrap()[0].found;
    assert_eq!(found, Found::Fine);
}

#[tokio::test]
async fn a_revision_that_a_service_has_raised_is_lowered_again() {
    let world = World::in_redis_as_a_service().await;
    let person = world.person("alice", App).await;
    let UserNames { state, .. } = names().user(&person.pseudonym);
    for revision in ["1", "999999999999999", "18446744073709551615"] {
        send(&world, &command(&["HSET", &state, "revision", revision])).await;
        let (found, person) = check(&world, &person).await;
        assert_ne!(found, Found::Fine, "{revision}");
        assert!(person.revision < Revision(world.now().millis() + 1000), "{:?}", person.revision);
    }
}

#[tokio::test]
async fn spoilt_counts_of_deliveries_stop_no_delivery_after_the_next_check() {
    let world = World::in_redis_as_a_service().await;
    let key = names().realm_deliveries();
    let minute = (START / 60_000).to_string();
    let many = "x".repeat(3 << 20);
    for words in [
        &["SET", &key, "x"][..],
        &["RPUSH", &key, "x"],
        &["HSET", &key, &minute, "x"],
        &["HSET", &key, &minute, "inf"],
        &["HSET", &key, &minute, "-5"],
        &["HSET", &key, &minute, "1e300"],
        &["HSET", &key, "nan", "1"],
        &["HSET", &key, "x", &many],
        &["HSET", &key, "0", "x"],
        &["HSET", &key, "0", &format!("{minute} 99999")],
        &["HSET", &key, "0", &format!("{minute} {}", "9".repeat(400))],
        &["HSET", &key, "0", &many],
    ] {
        let what = &words[..words.len() - 1];
        send(&world, &command(&["DEL", &key])).await;
        send(&world, &command(words)).await;
        for number in 0..3 {
            let granted = world.store.count_delivery(&caller("kms"), 3, 0).await.unwrap();
            assert_eq!(granted, Allowance::Granted, "{what:?} {number}");
        }
        let full = world.store.count_delivery(&caller("kms"), 3, 0).await.unwrap();
        assert!(matches!(full, Allowance::LimitReached { .. }), "{what:?}: {full:?}");
    }
    send(&world, &command(&["SET", &key, "x"])).await;
    assert!(world.publisher.store().check_counts().await.unwrap());
    assert!(!world.publisher.store().check_counts().await.unwrap());
}

/// Does what the operator does when it checks a realm, and fills the realm if it is incomplete.
async fn check_realm(world: &World, people: &[&Person]) {
    let store = world.publisher.store().redis().unwrap().clone();
    for _ in 0..3 {
        let nodes = store.nodes().await.unwrap();
        let realms = std::slice::from_ref(&store);
        if store.check_realms(&nodes, realms, &mut random()).await.unwrap()[0].ready {
            return;
        }
        world.fill(people).await;
    }
    panic!("the realm is not ready after three checks");
}

#[tokio::test]
async fn a_realms_meta_that_a_service_of_redis_6_2_has_spoilt_affects_its_realm_only() {
    let world = World::in_redis().await;
    let neighbour = RealmNames::new(&installation(), &"another-realm".parse().unwrap());
    let store = world.publisher.store().redis().unwrap().for_realm(neighbour);
    let other = World::of(&world, Store::Redis(store));
    other.fill(&[]).await;
    let unharmed = other.person("bob", App).await;
    let mut person = world.person("alice", App).await;
    // In Redis 6.2, a login that may read a key may write it.
    let login = world.service_url_in(names(), Separation::RealmsOnly).await;
    let mut hostile =
        Client::open(login).unwrap().get_multiplexed_async_connection().await.unwrap();
    let meta = names().realm_meta();
    check_realm(&world, &[&person]).await;
    let fields: Vec<String> = world.redis().ask(&["HKEYS", &meta]).await;
    let guard = fields.iter().find(|field| field.starts_with("guard:")).unwrap().clone();
    let term = guard.rsplit('.').next().unwrap();

    let mut attacks: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut attack = |words: &[&str]| {
        attacks.push(words.iter().map(|word| word.as_bytes().to_vec()).collect());
    };
    attack(&["HDEL", &meta, "complete"]);
    attack(&["HDEL", &meta, &guard]);
    let future = (START + (1 << 41)).to_string();
    for field in ["complete", "filled", "filling", &guard, "guard:x", "junk"] {
        for value in VALUES.iter().chain(&["+5", "0000000000000005", &future]) {
            attack(&["HSET", &meta, field, value]);
        }
        attack(&["HSET", &meta, field, &"x".repeat(100_000)]);
    }
    // A node with the term of the real one, and more nodes than a script reads.
    attack(&["HSET", &meta, &format!("guard:{}.{term}", "a".repeat(40)), "0"]);
    for (count, prefix) in [(200, "guard:"), (5000, "guard:"), (5000, "")] {
        let mut words = vec!["HSET".to_owned(), meta.clone()];
        for number in 0..count {
            words.extend([format!("{prefix}{number:040x}.{number:040x}"), START.to_string()]);
        }
        attack(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    attacks.push(vec![b"HSET".to_vec(), meta.clone().into(), vec![0xff, 0xfe], vec![0xff]]);
    attacks.push(vec![b"HSET".to_vec(), meta.clone().into(), guard.clone().into(), vec![0xff]]);
    // Of another type, and gone.
    for words in [&["RPUSH", "x"][..], &["XADD", "*", "x", "y"], &["PEXPIREAT", "1"]] {
        let mut words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        words.insert(1, meta.clone().into());
        attacks.push(words);
    }

    for words in attacks {
        let shown: Vec<_> =
            words.iter().take(4).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let what = format!("{:.200}", shown.join(" "));
        if [b"RPUSH".as_slice(), b"XADD"].contains(&words[0].as_slice()) {
            // A moment in the past deletes the key.
            let delete = [b"PEXPIREAT".to_vec(), meta.clone().into(), b"1".to_vec()];
            send_as(&mut hostile, &delete).await;
        }
        send_as(&mut hostile, &words).await;
        // Its own realm may be unavailable until the next check.
        let _ = world.store.realm(None).await;
        check_realm(&world, &[&person]).await;
        let fields: Vec<String> = world.redis().ask(&["HKEYS", &meta]).await;
        let is_known = |field: &String| {
            ["complete", "filled", "filling"].contains(&field.as_str()) || *field == guard
        };
        assert!(fields.iter().all(is_known), "{what}: {fields:?}");
        world.set_time(world.now().millis() + STEP).await;
        person = world.current(&person).await;
        world.store.realm(None).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        verifies_again(&world, &person, &what).await;
        let code = unharmed.code_at(other.now(), 0);
        other.store.realm(None).await.unwrap();
        let verdict = other.verify(&unharmed, "kms", &code).await.unwrap();
        assert!([Verdict::Accepted, Verdict::Used].contains(&verdict), "{what}: {verdict:?}");
    }
}

async fn send_as(connection: &mut MultiplexedConnection, words: &[Vec<u8>]) {
    let mut command = redis::cmd(std::str::from_utf8(&words[0]).unwrap());
    // A key of another type refuses it.
    let _ = command.arg(&words[1..]).exec_async(connection).await;
}

#[tokio::test]
async fn counts_of_deliveries_that_are_ahead_leave_the_hour_after_an_hour() {
    let world = World::in_redis_as_a_service().await;
    let key = names().realm_deliveries();
    let ahead = (START / 60_000 + 59).to_string();
    send(&world, &command(&["HSET", &key, &ahead, "1000000"])).await;
    let take = async || world.store.count_delivery(&caller("kms"), 10, 0).await.unwrap();
    let reached = |minutes| Allowance::LimitReached { retry_after: Duration::from_mins(minutes) };
    assert_eq!(take().await, reached(60));
    world.set_time(START + 1_800_000).await;
    assert_eq!(take().await, reached(30));
    world.set_time(START + 3_600_000).await;
    assert_eq!(take().await, Allowance::Granted);
    // A service can invent callers, but no more fields than are deleted at the next check.
    let minute = (START / 60_000 + 60).to_string();
    let mut fields = vec!["HSET".to_owned(), key.clone()];
    for number in 0..5000 {
        fields.extend([format!("{minute}.{number}"), "0".to_owned()]);
    }
    send(&world, &command(&fields.iter().map(String::as_str).collect::<Vec<_>>())).await;
    assert_eq!(take().await, Allowance::Granted);
    assert!(world.publisher.store().check_counts().await.unwrap());
    assert_eq!(take().await, Allowance::Granted);
    assert!(!world.publisher.store().check_counts().await.unwrap());
}

#[tokio::test]
async fn a_clock_that_was_ahead_for_seconds_locks_no_user_out() {
    let world = World::in_redis().await;
    let limits = Limits::default();
    let mut people = Vec::new();
    for (index, method) in [App, App, Email, Email, App].into_iter().enumerate() {
        people.push(world.person(&format!("user-{index}"), method).await);
    }
    // The clocks are ahead for ten seconds, in which users are verified, fail and get codes.
    let ahead = START + 30 * 24 * 3_600_000;
    world.set_time(ahead).await;
    let accepted = people[0].code_at(world.now(), 0);
    assert_eq!(world.verify(&people[0], "kms", &accepted).await.unwrap(), Verdict::Accepted);
    for _ in 0..5 {
        let wrong = people[1].wrong_code(world.now());
        assert_eq!(world.verify(&people[1], "new", &wrong).await.unwrap(), Verdict::Wrong);
    }
    let mut request =
        world.issuance(&people[2], "new", people[2].step(world.now()), Duration::from_mins(5));
    request.limits = limits;
    let issued = world.store.issue(&people[2].pseudonym, &request).await.unwrap();
    assert!(matches!(issued, Issue::Issued { .. }), "{issued:?}");
    let of_the_future = people[2].code_at(world.now(), 0);
    let people_of_now = people.clone();
    world.set_time(START + 10_000).await;
    let late = world.verify(&people[2], "new", &of_the_future).await.unwrap();
    assert_eq!(late, Verdict::Wrong, "a code lives for minutes and not for a month");
    for person in &people_of_now {
        let begin = world.now().millis();
        verifies_again(&world, person, "after the clock was right again").await;
        assert!(world.now().millis() - begin <= 120_000);
        world.set_time(begin + 600_000).await;
    }
    // What was accepted while the clock was ahead is not accepted again when that time comes.
    world.set_time(ahead).await;
    assert_eq!(world.verify(&people[0], "kms", &accepted).await.unwrap(), Verdict::Used);
    verifies_again(&world, &people[0], "a month later").await;
}

#[tokio::test]
async fn nothing_is_published_with_a_clock_of_redis_that_is_wrong() {
    let world = World::in_redis().await;
    let person = world.person("alice", App).await;
    for difference in [-120_000_i64, 120_000] {
        let wrong = START.saturating_add_signed(difference);
        world.redis().clock().set_unix_millis(wrong).await;
        // Disabling a user who is there must not wait for a clock.
        let mut record = person.record.clone();
        record.definition.issuer = Some(format!("Another {difference}"));
        let desired = |record, fresh| DesiredUser { record, fresh, reset: None, disabled: false };
        let publish = async |desired: DesiredUser| {
            world.publisher.publish(&[desired], world.now(), &mut random()).await
        };
        assert_eq!(publish(desired(record, false)).await.unwrap(), [PublishOutcome::Written]);
        let fresh = crate::support::world::record(&format!("new{difference}"), App);
        assert_eq!(publish(desired(fresh, true)).await.unwrap(), [PublishOutcome::Written]);
        let lost = crate::support::world::record(&format!("lost{difference}"), App);
        let refused = publish(desired(lost, false)).await;
        assert!(matches!(refused, Err(StoreError::Undecided(_))), "{refused:?}");
        world.redis().clock().set_unix_millis(START).await;
    }
    // A fill is not completed either.
    world.empty().await;
    world.redis().clock().set_unix_millis(START - 120_000).await;
    let inspection = world.publisher.begin_fill(Some(&[]), &mut random()).await.unwrap();
    assert!(world.publisher.store().complete_fill(&inspection).await.is_err());
    world.redis().clock().set_unix_millis(START).await;
    world.publisher.store().complete_fill(&inspection).await.unwrap();
    assert_eq!(world.now(), UnixMillis::new(START));
}

#[tokio::test]
async fn a_reset_of_failures_heals_a_user() {
    let world = World::in_redis_as_a_service().await;
    let person = world.person("alice", App).await;
    let UserNames { state, .. } = names().user(&person.pseudonym);
    let far = (START + 3_000_000_000).to_string();
    send(
        &world,
        &command(&[
            "HSET",
            &state,
            "disabled",
            "1",
            "failures:kms",
            "99",
            "blocked:new",
            &far,
            "until",
            &far,
            "since",
            &far,
            "asked",
            &far,
            "junk",
            "x",
        ]),
    )
    .await;
    let desired = DesiredUser {
        record: person.record.clone(),
        fresh: false,
        reset: Some("1".to_owned()),
        disabled: false,
    };
    world.publisher.publish(&[desired], world.now(), &mut random()).await.unwrap();
    let person = world.current(&person).await;
    let mut fields: Vec<String> = world.redis().ask(&["HKEYS", &state]).await;
    fields.sort();
    assert_eq!(fields, ["ahead", "reset", "revision", "since", "until"]);
    // The publisher does not know the period, so it counts with the longest.
    world.set_time(START + 240_000).await;
    verifies_again(&world, &person, "after the reset").await;
}

#[tokio::test]
async fn a_user_who_was_disabled_by_failures_stays_disabled_through_a_loss() {
    let world = World::in_redis().await;
    let person = world.person("alice", App).await;
    world.empty().await;
    world.fill(&[]).await;
    let desired = |reset: Option<&str>, disabled| DesiredUser {
        record: person.record.clone(),
        fresh: false,
        reset: reset.map(str::to_owned),
        disabled,
    };
    let publish = async |desired: DesiredUser| {
        world.publisher.publish(&[desired], world.now(), &mut random()).await.unwrap();
        world.publisher.store().disabled(&[person.pseudonym]).await.unwrap()[0]
    };
    // The request was carried out before the user was disabled again.
    assert!(publish(desired(Some("1"), true)).await);
    assert!(publish(desired(Some("1"), false)).await, "only a new request enables the user");
    assert!(!publish(desired(Some("2"), false)).await);
    assert!(!publish(desired(Some("2"), true)).await, "Redis knows better than the status");
}
