//! Tests `serve` on the records that a publisher wrote to a real Redis, if they are valid, if they
//! are damaged, and if they are lost.

use std::fs;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use serde_json::json;
use twofactor_core::audit::AuditPolicy;
use twofactor_core::realm::RealmRecord;
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_store::clock::Clock;
use twofactor_tests::http::{ApiClient, Reply};
use twofactor_tests::mail::{MailServer, MailStage, MailTls};
use twofactor_tests::process::{Launch, Signal};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;
use twofactor_tests::{ports, tools};

use crate::support::neighbour::{CLIENT, Neighbour, SIEGES, probe};
use crate::support::sidecar::{Served, metrics, shown, with_mail};
use crate::support::world::{Person, World, names, random, record};

const BOUND: Duration = Duration::from_secs(10);

async fn world() -> World {
    World::in_redis_with_real_time(RedisServer::start().await).await
}

#[track_caller]
fn assert_unavailable(reply: &Reply) {
    assert_eq!(reply.status, 503, "{}", reply.body);
    assert_eq!(
        reply.json()["detail"],
        "The 2FA store is unavailable. Try again; if a code is refused then, ask for a new one."
    );
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_code_mailed_for_one_service_is_not_accepted_from_another() {
    let world = world().await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let person = world.person("alice", Email).await;
    world.fill_with(&with_mail(&mail), &[&person]).await;
    let (kms, shop) = (Served::start(&world, "kms").await, Served::start(&world, "shop").await);
    let reply = kms.api().generate("alice").await;
    assert_eq!((reply.status, reply.json().get("otp_code")), (200, None), "{}", reply.body);
    let text = mail.wait_for_message("alice@example.org", BOUND).await.text;
    let code = text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
    let elsewhere = shop.api().verify("alice", &code).await.status;
    assert!(elsewhere == 400 || elsewhere == 401, "{elsewhere}");
    assert_eq!(kms.api().verify("alice", &code).await.status, 200);
}

#[tokio::test]
async fn an_address_that_no_mail_server_takes_is_the_users_fault() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    world.fill_with(&with_mail(&mail), &[]).await;
    let sidecar = Served::start(&world, "kms").await;
    // Records of before the manifests were checked.
    let addresses = ["user@-bad.example", "user@_x.example", "user@192.0.2.1"].map(str::to_owned);
    for (number, address) in
        addresses.into_iter().chain([format!("user@{}.example", "a".repeat(64))]).enumerate()
    {
        let name = format!("user{number}");
        let mut user = record(&name, Email);
        user.definition.email = Some(address.try_into().unwrap());
        world.publish(user, true).await;
        let reply = sidecar.api().generate(&name).await;
        assert_eq!(
            (reply.status, &reply.json()["type"]),
            (400, &"urn:fountainai:2fa:no-delivery-method".into()),
            "{}",
            reply.body
        );
    }
    assert!(
        !metrics(&sidecar)
            .await
            .contains("twofactor_deliveries_total{channel=\"email\",outcome=\"misconfigured\"} ")
    );
    assert_eq!(mail.attempts().await, 0);
}

/// A realm that sends its mail through `mail`, and keeps the end user's address and agent or not.
fn with_origin(mail: &MailServer, origin: bool) -> RealmRecord {
    RealmRecord { audit: AuditPolicy { origin, ..AuditPolicy::default() }, ..with_mail(mail) }
}

/// Sends a request with the end user's address and agent, as a service passes them on.
async fn ask_for_a_browser(sidecar: &SidecarProcess, path: &str, body: serde_json::Value) -> Reply {
    let headers = [
        ("content-type", "application/json"),
        ("x-forwarded-for", "10.0.0.1, 203.0.113.7"),
        ("user-agent", "a browser"),
    ];
    sidecar.api().raw("POST", path, &headers, body.to_string()).await
}

