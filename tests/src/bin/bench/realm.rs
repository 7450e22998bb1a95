//! One published user with an authenticator app. Enters: a Redis. Leaves: what a sidecar and a script need.

use std::fs;

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use redis::Script;
use tempfile::TempDir;
use twofactor_core::audit::AuditPolicy;
use twofactor_core::code::Code;
use twofactor_core::decision::THROTTLE;
use twofactor_core::key::{MasterKey, RealmKey};
use twofactor_core::names::{Caller, RealmId, RealmNames};
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::Revision;
use twofactor_core::seed::Seed;
use twofactor_core::totp::TotpParameters;
use twofactor_core::user::{DeliveryMethod, UserDefinition};
use twofactor_store::Store;
use twofactor_store::clock::Clock;
use twofactor_store::publisher::{Desired, Others, Publisher};
use twofactor_store::redis::{RedisStore, verify_script};
use twofactor_tests::http::ApiClient;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::scratch;

use crate::load::Asked;

const INSTALLATION: &str = "bench";
const CALLER: &str = "kms";
/// Longer than the benchmark: the script is given one moment for all of its calls.
const TOLERANCE_MILLIS: u64 = 3_600_000;

pub(crate) struct Realm {
    key: RealmKey,
    id: RealmId,
    names: RealmNames,
    record: UserRecord,
    revision: u64,
    guards: String,
}

impl Realm {
    pub(crate) async fn publish(redis: &RedisServer) -> Self {
        let random = &mut UnwrapErr(SysRng);
        let id: RealmId = "bench".parse().expect("a realm id");
        let names = RealmNames::new(&INSTALLATION.parse().expect("an installation"), &id);
        let key = MasterKey::generate(random).realm_key(&id, 1);
        let record = UserRecord {
            definition: UserDefinition {
                username: "carol".parse().expect("a username"),
                enabled: true,
                delivery_method: DeliveryMethod::App,
                email: None,
                phone_number: None,
                totp: TotpParameters::default(),
                issuer: None,
            },
            seed: Some(Seed::generate(random)),
            provenance: None,
        };
        let store =
            Store::Redis(RedisStore::new(&redis.url(), names.clone(), Clock::System).expect("a Redis URL"));
        let publisher = Publisher::new(store, key.keys(&id));
        let user = Desired { record: record.clone(), fresh: true, reset: None };
        publisher
            .fill(&RealmRecord::default(), &[user], Others::Remove, Clock::System.now(), random)
            .await
            .expect("to publish");
        let pseudonym = publisher.keys().pseudonym(&record.definition.username);
        let current = publisher.store().published(&[pseudonym]).await.expect("what was published");
        let revision = current[0].revision.expect("a revision").0;
        let inspection = publisher.store().inspect().await.expect("the node");
        Self { guards: format!("{}=0", inspection.identity()), key, id, names, record, revision }
    }

    /// Nobody is to learn from answers who is a user.
    pub(crate) async fn answer_uniformly(&self, redis: &RedisServer) {
        let names = self.names.clone();
        let store = Store::Redis(RedisStore::new(&redis.url(), names, Clock::System).expect("a Redis URL"));
        let record = RealmRecord { uniform_answers: true, ..RealmRecord::default() };
        let revision = Revision(Clock::System.now().millis() + 1);
        let sealed = record.seal(&self.key.keys(&self.id), revision, &mut UnwrapErr(SysRng));
        store.publish_realm(&sealed).await.expect("to publish");
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

    /// Makes sure that the code of the current step is used up; it stays a code of the window for a step more.
    pub(crate) async fn use_up_the_current_code(&self, api: &ApiClient) -> Code {
        let totp = self.record.totp().expect("a seed");
        let code = totp.code_of(self.record.definition.totp.step_at(Clock::System.now()));
        let reply = api.verify("carol", code.expose_secret()).await;
        assert!([200, 400, 401].contains(&reply.status), "{}", reply.body);
        code
    }

    /// The arguments of `EVALSHA` for the same decision.
    pub(crate) fn script_arguments(&self, code: &Code) -> Vec<String> {
        let keys = self.key.keys(&self.id);
        let pseudonym = keys.pseudonym(&self.record.definition.username);
        let caller: Caller = CALLER.parse().expect("a caller");
        let user = self.names.user(&pseudonym);
        let now = Clock::System.now();
        let step = self.record.definition.totp.step_at(now);
        let steps = self.record.totp().expect("a seed").matching_steps(code, step, 2);
        let steps: Vec<String> = steps.iter().map(|step| step.number().to_string()).collect();
        [
            Script::new(&verify_script()).get_hash().to_owned(),
            "3".to_owned(),
            user.state,
            user.otp,
            user.log,
            self.guards.clone(),
            self.revision.to_string(),
            now.millis().to_string(),
            TOLERANCE_MILLIS.to_string(),
            "authenticator".to_owned(),
            CALLER.to_owned(),
            keys.code_tag(&pseudonym, &caller, code, None).to_string(),
            steps.join(","),
            "30".to_owned(),
            "1".to_owned(),
            THROTTLE.threshold.to_string(),
            THROTTLE.first_block.as_millis().to_string(),
            THROTTLE.longest_block.as_millis().to_string(),
            THROTTLE.disable_after.to_string(),
            AuditPolicy::default().retention().as_millis().to_string(),
            "app".to_owned(),
            String::new(),
            String::new(),
        ]
        .into()
    }
}

/// A verify of a code that is used up.
pub(crate) fn used_up(code: &Code) -> Asked {
    let body = format!("{{\"username\":\"carol\",\"otp_code\":\"{}\"}}", code.expose_secret());
    Asked { method: "POST", path: "/auth/verify", body, status: 400 }
}
