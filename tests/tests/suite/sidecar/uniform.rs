//! Tests uniform answers: a calling service learns neither which names are users nor why a code was
//! refused; the log says so.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use twofactor_core::realm::RealmRecord;
use twofactor_core::time::UnixMillis;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_tests::http::Reply;
use twofactor_tests::mail::{MailServer, MailStage, MailTls};
use twofactor_tests::process::{Launch, Process, Signal};
use twofactor_tests::redis::{AppendFsync, RedisServer};
use twofactor_tests::tools;
use twofactor_tests::wait::eventually;

use crate::support::sidecar::{Served, metrics, with_mail};
use crate::support::world::{Person, START, World, record};

const BOUND: Duration = Duration::from_secs(10);

/// A realm with uniform answers, in a Redis whose clock stands still.
struct Public {
    world: World,
    mail: MailServer,
    sidecar: Served,
}

async fn public(people: &[&str]) -> (Public, Vec<Person>) {
    let world = World::in_redis().await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let mut all = Vec::new();
    for name in people {
        all.push(world.person(name, Email).await);
    }
    all.push(world.person("clock", App).await);
    let realm = RealmRecord { uniform_answers: true, ..with_mail(&mail) };
    world.fill_with(&realm, &all.iter().collect::<Vec<_>>()).await;
    let sidecar = Served::start(&world, "kms").await;
    (Public { world, mail, sidecar }, all)
}

impl Public {
    /// Requests a code and returns the one that was mailed.
    async fn mailed(&self, name: &str) -> String {
        let reply = self.sidecar.generate(name).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let text = self.mail.wait_for_message(&format!("{name}@example.org"), BOUND).await.text;
        text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
    }

    async fn outcome(&self, operation: &str, outcome: &str) {
        let line = format!("operation=\"{operation}\" outcome=\"{outcome}\"");
        self.sidecar.process().wait_for_line(&line, BOUND).await;
    }

    /// Moves the clock of Redis, and makes requests from which the sidecar learns the new time.
    async fn set_time(&self, millis: u64) {
        self.world.redis().clock().set_unix_millis(millis).await;
        // Redis compares clocks only for an existing user.
        assert_eq!(self.sidecar.verify("clock", "000000").await.status, 401);
        assert_eq!(self.sidecar.generate("clock").await.status, 200);
        self.outcome("generate", "no-delivery-method").await;
    }
}

/// The visible parts of a reply: status, headers except the date, and body.
fn seen(reply: &Reply) -> (u16, Vec<(String, String)>, String) {
    let mut headers: Vec<(String, String)> = reply
        .headers
        .iter()
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    (reply.status, headers, reply.body.clone())
}

/// The commands that Redis receives, from `MONITOR`.
struct Monitor(Process);

impl Monitor {
    async fn start(redis: &RedisServer) -> Self {
        let monitor = Launch::new(tools::find("redis-cli"))
            .args(["-h", "127.0.0.1", "-p", &redis.port().to_string(), "monitor"])
            .patience(Duration::ZERO)
            .start();
        monitor.wait_for_line("OK", BOUND).await;
        Self(monitor)
    }

    /// The commands about a user, sorted, without those of scripts, which cost no round trip.
    async fn commands(&self, world: &World, name: &str) -> Vec<String> {
        let marker = format!("marker-{name}");
        let mut connection = world.redis().connect().await;
        redis::cmd("ECHO").arg(&marker).exec_async(&mut connection).await.unwrap();
        self.0.wait_for_line(&marker, BOUND).await;
        let pseudonym = format!("{{{}}}", world.keys().pseudonym(&name.parse().unwrap()));
        let output = self.0.stdout();
        let about =
            output.lines().filter(|line| line.contains(&pseudonym) && !line.contains(" lua]"));
        let mut commands: Vec<String> =
            about.map(|line| line.split('"').nth(1).unwrap().to_ascii_uppercase()).collect();
        commands.sort();
        commands
    }
}

