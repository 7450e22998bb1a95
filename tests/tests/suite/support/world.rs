//! Prepares a realm in any kind of store with its publisher, users to publish, and a clock that the
//! test moves.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tempfile::TempDir;
use twofactor_core::audit::{AuditContext, AuditPolicy};
use twofactor_core::code::Code;
use twofactor_core::decision::{Factor, Issuance, Issue, Verdict, Verification};
use twofactor_core::key::{MasterKey, RealmKey, RealmKeys};
use twofactor_core::limits::Limits;
use twofactor_core::names::{Caller, Installation, Pseudonym, RealmId, RealmNames};
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::Revision;
use twofactor_core::seed::Seed;
use twofactor_core::time::{Step, UnixMillis};
use twofactor_core::totp::{Totp, TotpParameters};
use twofactor_core::user::{DeliveryMethod, UserDefinition};
use twofactor_store::acl::{self, AclUser, Separation};
use twofactor_store::clock::Clock;
use twofactor_store::memory::MemoryStore;
use twofactor_store::publisher::{DesiredUser, PublishOutcome, Publisher, UnlistedUsers};
use twofactor_store::redis::RedisStore;
use twofactor_store::{Decisions, Store, StoreError};
use twofactor_tests::redis::cluster::RedisCluster;
use twofactor_tests::redis::sentinel::RedisSentinels;
use twofactor_tests::redis::{RedisBuilder, RedisServer};
use twofactor_tests::scratch;

/// A moment in 2026 that is the start of a 30-second step, in milliseconds.
pub(crate) const START: u64 = 1_798_000_020_000;
/// Milliseconds of a step.
pub(crate) const STEP: u64 = 30_000;

/// A realm in a store, with a clock that the test moves.
pub(crate) struct World {
    pub(crate) store: Decisions,
    data: Store,
    pub(crate) publisher: Publisher,
    pub(crate) redis: Option<RedisServer>,
    pub(crate) cluster: Option<RedisCluster>,
    pub(crate) sentinels: Option<RedisSentinels>,
    clock: Clock,
    realm_key: RealmKey,
}

/// A published user.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) record: UserRecord,
    pub(crate) pseudonym: Pseudonym,
    pub(crate) revision: Revision,
}

pub(crate) fn realm_id() -> RealmId {
    "realm-under-test".parse().unwrap()
}

pub(crate) fn installation() -> Installation {
    "installation-under-test".parse().unwrap()
}

pub(crate) fn caller(name: &str) -> Caller {
    name.parse().unwrap()
}

pub(crate) fn random() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

pub(crate) fn record(username: &str, method: DeliveryMethod) -> UserRecord {
    UserRecord {
        definition: UserDefinition {
            username: username.parse().unwrap(),
            enabled: true,
            delivery_method: method,
            email: Some(format!("{username}@example.org").try_into().unwrap()),
            phone_number: None,
            totp: TotpParameters::default(),
            issuer: None,
            locale: None,
        },
        seed: Some(Seed::generate(&mut random())),
        provenance: None,
        source: None,
    }
}

impl World {
    /// A realm in memory, complete and without users.
    pub(crate) async fn in_memory() -> Self {
        let clock = Clock::manual(UnixMillis::new(START));
        Self::new(Store::Memory(MemoryStore::new(clock.clone())), None, clock).await
    }

    /// A realm in a real Redis whose clock stands still until it is moved.
    pub(crate) async fn in_redis() -> Self {
        Self::in_redis_of(RedisServer::builder()).await
    }

    /// As [`World::in_redis`], with options of the server.
    pub(crate) async fn in_redis_of(builder: RedisBuilder) -> Self {
        let redis = builder.with_clock_at(START).start().await;
        let clock = Clock::manual(UnixMillis::new(START));
        let store = RedisStore::new(&redis.url(), names(), clock.clone()).unwrap();
        Self::new(Store::Redis(store), Some(redis), clock).await
    }