#[tokio::test]
async fn history_has_each_request_with_the_end_users_address_and_agent() {
    let world = world().await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let person = world.person("alice", Email).await;
    world.fill_with(&with_origin(&mail, true), &[&person]).await;
    let person = world.current(&person).await;
    let sidecar = Served::start(&world, "kms").await;
    let generate = async || {
        ask_for_a_browser(&sidecar, "/auth/generate", json!({ "username": "alice" })).await.status
    };
    mail.fail(MailStage::Rcpt, "550 5.1.1 alice@example.org unknown here", None).await;
    assert_eq!(generate().await, 502);
    mail.heal().await;
    assert_eq!(generate().await, 200);
    assert_eq!(generate().await, 429);
    let wrong = json!({ "username": "alice", "otp_code": "0000000" });
    assert_eq!(ask_for_a_browser(&sidecar, "/auth/verify", wrong).await.status, 401);
    let history = world.publisher.store().history(&person.pseudonym).await.unwrap();
    let entries: Vec<_> = history
        .into_iter()
        .map(|entry| {
            assert_eq!((entry.caller.as_str(), entry.channel.as_str()), ("kms", "email"));
            assert_eq!(entry.address.as_deref(), Some("203.0.113.7"));
            assert_eq!(entry.user_agent.as_deref(), Some("a browser"));
            format!("{} {}", entry.operation, entry.outcome)
        })
        .collect();
    assert_eq!(
        entries,
        [
            "generate issued",
            "delivery refused",
            "generate issued",
            "delivery sent",
            "generate too-soon",
            "verify wrong"
        ]
    );
}