#[tokio::test]
async fn every_refusal_of_verify_looks_the_same_and_costs_the_same() {
    let names = ["used", "never", "expired", "wrong", "blocked", "disabled", "digits"];
    let (public, people) = public(&names).await;
    let person = |name: &str| &people[names.iter().position(|known| *known == name).unwrap()];
    let mut record = person("disabled").record.clone();
    record.definition.enabled = false;
    public.world.publish(record, false).await;
    // The first request opens connections and reads the realm.
    public.set_time(START).await;

    let expired = public.mailed("expired").await;
    let now = START + 6 * 60_000;
    public.set_time(now).await;
    let used = public.mailed("used").await;
    assert_eq!(public.sidecar.verify("used", &used).await.status, 200);
    let now = UnixMillis::new(now);
    let wrong = |name: &str| person(name).wrong_code(now).expose_secret().to_owned();
    for _ in 0..5 {
        assert_eq!(public.sidecar.verify("blocked", &wrong("blocked")).await.status, 401);
    }

    let monitor = Monitor::start(public.world.redis()).await;
    let never = person("never").code_at(now, 0).expose_secret().to_owned();
    let expected = seen(&public.sidecar.verify("wrong", &wrong("wrong")).await);
    assert_eq!(
        (expected.0, expected.1.iter().any(|(name, _)| name == "retry-after")),
        (401, false)
    );
    let problem: Value = serde_json::from_str(&expected.2).unwrap();
    assert_eq!(problem["detail"], "Invalid OTP or expired.");
    let work = monitor.commands(&public.world, "wrong").await;
    assert_eq!(work, ["EVALSHA", "EXISTS", "EXISTS", "GET"]);
    for (name, code, outcome) in [
        ("unknown", "123456".to_owned(), "unknown-user"),
        ("disabled", person("disabled").code_at(now, 0).expose_secret().to_owned(), "unknown-user"),
        ("used", used, "used-code"),
        ("never", never, "used-code"),
        ("expired", expired, "invalid-code"),
        ("blocked", wrong("blocked"), "throttled"),
        ("digits", "12345678".to_owned(), "invalid-code"),
    ] {
        assert_eq!(seen(&public.sidecar.verify(name, &code).await), expected, "{name}");
        public.outcome("verify", outcome).await;
        assert_eq!(monitor.commands(&public.world, name).await, work, "{name}");
    }
    let line = public.sidecar.process().wait_for_line("unknown-user", BOUND).await;
    assert!(line.contains("username="), "the log says what happened: {line}");
}

#[tokio::test]
async fn generate_gives_every_name_the_same_answer_and_mails_to_users_only() {
    let names = ["alice", "disabled", "seedless"];
    let (public, people) = public(&names).await;
    let carol = public.world.person("carol", App).await;
    let mut disabled = people[1].record.clone();
    disabled.definition.enabled = false;
    public.world.publish(disabled, false).await;
    let mut seedless = people[2].record.clone();
    seedless.seed = None;
    public.world.publish(seedless, false).await;
    public.set_time(START + 60_000).await;

    let monitor = Monitor::start(public.world.redis()).await;
    let expected = seen(&public.sidecar.generate("alice").await);
    assert_eq!(expected.0, 200);
    let body: Value = serde_json::from_str(&expected.2).unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1, "no code: {body}");
    let text = public.mail.wait_for_message("alice@example.org", BOUND).await.text;
    public.outcome("generate", "delivered").await;
    let work = monitor.commands(&public.world, "alice").await;
    assert_eq!(work, ["EVALSHA", "EVALSHA", "EXISTS", "EXISTS", "GET"]);
    // The second script records the delivery after the answer; there is none for a name that is not
    // a user.
    let before_the_answer = &work[1..];
    for (name, outcome, work) in [
        ("unknown", "unknown-user", before_the_answer),
        ("disabled", "unknown-user", before_the_answer),
        ("seedless", "no-secret", &work[..]),
        ("carol", "no-delivery-method", &work[..]),
    ] {
        assert_eq!(seen(&public.sidecar.generate(name).await), expected, "{name}");
        public.outcome("generate", outcome).await;
        eventually(BOUND, format_args!("the work for {name}"), async || {
            let commands = monitor.commands(&public.world, name).await;
            if commands == work { Ok(()) } else { Err(format!("{commands:?}")) }
        })
        .await;
    }
    // The code is valid at least until the promised time.
    let code = text.lines().next().unwrap().rsplit(' ').next().unwrap();
    let promised = UnixMillis::new(START + 60_000 + 300_000);
    assert!(expected.2.contains(&rfc3339(promised)), "{}", expected.2);
    public.set_time(promised.millis()).await;
    assert_eq!(public.sidecar.verify("alice", code).await.status, 200);
    // A second request in the step in which the code was used gets the same answer.
    assert_eq!(public.sidecar.generate("alice").await.status, 200);
    let app = carol.code_at(promised, 0);
    assert_eq!(public.sidecar.verify("carol", app.expose_secret()).await.status, 200);
    assert_eq!(
        public.mail.messages().await.iter().filter(|mail| mail.to != ["alice@example.org"]).count(),
        0
    );
}