    /// A realm in a real Redis that is found through a Sentinel, and whose clock stands still until
    /// it is moved.
    pub(crate) async fn behind_a_sentinel() -> Self {
        let redis = RedisServer::builder().with_clock_at(START).start().await;
        // A jump of the clock must not look like silence.
        let sentinels = RedisSentinels::start(&redis, 1, Duration::from_hours(24)).await;
        let clock = Clock::manual(UnixMillis::new(START));
        let store = RedisStore::new(&sentinels.url(), names(), clock.clone()).unwrap();
        let world = Self::new(Store::Redis(store), Some(redis), clock).await;
        Self { sentinels: Some(sentinels), ..world }
    }

    /// A realm in a real Redis Cluster of three masters, whose clocks stand still until they are
    /// moved.
    pub(crate) async fn in_a_cluster() -> Self {
        let cluster = RedisCluster::builder().with_clock_at(START).start().await;
        let clock = Clock::manual(UnixMillis::new(START));
        Self::on_cluster(cluster, clock).await
    }

    /// A realm in a real Redis Cluster, which runs with the time of `clock`.
    pub(crate) async fn on_cluster(cluster: RedisCluster, clock: Clock) -> Self {
        let store = RedisStore::new(&cluster.url(), names(), clock.clone()).unwrap();
        let world = Self::new(Store::Redis(store), None, clock).await;
        Self { cluster: Some(cluster), ..world }
    }

    /// As [`World::in_a_cluster`], with the store of a service that has its own login.
    pub(crate) async fn in_a_cluster_as_a_service() -> Self {
        let world = Self::in_a_cluster().await;
        let store = world.service_store(names()).await;
        Self { store: Decisions::unobserved(Store::Redis(store)), ..world }
    }

    /// As [`World::in_redis`], with the store of a service that has its own login; only the
    /// publisher may do everything.
    pub(crate) async fn in_redis_as_a_service() -> Self {
        let world = Self::in_redis().await;
        let store = world.service_store(names()).await;
        Self { store: Decisions::unobserved(Store::Redis(store)), ..world }
    }

    /// The store of a service that has a login for a realm.
    pub(crate) async fn service_store(&self, realm: RealmNames) -> RedisStore {
        let url = self.service_url(realm).await;
        let store = RedisStore::new(&url, names(), self.clock.clone()).unwrap();
        store.with_scripts_of_the_publisher()
    }

    /// Creates a login for a realm, and returns the URL of Redis with it.
    pub(crate) async fn service_url(&self, realm: RealmNames) -> String {
        self.service_url_in(realm, Separation::ReadAndWrite).await
    }

    /// As [`World::service_url`], in a Redis that separates keys so far.
    pub(crate) async fn service_url_in(&self, realm: RealmNames, separation: Separation) -> String {
        let login = MasterKey::generate(&mut random()).login(&realm_id(), 1, "a-namespace");
        let name = realm.login(&login.tag);
        let user = AclUser { name: name.clone(), password_hash: login.password_hash(), realm };
        let store = self.publisher.store().redis().expect("a world in Redis");
        store.acl_set(&user, separation).await.unwrap();
        acl::with_login(&self.url(), &name, &login.password).unwrap().expose_secret().to_owned()
    }

    /// A realm in a real Redis that runs with the real time.
    pub(crate) async fn in_redis_with_real_time(redis: RedisServer) -> Self {
        let store = RedisStore::new(&redis.url(), names(), Clock::System).unwrap();
        Self::new(Store::Redis(store), Some(redis), Clock::System).await
    }

    /// A realm in any store.
    pub(crate) async fn around(store: Store, clock: Clock) -> Self {
        Self::new(store, None, clock).await
    }

    /// The realm of `other` in another store, in which nothing is published yet.
    pub(crate) fn of(other: &Self, store: Store) -> Self {
        let realm_key = RealmKey::from_text(other.realm_key.to_text().expose_secret()).unwrap();
        let publisher = Publisher::new(store.clone(), realm_key.keys(&realm_id()));
        let clock = other.clock.clone();
        let (data, store) = (store.clone(), Decisions::unobserved(store));
        Self {
            store,
            data,
            publisher,
            redis: None,
            cluster: None,
            sentinels: None,
            clock,
            realm_key,
        }
    }