#[tokio::test]
async fn log_and_history_omit_the_end_users_address_and_agent_if_the_realm_says_so() {
    let world = world().await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let person = world.person("alice", Email).await;
    world.fill_with(&with_origin(&mail, true), &[&person]).await;
    let person = world.current(&person).await;
    let sidecar = Served::start(&world, "kms").await;
    let unknown = json!({ "username": "unknown", "otp_code": "000000" });
    assert_eq!(ask_for_a_browser(&sidecar, "/auth/verify", unknown).await.status, 404);
    sidecar.process().wait_for_line("203.0.113.7", BOUND).await;
    let realm = with_origin(&mail, false);
    world.publisher.publish_realm(&realm, Clock::System.now(), &mut random()).await.unwrap();
    eventually(BOUND, "the log without the address", async || {
        let unknown = json!({ "username": "unknown", "otp_code": "000000" });
        assert_eq!(ask_for_a_browser(&sidecar, "/auth/verify", unknown).await.status, 404);
        let log = sidecar.process().stderr();
        let last = log
            .lines()
            .rfind(|line| line.contains("username=\"unknown\""))
            .unwrap_or("203.0.113.7");
        if last.contains("203.0.113.7") || last.contains("a browser") {
            Err(last.to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    let wrong = json!({ "username": "alice", "otp_code": "0000000" });
    assert_eq!(ask_for_a_browser(&sidecar, "/auth/verify", wrong).await.status, 401);
    let last = world.publisher.store().history(&person.pseudonym).await.unwrap().pop().unwrap();
    assert_eq!((last.outcome.as_str(), last.address, last.user_agent), ("wrong", None, None));
}

/// Number of calls of a command of Redis so far.
async fn calls(world: &World, command: &str) -> u64 {
    let statistics: String = world.redis().ask(&["INFO", "commandstats"]).await;
    let rest = statistics.split(&format!("cmdstat_{command}:calls=")).nth(1).unwrap_or("0");
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[tokio::test]
async fn an_idle_sidecar_reads_the_realm_every_15_seconds_and_only_what_has_changed() {
    let world = world().await;
    let callers = (0..250).map(|number| format!("{}-{number}", "namespace".repeat(6)));
    let realm = RealmRecord {
        callers: Some(callers.chain(["kms".to_owned()]).collect()),
        ..RealmRecord::default()
    };
    world.fill_with(&realm, &[]).await;
    let size: u64 = world.redis().ask(&["STRLEN", &names().realm_record()]).await;
    assert!(size > 14_000, "{size}");
    // The publisher has read as well.
    let before = calls(&world, "get").await;
    let sidecar = Served::start(&world, "kms").await;
    let parts = async || calls(&world, "getrange").await;
    eventually(BOUND, "the first read", async || calls(&world, "get").await > before).await;
    let (began, whole) = (Instant::now(), calls(&world, "get").await);
    eventually(Duration::from_secs(25), "the next read", async || parts().await == 1).await;
    assert!(began.elapsed() > Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(calls(&world, "get").await, whole, "the whole record is read once");

    // A change is noticed by the next request, however long the sidecar was idle.
    let withdrawn = RealmRecord { callers: Some(["shop".to_owned()].into()), ..realm };
    world.publisher.publish_realm(&withdrawn, Clock::System.now(), &mut random()).await.unwrap();
    eventually(Duration::from_secs(2), "the withdrawal", async || {
        sidecar.api().verify("unknown", "123456").await.status == 503
    })
    .await;
}

#[tokio::test]
async fn an_edit_and_a_removal_take_effect_on_the_next_request() {
    let world = world().await;
    let sidecar = Served::start(&world, "kms").await;
    let person = world.person("carol", App).await;
    assert_eq!(sidecar.api().verify("carol", "000000").await.status, 401);
    let mut record = person.record.clone();
    record.definition.enabled = false;
    world.publish(record.clone(), false).await;
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 404);
    record.definition.enabled = true;
    let person = world.publish(record, false).await;
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 200);
    world.publisher.remove(person.pseudonym).await.unwrap();
    assert_eq!(sidecar.api().verify("carol", &shown(&person)).await.status, 404);
}

#[tokio::test]
async fn a_flushed_redis_is_an_outage_and_never_an_unknown_user() {
    let world = world().await;
    let sidecar = Served::start(&world, "kms").await;
    let person = world.person("carol", App).await;
    let code = shown(&person);
    assert_eq!(sidecar.api().verify("carol", &code).await.status, 200);
    assert_eq!(sidecar.api().verify("unknown", "123456").await.status, 404);
    world.redis().flush_all().await;
    assert_unavailable(&sidecar.api().verify("carol", &code).await);
    assert_unavailable(&sidecar.api().verify("unknown", "123456").await);
    assert_unavailable(&sidecar.api().generate("unknown").await);
    world.fill(&[&person]).await;
    assert_eq!(sidecar.api().verify("carol", &code).await.status, 400);
    assert_eq!(sidecar.api().verify("unknown", "123456").await.status, 404);
}

/// The person's sealed record, as it is in Redis.
async fn sealed(world: &World, person: &Person) -> Vec<u8> {
    world.redis().connect().await.get(names().user(&person.pseudonym).record).await.unwrap()
}

async fn replace(world: &World, person: &Person, sealed: &[u8]) {
    let key = names().user(&person.pseudonym).record;
    world.redis().connect().await.set::<_, _, ()>(key, sealed).await.unwrap();
}

#[tokio::test]
async fn a_record_that_does_not_open_is_never_used() {
    let world = world().await;
    let (alice, bob) = (world.person("alice", App).await, world.person("bob", App).await);
    let mut damaged = sealed(&world, &alice).await;
    *damaged.last_mut().unwrap() ^= 1;
    let of_bob = sealed(&world, &bob).await;
    for (forged, reason) in
        [(damaged, "not-authentic"), (of_bob, "not-authentic"), (b"short".to_vec(), "truncated")]
    {
        let sidecar = Served::start(&world, "kms").await;
        replace(&world, &alice, &forged).await;
        assert_unavailable(&sidecar.api().verify("alice", &shown(&bob)).await);
        assert_unavailable(&sidecar.api().generate("alice").await);
        let metrics = metrics(&sidecar).await;
        assert!(
            metrics.contains(&format!("twofactor_records_refused_total{{reason=\"{reason}\"}} 2")),
            "{metrics}"
        );
        assert_eq!(sidecar.api().verify("bob", "000000").await.status, 401, "others are served");
    }
}

#[tokio::test]
async fn a_record_of_a_lower_revision_is_never_used() {
    let world = world().await;
    let sidecar = Served::start(&world, "kms").await;
    let person = world.person("alice", App).await;
    let (old, old_revision) = (sealed(&world, &person).await, person.revision);
    let mut record = person.record.clone();
    record.definition.enabled = false;
    world.publish(record, false).await;
    assert_eq!(sidecar.api().verify("alice", &shown(&person)).await.status, 404);
    // An attacker who can write to Redis restores the record of the enabled user.
    replace(&world, &person, &old).await;
    let state = names().user(&person.pseudonym).state;
    world
        .redis()
        .connect()
        .await
        .hset::<_, _, _, ()>(state, "revision", old_revision.0)
        .await
        .unwrap();
    assert_unavailable(&sidecar.api().verify("alice", &shown(&person)).await);
    let metrics = metrics(&sidecar).await;
    assert!(
        metrics.contains(r#"twofactor_records_refused_total{reason="rolled-back"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_user_with_only_half_of_their_keys_is_an_outage() {
    let world = world().await;
    let person = world.person("alice", App).await;
    for half in ["record", "state"] {
        let sidecar = Served::start(&world, "kms").await;
        let user = names().user(&person.pseudonym);
        let key = if half == "record" { user.record } else { user.state };
        world.redis().connect().await.del::<_, ()>(key).await.unwrap();
        assert_unavailable(&sidecar.api().verify("alice", &shown(&person)).await);
        world.publish(person.record.clone(), false).await;
    }
}

#[tokio::test]
async fn without_redis_the_answer_is_503_within_a_second_and_recovery_needs_no_restart() {
    let world = world().await;
    let sidecar = Served::start(&world, "kms").await;
    let person = world.person("alice", App).await;
    assert_eq!(sidecar.api().verify("alice", "000000").await.status, 401);
    let timed = async || {
        let began = Instant::now();
        let reply = sidecar.api().verify("alice", "000000").await;
        (reply, began.elapsed())
    };
    world.redis().pause().await;
    for _ in 0..3 {
        let (reply, took) = timed().await;
        assert_unavailable(&reply);
        assert!(took < Duration::from_millis(1200), "{took:?}");
    }
    eventually(BOUND, "the health check", async || {
        sidecar.admin().get("/readyz?verbose").await.body.contains("[-] redis failed")
    })
    .await;
    assert_eq!(
        sidecar.admin().get("/readyz").await.status,
        200,
        "an outage of Redis takes no pod out of its Service"
    );
    assert_eq!(sidecar.api().get("/").await.status, 200);
    world.redis().resume();
    eventually(BOUND, "recovery", async || {
        sidecar.api().verify("alice", "000000").await.status != 503
    })
    .await;
    world.redis().kill();
    for _ in 0..3 {
        let (reply, took) = timed().await;
        assert_unavailable(&reply);
        assert!(took < Duration::from_millis(1200), "{took:?}");
    }
    // Redis is empty after the restart, so the answer is 503 until it is filled.
    world.redis().restart().await;
    assert_unavailable(&sidecar.api().verify("alice", "000000").await);
    eventually(BOUND, "the refill", async || {
        world
            .publisher
            .fill(
                &RealmRecord::default(),
                &[twofactor_store::publisher::DesiredUser {
                    record: person.record.clone(),
                    fresh: false,
                    reset: None,
                    disabled: false,
                }],
                twofactor_store::publisher::UnlistedUsers::Remove,
                Clock::System.now(),
                &mut random(),
            )
            .await
    })
    .await;
    eventually(BOUND, "recovery", async || {
        sidecar.api().verify("alice", "000000").await.status == 401
    })
    .await;
}

#[tokio::test]
async fn the_sidecars_clock_follows_the_one_of_redis() {
    let redis = RedisServer::builder().with_movable_clock().start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let sidecar = Served::start(&world, "kms").await;
    let person = world.person("carol", App).await;
    let now = Clock::System.now().millis();
    // Each code is of a later step, because a step is accepted once and earlier steps are refused.
    for (name, millis) in
        [("a step", now + 30_000), ("an hour", now + 3_600_000), ("a day", now + 86_400_000)]
    {
        world.redis().clock().set_unix_millis(millis).await;
        let code = person.code_at(UnixMillis::new(millis), 0).expose_secret().to_owned();
        assert_eq!(sidecar.api().verify("carol", &code).await.status, 200, "{name} ahead");
        assert_eq!(sidecar.api().verify("carol", &code).await.status, 400, "{name} ahead");
    }
    let dora = world.person("dora", App).await;
    let back = now - 3_600_000;
    world.redis().clock().set_unix_millis(back).await;
    let code = dora.code_at(UnixMillis::new(back), 0).expose_secret().to_owned();
    assert_eq!(sidecar.api().verify("dora", &code).await.status, 200, "an hour back");
}

#[tokio::test]
async fn a_delivered_code_is_accepted_until_the_expiry_that_was_promised() {
    let redis = RedisServer::builder().with_movable_clock().start().await;
    let world = World::in_redis_with_real_time(redis).await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let people = [
        world.person("early", Email).await,
        world.person("exactly", Email).await,
        world.person("late", Email).await,
    ];
    world.fill_with(&with_mail(&mail), &people.each_ref()).await;
    let sidecar = Served::start(&world, "kms").await;
    let asked_at = Clock::System.now().millis() + 60_000;
    for (name, offset, expected) in [("early", -1, 200), ("exactly", 0, 200), ("late", 1, 401)] {
        world.redis().clock().set_unix_millis(asked_at).await;
        let reply = sidecar.api().generate(name).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let promised = asked_at / 1000 * 1000 + 300_000;
        let expires = eventually(BOUND, "the mail", async || mail.messages().await.pop()).await;
        assert!(expires.text.contains(reply.json()["expires_at"].as_str().unwrap()));
        let text = mail.wait_for_message(&format!("{name}@example.org"), BOUND).await.text;
        let code = text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
        world
            .redis()
            .clock()
            .set_unix_millis(promised.checked_add_signed(offset * 1000).unwrap())
            .await;
        assert_eq!(sidecar.api().verify(name, &code).await.status, expected, "{name}");
    }
}

#[tokio::test]
async fn credentials_that_are_missing_or_wrong_are_named_and_never_shown() {
    let world = world().await;
    for (file, content, expected) in [
        ("realm-key", None, "realm-key: No such file"),
        ("realm-key", Some("1:c2VjcmV0"), "realm-key: must have the form GENERATION:KEY"),
        ("realm", Some("a:b"), "realm: must be 1 to 64 letters"),
        ("caller", Some(""), "caller: must be 1 to 63 letters"),
        ("redis-url", Some("http://:hidden@x"), "redis-url: is not a Redis URL"),
    ] {
        let folder = world.credentials("kms");
        match content {
            Some(content) => fs::write(folder.path().join(file), content).unwrap(),
            None => fs::remove_file(folder.path().join(file)).unwrap(),
        }
        let process = Launch::new(tools::project_binary("twofactor-sidecar"))
            .isolated()
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--credentials",
            ])
            .arg(folder.path())
            .start();
        assert!(!process.wait_exit(BOUND).await.success());
        let error = process.stderr();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("c2VjcmV0") && !error.contains("hidden"), "{error}");
    }
}

#[tokio::test]
async fn an_unreadable_realm_record_leaves_the_known_policy_in_use() {
    let world = world().await;
    world.person("alice", Email).await;
    let sidecar = Served::start(&world, "kms").await;
    let detail = |reply: &Reply| reply.json()["detail"].as_str().unwrap().to_owned();
    assert_eq!(
        detail(&sidecar.api().generate("alice").await),
        "No valid delivery method configured."
    );
    let forged = RealmRecord::default().seal(&world.keys(), Revision(1), &mut random());
    world.redis().connect().await.set::<_, _, ()>(names().realm_record(), forged).await.unwrap();
    eventually(BOUND, "the refusal to be counted", async || {
        metrics(&sidecar).await.contains("rolled-back")
    })
    .await;
    assert_eq!(
        detail(&sidecar.api().generate("alice").await),
        "No valid delivery method configured."
    );
}

#[tokio::test]
async fn in_a_pod_the_sidecar_serves_both_loopback_addresses_and_probes_on_every_address() {
    let world = world().await;
    let credentials = world.credentials("kms");
    let path = credentials.path().to_str().unwrap();
    let sidecar = SidecarProcess::builder()
        .args(["serve"])
        .env("TWOFACTOR_CREDENTIALS", path)
        .env("TWOFACTOR_THREADS", "1")
        .as_in_a_pod()
        .start()
        .await;
    for host in ["127.0.0.1", "[::1]"] {
        let port = |client: ApiClient| client.base_url().rsplit(':').next().unwrap().to_owned();
        let (api, admin) = (port(sidecar.api()), port(sidecar.admin()));
        let api = ApiClient::new(format!("http://{host}:{api}"));
        assert_eq!(api.get("/").await.status, 200, "{host}");
        assert_eq!(api.verify("unknown", "123456").await.status, 404, "{host}");
        let admin = ApiClient::new(format!("http://{host}:{admin}"));
        assert_eq!(admin.get("/livez").await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn an_invalid_address_is_refused_with_a_valid_example() {
    let world = world().await;
    let folder = world.credentials("kms");
    for (variables, expected) in [
        ([("TWOFACTOR_PORT", "9"), ("TWOFACTOR_LISTEN", "127.0.0.1:9")], "exclude each other"),
        ([("TWOFACTOR_PORT", "70000"), ("TWOFACTOR_LOG", "info")], "70000 is not in 1..=65535"),
        ([("TWOFACTOR_ADMIN_LISTEN", "*"), ("TWOFACTOR_LOG", "info")], "*:18004 for every address"),
    ] {
        let mut launch = Launch::new(tools::project_binary("twofactor-sidecar"))
            .isolated()
            .args(["serve", "--credentials"])
            .arg(folder.path());
        for (name, value) in variables {
            launch = launch.env(name, value);
        }
        let process = launch.start();
        assert!(!process.wait_exit(BOUND).await.success());
        assert!(process.stderr().contains(expected), "{}", process.stderr());
    }
}

#[tokio::test]
async fn a_sidecar_starts_without_redis_and_serves_once_it_is_there() {
    let world = world().await;
    let person = world.person("alice", App).await;
    world.redis().stop();
    let sidecar = Served::start(&world, "kms").await;
    assert_unavailable(&sidecar.api().verify("alice", "000000").await);
    assert_unavailable(&sidecar.api().generate("alice").await);
    world.redis().restart().await;
    eventually(BOUND, "the refill", async || {
        let desired = twofactor_store::publisher::DesiredUser {
            record: person.record.clone(),
            fresh: false,
            reset: None,
            disabled: false,
        };
        let others = twofactor_store::publisher::UnlistedUsers::Remove;
        world
            .publisher
            .fill(&RealmRecord::default(), &[desired], others, Clock::System.now(), &mut random())
            .await
    })
    .await;
    eventually(BOUND, "service", async || {
        sidecar.api().verify("alice", "000000").await.status == 401
    })
    .await;
}

#[tokio::test]
async fn sigterm_ends_an_idle_sidecar_within_a_second_even_while_redis_is_silent() {
    let world = world().await;
    for silent in [false, true] {
        let sidecar = Served::start(&world, "kms").await;
        // Its connection stays open.
        let client = sidecar.api();
        assert_eq!(client.get("/").await.status, 200);
        if silent {
            world.redis().pause().await;
        }
        sidecar.process().signal(Signal::Term);
        let status = sidecar.process().wait_exit(Duration::from_secs(1)).await;
        assert_eq!(status.code(), Some(0), "silent: {silent}");
        if silent {
            world.redis().resume();
        }
    }
}

#[tokio::test]
async fn silent_connections_of_a_neighbour_stop_neither_probes_nor_answers() {
    let world = world().await;
    let credentials = world.credentials("kms");
    let sidecar = SidecarProcess::builder()
        .args(["serve"])
        .env("TWOFACTOR_CREDENTIALS", credentials.path().to_str().unwrap())
        .as_in_a_pod()
        .start()
        .await;
    let admin = format!("*:{}", sidecar.admin_port());
    for count in SIEGES {
        let mut neighbour = Neighbour::new(sidecar.admin_port(), count);
        let (mut asked, mut slowest) = (0, Duration::ZERO);
        while neighbour.besieges().await {
            slowest = slowest.max(probe("twofactor-sidecar", &admin, "livez").await);
            assert_eq!(sidecar.api().verify("unknown", "123456").await.status, 404);
            // A scraper has another address than the neighbour.
            let scraper = reqwest::Client::builder().no_proxy().local_address(CLIENT).build();
            let metrics = format!("http://127.0.0.1:{}/metrics", sidecar.admin_port());
            assert_eq!(scraper.unwrap().get(metrics).send().await.unwrap().status(), 200);
            asked += 1;
        }
        assert!(asked > 1 && slowest < Duration::from_secs(2), "{asked}, {slowest:?}");
        println!("{count} connections: {asked} rounds, the slowest probe after {slowest:?}");
    }
}

#[tokio::test]
async fn a_probe_fails_with_the_reason() {
    let port = ports::free_port();
    let launch = Launch::new(tools::project_binary("twofactor-sidecar")).isolated();
    let process = launch.args(["probe", "livez", "--admin-listen", &format!("*:{port}")]).start();
    assert!(!process.wait_exit(Duration::from_secs(10)).await.success());
    assert!(process.stderr().contains("refused"), "{}", process.output());
}
