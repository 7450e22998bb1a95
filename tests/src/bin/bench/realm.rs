//! Publishes two users to Redis, one with an authenticator app and one who gets codes by mail, and
//! prepares requests of a sidecar and arguments of a script for them.

use std::fs;
use std::time::Duration;

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tempfile::TempDir;
use twofactor_core::audit::AuditPolicy;
use twofactor_core::code::Code;
use twofactor_core::decision::THROTTLE;
use twofactor_core::key::{MasterKey, RealmKey};
use twofactor_core::limits::{Limits, MAXIMUM_CODES_IN_FLIGHT};
use twofactor_core::names::{Caller, Pseudonym, RealmId, RealmNames};
use twofactor_core::provider::{Providers, SmtpSecurity, SmtpSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::Revision;
use twofactor_core::seed::Seed;
use twofactor_core::totp::{Algorithm, TotpParameters};
use twofactor_core::user::{DeliveryMethod, UserDefinition};
use twofactor_store::clock::Clock;
use twofactor_store::publisher::{DesiredUser, Publisher, UnlistedUsers};
use twofactor_store::redis::RedisStore;
use twofactor_store::redis::scripts::{self, ScriptCall};
use twofactor_store::{Publishing, Store};
use twofactor_tests::http::ApiClient;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::scratch;

use crate::load::Asked;

const INSTALLATION: &str = "bench";
const CALLER: &str = "kms";
/// A time longer than the benchmark, because the script gets one time for all of its calls.
const TOLERANCE_MILLIS: u64 = 3_600_000;

pub(crate) struct Realm {
    key: RealmKey,
    id: RealmId,
    names: RealmNames,
    /// Carol, who has an app.
    app: Person,
    /// Alice, who gets mail.
    mail: Person,
    checked_nodes: String,
}

/// A policy of a realm that sends mail, to each user once an hour.
pub(crate) fn with_mail(port: u16) -> RealmRecord {
    let smtp = SmtpSettings {
        server: "127.0.0.1".to_owned(),
        port,
        security: SmtpSecurity::Plain,
        username: None,
        password: None,
        from: "otp@example.org".parse().expect("an address"),
        ehlo_name: None,
        ca_certificates: None,
    };
    let providers = Providers { smtp: Some(smtp), ..Providers::default() };
    let limits = Limits { generate_interval_seconds: 3600, ..Limits::default() };
    RealmRecord { providers, limits, ..RealmRecord::default() }
}

struct Person {
    record: UserRecord,
    pseudonym: Pseudonym,
    revision: u64,
}

fn record(username: &str, delivery_method: DeliveryMethod, totp: TotpParameters) -> UserRecord {
    UserRecord {
        definition: UserDefinition {
            username: username.parse().expect("a username"),
            enabled: true,
            delivery_method,
            email: Some(format!("{username}@example.org").try_into().expect("an address")),
            phone_number: None,
            totp,
            issuer: None,
        },
        seed: Some(Seed::generate(&mut UnwrapErr(SysRng))),
        provenance: None,
    }
}

impl Realm {
    /// A realm with the contract's policy, which sends nothing.
    pub(crate) async fn publish(redis: &RedisServer) -> Self {
        Self::publish_with(redis, &RealmRecord::default()).await
    }

    /// A realm with a policy.
    pub(crate) async fn publish_with(redis: &RedisServer, policy: &RealmRecord) -> Self {
        let random = &mut UnwrapErr(SysRng);
        let id: RealmId = "bench".parse().expect("a realm id");
        let names = RealmNames::new(&INSTALLATION.parse().expect("an installation"), &id);
        let key = MasterKey::generate(random).realm_key(&id, 1);
        // The longest possible steps, because the script gets one step for all of its calls.
        let longest = TotpParameters::new(Algorithm::Sha1, 6, 120, 1).expect("parameters");
        let records = [
            record("carol", DeliveryMethod::App, TotpParameters::default()),
            record("alice", DeliveryMethod::Email, longest),
        ];
        let store = Store::Redis(
            RedisStore::new(&redis.url(), names.clone(), Clock::System).expect("a Redis URL"),
        );
        let publisher = Publisher::new(store, key.keys(&id));
        let users = records.clone().map(|record| DesiredUser { record, fresh: true, reset: None });
        publisher
            .fill(policy, &users, UnlistedUsers::Remove, Clock::System.now(), random)
            .await
            .expect("to publish");
        let pseudonyms = records
            .each_ref()
            .map(|record| publisher.keys().pseudonym(&record.definition.username));
        let current = publisher.store().published(&pseudonyms).await.expect("what was published");
        let mut people = records.into_iter().zip(pseudonyms).zip(current).map(
            |((record, pseudonym), published)| {
                let revision = published.revision.expect("a revision").0;
                Person { record, pseudonym, revision }
            },
        );
        let (app, mail) = people.next().zip(people.next()).expect("two people");
        let inspection = publisher.store().inspect().await.expect("the node");
        Self { checked_nodes: format!("{}=0", inspection.identity()), key, id, names, app, mail }
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

    /// Uses the code of the current step, which stays within the window for another step.
    pub(crate) async fn use_up_the_current_code(&self, api: &ApiClient) -> Code {
        let totp = self.app.record.totp().expect("a seed");
        let code = totp.code_of(self.app.record.definition.totp.step_at(Clock::System.now()));
        let reply = api.verify("carol", code.expose_secret()).await;
        assert!([200, 400, 401].contains(&reply.status), "{}", reply.body);
        code
    }

    /// The arguments of `EVALSHA` for the same decision about a code of Carol's.
    pub(crate) fn verify_arguments(&self, code: &Code) -> Vec<String> {
        let Person { record, .. } = &self.app;
        let step = record.definition.totp.step_at(Clock::System.now());
        let steps = record.totp().expect("a seed").matching_steps(code, step, 2);
        let steps: Vec<String> = steps.iter().map(|step| step.number().to_string()).collect();
        let user = self.names.user(&self.app.pseudonym);
        evalsha(&scripts::Verify {
            state_key: &user.state,
            otp_key: &user.otp,
            log_key: &user.log,
            checked_nodes: &self.checked_nodes,
            revision: self.app.revision.to_string(),
            asked_at: Clock::System.now().millis(),
            tolerance: TOLERANCE_MILLIS,
            factor: "authenticator",
            caller: CALLER,
            tag: self.tag(&self.app, code),
            matches: steps.join(","),
            period: 30,
            skew: 1,
            threshold: THROTTLE.threshold,
            first_block: millis(THROTTLE.first_block),
            longest_block: millis(THROTTLE.longest_block),
            disable_after: THROTTLE.disable_after,
            retention: millis(AuditPolicy::default().retention()),
            channel: "app",
            address: "",
            user_agent: "",
        })
    }

    /// The arguments of `EVALSHA` for a code for Alice, under the limits of a policy.
    pub(crate) fn issue_arguments(&self, policy: &RealmRecord) -> Vec<String> {
        let Person { record, .. } = &self.mail;
        let totp = record.definition.totp;
        let step = totp.step_at(Clock::System.now());
        let code = record.totp().expect("a seed").code_of(step);
        let user = self.names.user(&self.mail.pseudonym);
        evalsha(&scripts::Issue {
            state_key: &user.state,
            otp_key: &user.otp,
            log_key: &user.log,
            checked_nodes: &self.checked_nodes,
            revision: self.mail.revision.to_string(),
            asked_at: Clock::System.now().millis(),
            tolerance: TOLERANCE_MILLIS,
            caller: CALLER,
            tag: self.tag(&self.mail, &code),
            step: step.number(),
            period: totp.period(),
            lifetime: millis(policy.otp_lifetime.duration()),
            interval: millis(policy.limits.generate_interval()),
            most_per_hour: policy.limits.generates_per_hour.into(),
            most_in_flight: MAXIMUM_CODES_IN_FLIGHT,
            retention: millis(AuditPolicy::default().retention()),
            channel: "email",
            address: "",
            user_agent: "",
        })
    }

    fn tag(&self, person: &Person, code: &Code) -> String {
        let caller: Caller = CALLER.parse().expect("a caller");
        self.key.keys(&self.id).code_tag(&person.pseudonym, &caller, code, None).to_string()
    }
}

/// The arguments of `EVALSHA` for a call.
fn evalsha<C: ScriptCall>(call: &C) -> Vec<String> {
    let arguments = call
        .arguments()
        .into_iter()
        .map(|argument| String::from_utf8(argument).expect("an argument that is text"));
    [C::script().get_hash().to_owned(), C::KEYS.len().to_string()]
        .into_iter()
        .chain(call.keys().into_iter().map(str::to_owned))
        .chain(arguments)
        .collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("less than an age")
}

/// A verify of a used code.
pub(crate) fn used_up(code: &Code) -> Asked {
    let body = format!("{{\"username\":\"carol\",\"otp_code\":\"{}\"}}", code.expose_secret());
    Asked { method: "POST", path: "/auth/verify", body, status: 400 }
}

/// A request of a code for Alice, who has just got one.
pub(crate) fn too_soon() -> Asked {
    let body = "{\"username\":\"alice\"}".to_owned();
    Asked { method: "POST", path: "/auth/generate", body, status: 429 }
}