    async fn new(store: Store, redis: Option<RedisServer>, clock: Clock) -> Self {
        let realm_key = MasterKey::generate(&mut random()).realm_key(&realm_id(), 1);
        let publisher = Publisher::new(store.clone(), realm_key.keys(&realm_id()));
        let (data, store) = (store.clone(), Decisions::unobserved(store));
        let world = Self {
            store,
            data,
            publisher,
            redis,
            cluster: None,
            sentinels: None,
            clock,
            realm_key,
        };
        world.fill(&[]).await;
        world
    }

    pub(crate) fn keys(&self) -> Arc<RealmKeys> {
        self.publisher.keys()
    }

    pub(crate) fn redis(&self) -> &RedisServer {
        self.redis.as_ref().expect("a world in Redis")
    }

    /// The URL of the store.
    pub(crate) fn url(&self) -> String {
        match (&self.cluster, &self.sentinels) {
            (Some(cluster), _) => cluster.url(),
            (None, Some(sentinels)) => sentinels.url(),
            (None, None) => self.redis().url(),
        }
    }

    /// Removes everything from the store.
    pub(crate) async fn empty(&self) {
        match (&self.data, &self.cluster) {
            (Store::Memory(store), _) => store.clear(),
            (Store::Redis(_), Some(cluster)) => cluster.flush_all().await,
            (Store::Redis(_), None) => self.redis().flush_all().await,
        }
    }