fn rfc3339(moment: UnixMillis) -> String {
    twofactor_tests::process::run(
        "date",
        &["-u", "-d", &format!("@{}", moment.seconds()), "+%Y-%m-%dT%H:%M:%SZ"],
    )
    .trim()
    .to_owned()
}

#[tokio::test]
async fn a_provider_that_refuses_shows_in_the_log_and_not_in_the_answer() {
    let (public, _) = public(&["alice"]).await;
    public.mail.fail(MailStage::Rcpt, "550 5.1.1 no such mailbox", None).await;
    let refused = seen(&public.sidecar.generate("alice").await);
    assert_eq!(refused.0, 200, "{}", refused.2);
    public.outcome("generate", "not-delivered").await;
    assert_eq!(seen(&public.sidecar.generate("unknown").await).0, 200);
}

#[tokio::test]
async fn an_answered_request_is_delivered_even_if_the_sidecar_is_stopped() {
    let names: Vec<String> = (0..20).map(|number| format!("user{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (public, _) = public(&names).await;
    public.set_time(START).await;
    let replies =
        futures_util::future::join_all(names.iter().map(|name| public.sidecar.generate(name)))
            .await;
    public.sidecar.process().signal(Signal::Term);
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert!(public.sidecar.process().wait_exit(Duration::from_secs(20)).await.success());
    assert_eq!(public.mail.messages().await.len(), names.len());
}

#[tokio::test]
async fn an_outage_gives_every_name_the_same_answer() {
    let (public, _) = public(&["alice"]).await;
    assert_eq!(public.sidecar.verify("alice", "123456").await.status, 401);
    public.world.redis().flush_all().await;
    let expected = seen(&public.sidecar.verify("alice", "123456").await);
    assert_eq!(expected.0, 503);
    assert_eq!(seen(&public.sidecar.verify("unknown", "123456").await), expected);
    let expected = seen(&public.sidecar.generate("alice").await);
    assert_eq!(expected.0, 503);
    assert_eq!(seen(&public.sidecar.generate("unknown").await), expected);
}

/// The size of Redis' append-only file.
async fn written(world: &World) -> u64 {
    let information: String = world.redis().ask(&["INFO", "persistence"]).await;
    let line = information.lines().find_map(|line| line.strip_prefix("aof_current_size:"));
    line.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn redis_flushes_a_write_before_each_answer_whether_the_name_is_a_users_or_not() {
    let builder = RedisServer::builder().append_only(AppendFsync::Always);
    let world = World::in_redis_of(builder).await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let user = world.person("user", Email).await;
    let mut disabled = record("disabled", Email);
    disabled.definition.enabled = false;
    let disabled = world.publish(disabled, true).await;
    let realm = RealmRecord { uniform_answers: true, ..with_mail(&mail) };
    world.fill_with(&realm, &[&user, &disabled]).await;
    let sidecar = Served::start(&world, "kms").await;
    // The sidecar learns the time of Redis.
    sidecar.verify("user", "000000").await;
    for round in 0..50 {
        for name in ["user", "disabled", "stranger", &format!("stranger{round}")] {
            let before = written(&world).await;
            assert_eq!(sidecar.verify(name, "000000").await.status, 401);
            assert!(written(&world).await > before, "verify of {name} in round {round}");
            let before = written(&world).await;
            assert_eq!(sidecar.generate(name).await.status, 200);
            assert!(written(&world).await > before, "generate of {name} in round {round}");
        }
    }
    // Nothing is kept of names that are no users.
    let keys: Vec<String> = world.redis().ask(&["KEYS", "*:otp"]).await;
    assert!(keys.len() <= 1, "{keys:?}");
    // The metrics tell apart only what answers do.
    let shown = metrics(&sidecar).await;
    for outcome in ["unknown-user", "invalid-code", "delivered", "throttled"] {
        assert!(!shown.contains(&format!("outcome=\"{outcome}\"")), "{outcome}: {shown}");
    }
    assert!(shown.contains("operation=\"verify\",outcome=\"answered\""), "{shown}");
}

/// Of two series of equal length, the share of pairs in which the first one is the shorter: one
/// half if nothing distinguishes them.
fn share_of_shorter(first: &[Duration], second: &[Duration]) -> f64 {
    let halves = first.iter().flat_map(|one| {
        second.iter().map(move |other| match one.cmp(other) {
            Ordering::Less => 2_u32,
            Ordering::Equal => 1,
            Ordering::Greater => 0,
        })
    });
    f64::from(halves.sum::<u32>()) / 2.0 / f64::from(PAIRS * PAIRS)
}

/// Number of requests for a user, and for a stranger.
const PAIRS: u32 = 500;

#[tokio::test]
async fn a_thousand_answers_over_a_slow_disk_do_not_tell_users_from_strangers() {
    let builder = RedisServer::builder()
        .append_only(AppendFsync::Always)
        .slow_flushes(Duration::from_millis(8));
    let world = World::in_redis_of(builder).await;
    let user = world.person("user", App).await;
    let realm = RealmRecord { uniform_answers: true, ..RealmRecord::default() };
    world.fill_with(&realm, &[&user]).await;
    let sidecar = Served::start(&world, "kms").await;
    for name in ["user", "stranger"] {
        assert_eq!(sidecar.verify(name, "000000").await.status, 401);
    }
    let began = written(&world).await;
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..PAIRS {
        // Each of the two comes first as often as the other.
        for turn in 0..2 {
            let series = usize::from((round + turn) % 2 == 1);
            let asked = Instant::now();
            let reply = sidecar.verify(["user", "stranger"][series], "000000").await;
            took[series].push(asked.elapsed());
            assert_eq!(reply.status, 401, "{}", reply.body);
        }
    }
    assert!(written(&world).await > began);
    let [users, strangers] = &took;
    let fastest = users.iter().chain(strangers).min().unwrap();
    assert!(*fastest > Duration::from_millis(8), "a flush does not take long: {fastest:?}");
    // By chance alone the share is within 0.41 and 0.59 in all but one of a million runs.
    let share = share_of_shorter(users, strangers);
    println!("an answer about the user is the faster one in {share:.3} of pairs");
    assert!((0.41..0.59).contains(&share), "{share}");
}

/// The counters of requests, without what a sidecar does by itself.
async fn counters(sidecar: &Served) -> BTreeMap<String, u64> {
    let shown = metrics(sidecar).await;
    let counters = shown.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let is_counter = name.contains("_total") || name.contains("_count");
        let is_of_requests = is_counter && !name.contains("operation=\"realm\"");
        Some((name.to_owned(), value.parse().ok()?)).filter(|_| is_of_requests)
    });
    counters.collect()
}

#[tokio::test]
async fn no_metric_tells_users_from_strangers() {
    let (public, _) = public(&["first", "user"]).await;
    // The first requests open connections and learn the time of Redis.
    public.set_time(START).await;
    let _ = public.mailed("first").await;
    public.sidecar.process().wait_for_line("outcome=\"delivered\"", BOUND).await;
    let mut seen = Vec::new();
    for (name, outcome) in [("user", "delivered"), ("stranger", "unknown-user")] {
        let before = counters(&public.sidecar).await;
        assert_eq!(public.sidecar.generate(name).await.status, 200);
        let line = format!("outcome=\"{outcome}\" username=\"{name}\"");
        public.sidecar.process().wait_for_line(&line, BOUND).await;
        assert_eq!(public.sidecar.verify(name, "000000").await.status, 401);
        let after = counters(&public.sidecar).await;
        let changed = after.into_iter().filter_map(|(name, value)| {
            let more = value - before.get(&name).copied().unwrap_or_default();
            (more > 0).then_some((name, more))
        });
        seen.push(changed.collect::<BTreeMap<_, _>>());
    }
    assert_eq!(seen[0], seen[1]);
    let delivery = "twofactor_deliveries_total{channel=\"any\",outcome=\"answered\"}";
    assert_eq!(seen[0][delivery], 1, "{seen:?}");
}
