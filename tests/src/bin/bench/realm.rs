//! Publishes a realm with many users to Redis, and prepares the requests and the scripts' arguments
//! that succeed, each for another user.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tempfile::TempDir;
use twofactor_core::audit::AuditPolicy;
use twofactor_core::code::Code;
use twofactor_core::key::{MasterKey, RealmKey};
use twofactor_core::limits::{Limits, MAXIMUM_DELIVERIES_PER_HOUR};
use twofactor_core::names::{Caller, Pseudonym, RealmId, RealmNames};
use twofactor_core::provider::{Endpoint, Providers, WebhookSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::Revision;
use twofactor_core::secret::SecretText;
use twofactor_core::seed::Seed;
use twofactor_core::totp::TotpParameters;
use twofactor_core::user::{DeliveryMethod, UserDefinition};
use twofactor_core::webhook::WebhookSecrets;
use twofactor_store::clock::Clock;
use twofactor_store::publisher::{DesiredUser, Publisher, UnlistedUsers};
use twofactor_store::redis::RedisStore;
use twofactor_store::redis::scripts::{self, ScriptCall, Source};
use twofactor_store::{Decisions, Publishing, Store};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::scratch;
use twofactor_tests::wait::eventually;

use crate::load::Asked;

const INSTALLATION: &str = "bench";
const CALLER: &str = "kms";
/// A time longer than the benchmark, because the script gets one time for all of its calls.
const TOLERANCE_MILLIS: u64 = 3_600_000;
/// A secret of the length that the documentation recommends.
const WEBHOOK_SECRET: &str = "whsec_bWFueSB1c2VycyBhc2sgZm9yIGEgY29kZSBhdCBvbmNl";
/// What `redis-benchmark` replaces by a random number of twelve digits in each call.
const RANDOM: &str = "__rand_int__";

pub(crate) struct Realm {
    key: RealmKey,
    id: RealmId,
    names: RealmNames,
    users: Vec<UserRecord>,
    checked_nodes: String,
}

/// A policy of a realm that sends codes to a webhook, to each user once an hour.
pub(crate) fn with_webhook(url: &str) -> RealmRecord {
    let receiver =
        Endpoint { url: SecretText::new(url.to_owned()), ca_certificates: None, proxy: None };
    let secrets = WebhookSecrets::parse(WEBHOOK_SECRET).expect("a secret");
    let webhook = Some(WebhookSettings { receiver, secrets });
    let providers = Providers { webhook, ..Providers::default() };
    let limits = Limits {
        generate_interval_seconds: 3600,
        deliveries_per_hour: MAXIMUM_DELIVERIES_PER_HOUR,
        ..Limits::default()
    };
    RealmRecord { providers, limits, ..RealmRecord::default() }
}

fn record(number: usize, delivery_method: DeliveryMethod) -> UserRecord {
    let username = username(number);
    UserRecord {
        definition: UserDefinition {
            username: username.parse().expect("a username"),
            enabled: true,
            delivery_method,
            email: Some(format!("{username}@example.org").try_into().expect("an address")),
            phone_number: None,
            totp: TotpParameters::default(),
            issuer: None,
            locale: None,
        },
        seed: Some(Seed::generate(&mut UnwrapErr(SysRng))),
        provenance: None,
        source: None,
    }
}

pub(crate) fn username(number: usize) -> String {
    format!("user-{number}")
}

impl Realm {
    /// A realm with a policy, and with `users` users who get codes by `method`.
    pub(crate) async fn publish(
        redis: &RedisServer,
        policy: &RealmRecord,
        users: usize,
        method: DeliveryMethod,
    ) -> Self {
        let random = &mut UnwrapErr(SysRng);
        let id: RealmId = "bench".parse().expect("a realm id");
        let names = RealmNames::new(&INSTALLATION.parse().expect("an installation"), &id);
        let key = MasterKey::generate(random).realm_key(&id, 1);
        let users: Vec<UserRecord> = (0..users).map(|number| record(number, method)).collect();
        let store = Store::Redis(
            RedisStore::new(&redis.url(), names.clone(), Clock::System).expect("a Redis URL"),
        );
        let publisher = Publisher::new(store, key.keys(&id));
        let desired: Vec<DesiredUser> = users
            .iter()
            .map(|record| DesiredUser {
                record: record.clone(),
                fresh: true,
                reset: None,
                disabled: false,
            })
            .collect();
        publisher
            .fill(policy, &desired, UnlistedUsers::Remove, Clock::System.now(), random)
            .await
            .expect("to publish");
        let inspection = publisher.store().inspect().await.expect("the node");
        let checked_nodes = format!("{}=0", inspection.identity());
        Self { key, id, names, users, checked_nodes }
    }

    /// A store with a connection of its own, as a sidecar has it.
    pub(crate) fn decisions(&self, redis: &RedisServer) -> Decisions {
        let store = RedisStore::new(&redis.url(), self.names.clone(), Clock::System);
        Decisions::unobserved(Store::Redis(store.expect("a Redis URL")))
    }

    /// Turns on uniform answers.
    pub(crate) async fn answer_uniformly(&self, redis: &RedisServer) {
        let names = self.names.clone();
        let store =
            Store::Redis(RedisStore::new(&redis.url(), names, Clock::System).expect("a Redis URL"));
        let record = RealmRecord { uniform_answers: true, ..RealmRecord::default() };
        let revision = Revision(Clock::System.now().millis() + 1);
        let sealed = record.seal(&self.key.keys(&self.id), revision, &mut UnwrapErr(SysRng));
        Publishing::new(store).publish_realm(&sealed).await.expect("to publish");
    }

    /// The files that a sidecar is given.
    pub(crate) fn credentials(&self, redis: &RedisServer) -> TempDir {
        let folder = scratch::folder("credentials");
        for (name, content) in [
            ("redis-url", redis.url()),
            ("realm-key", self.key.to_text().expose_secret().to_owned()),
            ("installation", INSTALLATION.to_owned()),
            ("realm", self.id.to_string()),
            ("caller", CALLER.to_owned()),
        ] {
            fs::write(folder.path().join(name), content).expect("to write credentials");
        }
        folder
    }

    /// A verify of the current code of each of these users, which is accepted.
    pub(crate) fn verifies(&self, users: Range<usize>) -> Vec<Asked> {
        users.map(|number| verify(number, &self.current_code(number), 200)).collect()
    }

    /// The code of a user's current step, which stays within the window for another step.
    pub(crate) fn current_code(&self, number: usize) -> Code {
        let record = &self.users[number];
        let step = record.definition.totp.step_at(Clock::System.now());
        record.totp().expect("a seed").code_of(step)
    }

    /// A request of a code for each user, which is issued and sent.
    pub(crate) fn generates(&self) -> Vec<Asked> {
        let body = |number| format!("{{\"username\":\"{}\"}}", username(number));
        let asked = |number| Asked {
            method: "POST",
            path: "/auth/generate",
            body: body(number),
            status: 200,
        };
        (0..self.users.len()).map(asked).collect()
    }

    /// The arguments of `EVALSHA` to accept a code of an authenticator of a random user of
    /// [`Realm::prepare`], all with the same code.
    pub(crate) fn verify_arguments(&self) -> Vec<String> {
        let record = &self.users[0];
        let step = record.definition.totp.step_at(Clock::System.now());
        let code = record.totp().expect("a seed").code_of(step);
        let [state, otp, history] = self.random_keys();
        evalsha(&scripts::Verify {
            state_key: &state,
            otp_key: &otp,
            history_key: &history,
            checked_nodes: &self.checked_nodes,
            revision: "1".to_owned(),
            asked_at: Clock::System.now().millis(),
            tolerance: TOLERANCE_MILLIS,
            factor: "authenticator",
            caller: CALLER,
            tag: self.tag(&code),
            matches: step.number().to_string(),
            period: 30,
            skew: 1,
            most_failures: 20,
            retention: millis(AuditPolicy::default().retention()),
            most_entries: AuditPolicy::default().entries.into(),
            details: " app\n\n".to_owned(),
        })
    }

    /// The arguments of `EVALSHA` to issue a code for a random user of [`Realm::prepare`], under
    /// the limits of a policy.
    pub(crate) fn issue_arguments(&self, policy: &RealmRecord) -> Vec<String> {
        let record = &self.users[0];
        let totp = record.definition.totp;
        let step = totp.step_at(Clock::System.now());
        let code = record.totp().expect("a seed").code_of(step);
        let [state, otp, history] = self.random_keys();
        evalsha(&scripts::Issue {
            state_key: &state,
            otp_key: &otp,
            history_key: &history,
            checked_nodes: &self.checked_nodes,
            revision: "1".to_owned(),
            asked_at: Clock::System.now().millis(),
            tolerance: TOLERANCE_MILLIS,
            caller: CALLER,
            tag: self.tag(&code),
            step: step.number(),
            period: totp.period(),
            lifetime: millis(policy.otp_lifetime.duration()),
            interval: millis(policy.limits.generate_interval()),
            most_per_hour: policy.limits.generates_per_hour.into(),
            most_own: policy.limits.generates_per_hour.into(),
            retention: millis(AuditPolicy::default().retention()),
            most_entries: AuditPolicy::default().entries.into(),
            details: " webhook\n\n".to_owned(),
        })
    }

    /// Waits for the beginning of a time step, because a step's code is issued within it only.
    pub(crate) async fn wait_for_step(&self) {
        let period = 1000 * u64::from(self.users[0].definition.totp.period());
        let has_begun = async || Clock::System.now().millis() % period < 1000;
        eventually(Duration::from_millis(2 * period), "a new step", has_begun).await;
    }

    /// Loads the scripts, and makes the states of `count` users for them.
    pub(crate) async fn prepare(&self, redis: &RedisServer, count: usize) {
        let mut connection = redis.connect().await;
        for code in [scripts::Verify::text(), scripts::Issue::text()] {
            let _: String = redis.ask(&["SCRIPT", "LOAD", &code]).await;
        }
        let [state, ..] = self.random_keys();
        for first in (0..count).step_by(10_000) {
            let mut pipeline = redis::pipe();
            for number in first..count.min(first + 10_000) {
                let key = state.replace(RANDOM, &format!("{number:012}"));
                pipeline.cmd("HSET").arg(key).arg(&["revision", "1", "since", "0", "until", "0"]);
            }
            let _: Vec<u8> = pipeline.query_async(&mut connection).await.expect("to write states");
        }
    }

    /// The keys of a random user. `redis-benchmark` chooses one for each key, so an entry of a
    /// history may be that of another user, which costs the same.
    fn random_keys(&self) -> [String; 3] {
        let user = self.names.user(&Pseudonym::from_bytes([0; 16]));
        [user.state, user.otp, user.history]
            .map(|key| key.replace(&"0".repeat(32), &format!("{}{RANDOM}", "0".repeat(20))))
    }

    fn tag(&self, code: &Code) -> String {
        let caller: Caller = CALLER.parse().expect("a caller");
        let keys = self.key.keys(&self.id);
        let pseudonym = keys.pseudonym(&self.users[0].definition.username);
        keys.code_tag(&pseudonym, &caller, code, None).to_string()
    }
}

/// The arguments of `EVALSHA` for a call.
fn evalsha<C: ScriptCall>(call: &C) -> Vec<String> {
    let arguments = call
        .arguments()
        .into_iter()
        .map(|argument| String::from_utf8(argument).expect("an argument that is text"));
    [C::script(Source::Own).hash().to_owned(), C::KEYS.len().to_string()]
        .into_iter()
        .chain(call.keys().into_iter().map(str::to_owned))
        .chain(arguments)
        .collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("less than an age")
}

/// A verify of a user's code, and the expected status.
pub(crate) fn verify(number: usize, code: &Code, status: u16) -> Asked {
    let code = code.expose_secret();
    let body = format!("{{\"username\":\"{}\",\"otp_code\":\"{code}\"}}", username(number));
    Asked { method: "POST", path: "/auth/verify", body, status }
}