    /// Moves the clocks of the store and of the callers.
    pub(crate) async fn set_time(&self, millis: u64) {
        if let Some(cluster) = &self.cluster {
            cluster.set_unix_millis(millis).await;
        }
        if let Some(redis) = &self.redis {
            redis.clock().set_unix_millis(millis).await;
        }
        self.clock.set(UnixMillis::new(millis));
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Publishes a user; `fresh` means that the seed was just generated.
    pub(crate) async fn publish(&self, record: UserRecord, fresh: bool) -> Person {
        let desired = DesiredUser { record: record.clone(), fresh, reset: None, disabled: false };
        let outcomes = self.publisher.publish(&[desired], self.now(), &mut random()).await.unwrap();
        assert_ne!(outcomes, [PublishOutcome::Conflict]);
        let pseudonym = self.keys().pseudonym(&record.definition.username);
        let revision =
            self.publisher.store().published(&[pseudonym]).await.unwrap()[0].revision.unwrap();
        Person { record, pseudonym, revision }
    }

    /// Publishes a new user with a new seed.
    pub(crate) async fn person(&self, username: &str, method: DeliveryMethod) -> Person {
        self.publish(record(username, method), true).await
    }

    /// Publishes the whole realm, as after a loss.
    pub(crate) async fn fill(&self, people: &[&Person]) {
        self.fill_with(&RealmRecord::default(), people).await;
    }

    /// Publishes the whole realm with a policy.
    pub(crate) async fn fill_with(&self, realm: &RealmRecord, people: &[&Person]) {
        let users: Vec<DesiredUser> = people
            .iter()
            .map(|person| DesiredUser {
                record: person.record.clone(),
                fresh: false,
                reset: None,
                disabled: false,
            })
            .collect();
        self.publisher
            .fill(realm, &users, UnlistedUsers::Remove, self.now(), &mut random())
            .await
            .unwrap();
    }

    /// The user with the published revision.
    pub(crate) async fn current(&self, person: &Person) -> Person {
        let published = self.publisher.store().published(&[person.pseudonym]).await.unwrap();
        Person { revision: published[0].revision.unwrap(), ..person.clone() }
    }

    /// Requests the code of the current step.
    pub(crate) async fn issue(
        &self,
        person: &Person,
        from: &str,
        lifetime: Duration,
    ) -> Result<Issue, StoreError> {
        let step = person.step(self.now());
        self.store.issue(&person.pseudonym, &self.issuance(person, from, step, lifetime)).await
    }

    pub(crate) fn issuance(
        &self,
        person: &Person,
        from: &str,
        step: Step,
        lifetime: Duration,
    ) -> Issuance {
        let caller = caller(from);
        Issuance {
            revision: person.revision,
            asked_at: self.now(),
            step,
            tag: self.keys().code_tag(&person.pseudonym, &caller, &person.code(step), None),
            caller,
            period: person.record.definition.totp.period(),
            lifetime,
            // The tests of limits set their own.
            limits: Limits::NONE,
            own_per_hour: 0,
            audit: audit_context(person.record.definition.delivery_method),
        }
    }

    /// Submits a code.
    pub(crate) async fn verify(
        &self,
        person: &Person,
        from: &str,
        code: &Code,
    ) -> Result<Verdict, StoreError> {
        self.store.verify(&person.pseudonym, &self.verification(person, from, code)).await
    }

    pub(crate) fn verification(&self, person: &Person, from: &str, code: &Code) -> Verification {
        let caller = caller(from);
        let totp = person.record.definition.totp;
        Verification {
            revision: person.revision,
            asked_at: self.now(),
            factor: match person.record.definition.delivery_method {
                DeliveryMethod::App => Factor::Authenticator,
                _ => Factor::Delivered,
            },
            tag: self.keys().code_tag(&person.pseudonym, &caller, code, None),
            matches: person.totp().matching_steps(code, totp.step_at(self.now()), 2),
            caller,
            period: totp.period(),
            skew: totp.skew(),
            // The tests of the budget set their own.
            failures_per_day: 0,
            audit: audit_context(person.record.definition.delivery_method),
        }
    }

    /// The credentials of a sidecar for this realm.
    pub(crate) fn credentials(&self, from: &str) -> TempDir {
        self.credentials_for(&self.url(), from)
    }

    /// The same, with another URL of Redis.
    pub(crate) fn credentials_for(&self, url: &str, from: &str) -> TempDir {
        let folder = scratch::folder("credentials");
        write_credentials(folder.path(), url, &self.realm_key, from);
        folder
    }
}

/// The history's context of a request without forwarded details.
pub(crate) fn audit_context(channel: DeliveryMethod) -> AuditContext {
    AuditContext::new(AuditPolicy::default(), channel)
}

pub(crate) fn names() -> RealmNames {
    RealmNames::new(&installation(), &realm_id())
}

fn write_credentials(folder: &Path, redis_url: &str, key: &RealmKey, from: &str) {
    let installation = installation();
    let realm = realm_id();
    let key = key.to_text();
    for (name, content) in [
        ("redis-url", redis_url),
        ("realm-key", key.expose_secret()),
        ("installation", installation.as_str()),
        ("realm", realm.as_str()),
        ("caller", from),
    ] {
        fs::write(folder.join(name), content).unwrap();
    }
}

impl Person {
    pub(crate) fn totp(&self) -> Totp {
        self.record.totp().unwrap()
    }

    pub(crate) fn step(&self, now: UnixMillis) -> Step {
        self.record.definition.totp.step_at(now)
    }

    pub(crate) fn code(&self, step: Step) -> Code {
        self.totp().code_of(step)
    }

    /// The code of the step that is `steps` after the current one.
    pub(crate) fn code_at(&self, now: UnixMillis, steps: i64) -> Code {
        self.code(Step::new(self.step(now).number().checked_add_signed(steps).unwrap()))
    }

    /// A code of no step near `now`.
    pub(crate) fn wrong_code(&self, now: UnixMillis) -> Code {
        (0..1_000_000)
            .map(|number| Code::parse(&format!("{number:06}")).unwrap())
            .find(|code| self.totp().matching_steps(code, self.step(now), 20).is_empty())
            .unwrap()
    }
}
