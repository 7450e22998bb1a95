//! Tests that the operator and its services follow another password and other certificates of
//! Redis, and other providers, without a restart.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Client;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tokio::task::JoinHandle;
use twofactor_tests::certificates::{Authority, Leaf};
use twofactor_tests::mail::MailServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::{RedisServer, Tls};
use twofactor_tests::scratch;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user};

/// Promised maximum of an outage.
const OUTAGE: Duration = Duration::from_secs(10);
/// Seven digits are never a code of a user with six; the answer shows that there was a decision.
pub(super) const WRONG: &str = "0000000";

/// Verifies until it is ended, and measures the longest time without a decision.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    running: JoinHandle<(Sidecar, Duration, [usize; 2])>,
}

impl Load {
    pub(super) fn start(sidecar: Sidecar) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let running = tokio::spawn(async move {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            let [mut decided, mut failed] = [0, 0];
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let reply = sidecar.api.verify("stranger", WRONG).await;
                if reply.status == 404 {
                    (longest, last) = (longest.max(last.elapsed()), Instant::now());
                    decided += 1;
                } else {
                    assert_eq!(reply.status, 503, "{}", reply.body);
                    failed += 1;
                }
            }
            (sidecar, longest.max(last.elapsed()), [decided, failed])
        });
        Self { stop, running }
    }

    pub(super) async fn end(self) -> Sidecar {
        self.end_with(usize::MAX).await
    }

    /// Ends, and checks that no answer was 503.
    pub(super) async fn end_without_outage(self) -> Sidecar {
        self.end_with(0).await
    }

    async fn end_with(self, allowed: usize) -> Sidecar {
        self.stop.store(true, Ordering::Relaxed);
        let (sidecar, longest, [decided, failed]) = self.running.await.unwrap();
        eprintln!("{decided} decisions, {failed} answers 503, longest outage {longest:?}");
        assert!(longest < OUTAGE && decided > 20, "{longest:?}, {decided}");
        assert!(failed <= allowed, "{failed} answers were 503");
        sidecar
    }
}

/// A connection to Redis with a password.
async fn administrator(cluster: &Cluster, password: &str) -> MultiplexedConnection {
    let url = format!("redis://:{password}@127.0.0.1:{}", cluster.redis.port());
    Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Gives Redis another password, and closes all other connections as a restart does.
async fn set_password(redis: &mut MultiplexedConnection, password: &str) {
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("requirepass").arg(password).exec_async(redis).await.unwrap();
    close_others(redis).await;
}

pub(super) async fn close_others(redis: &mut MultiplexedConnection) {
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("normal").exec_async(redis).await.unwrap();
}

fn set_secret(cluster: &Cluster, password: &str) {
    let patch = json!({ "stringData": { "password": password } }).to_string();
    let _ = cluster.in_home(&["patch", "secret", "twofactor-redis", "--patch", &patch]);
}

pub(super) async fn wait_for_metric(operator: &OperatorProcess, line: &str) {
    eventually(BOUND * 2, line, async || {
        let metrics = operator.admin().get("/metrics").await.body;
        if metrics.contains(&format!("\n{line}\n")) { Ok(()) } else { Err("another value") }
    })
    .await;
}

async fn started() -> (Cluster, OperatorProcess) {
    let redis = RedisServer::builder().password("first").start().await;
    let cluster = Cluster::with_redis(redis).await;
    let operator = cluster.operator_with_password("first").await;
    cluster.apply(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata: {name: default}\nspec: {issuer: A}\n",
    );
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    (cluster, operator)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_redis_is_changed_twice_in_a_minute_without_a_restart_of_the_operator() {
    let (cluster, operator) = started().await;
    let sidecar = cluster.sidecar().await;
    eventually(BOUND, "the sidecar to serve", async || {
        sidecar.api.verify("stranger", WRONG).await.status == 404
    })
    .await;
    let load = Load::start(sidecar);
    let mut redis = administrator(&cluster, "first").await;
    let changed = "access to Redis changed; the new one is in use";
    for (number, password) in ["second", "p:w/@ 3"].into_iter().enumerate() {
        // The operator sees the Secret before Redis does, or after.
        if number == 0 {
            set_secret(&cluster, password);
            set_password(&mut redis, password).await;
        } else {
            set_password(&mut redis, password).await;
            set_secret(&cluster, password);
        }
        eventually(BOUND, "the operator to follow", async || {
            operator.process().output().matches(changed).count() > number
        })
        .await;
        let user = format!("user-{number}");
        cluster.apply(&app_user(&user));
        cluster.wait_ready(&user).await;
    }
    let sidecar = load.end().await;
    sidecar.wait_accepted("user-1", &cluster.seed("user-1")).await;
    wait_for_metric(&operator, "twofactor_redis_access_current 1").await;
    let log = operator.process().output();
    assert!(!log.contains("p:w") && !log.contains("second"), "a password is in the log");
}

#[tokio::test]
async fn a_password_that_redis_has_not_yet_is_used_when_it_has_it() {
    let (cluster, operator) = started().await;
    let mut redis = administrator(&cluster, "first").await;
    set_secret(&cluster, "second");
    wait_for_metric(&operator, "twofactor_redis_access_current 0").await;
    // The previous one stays in use meanwhile.
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    set_password(&mut redis, "second").await;
    wait_for_metric(&operator, "twofactor_redis_access_current 1").await;
    cluster.apply(&app_user("erin"));
    cluster.wait_ready("erin").await;
}

#[tokio::test]
async fn a_refused_login_is_said_in_condition_metric_and_log_until_the_secret_is_right() {
    let (cluster, operator) = started().await;
    let mut redis = administrator(&cluster, "first").await;
    set_password(&mut redis, "second").await;
    eventually(BOUND, "the condition", async || {
        match cluster.condition_of("tfr", "default", "Ready") {
            Some((_, reason, message))
                if reason == "StoreUnavailable" && message.contains("refuses the operator") =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let metrics = operator.admin().get("/metrics").await.body;
    let metric = "twofactor_store_failures_total{reason=\"access-refused\"}";
    assert!(metrics.contains(metric), "{metrics}");
    let log = operator.process().output();
    assert!(log.contains("because it refuses the operator's login"), "{log}");
    set_secret(&cluster, "second");
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
}

/// The files with which the operator reaches a Redis that asks for a client certificate.
struct Files(tempfile::TempDir);

impl Files {
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, authority: &str, client: &Leaf) {
        for (name, text) in
            [("ca.crt", authority), ("tls.crt", &client.certificate), ("tls.key", &client.key)]
        {
            fs::write(self.path(name), text).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_of_redis_and_the_client_certificate_are_followed_and_given_to_services() {
    let tls = Tls::new();
    let cluster = Cluster::with_redis(RedisServer::builder().tls(tls.clone()).start().await).await;
    let mut redis = cluster.redis.connect().await;
    let files = Files(scratch::folder("client-certificate"));
    let of_redis = |name: &str, text: &str| {
        let path = files.path(name);
        fs::write(&path, text).unwrap();
        path
    };
    let configure = async |redis: &mut MultiplexedConnection, settings: &[(&str, &str)]| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET");
        for (name, value) in settings {
            set.arg(name).arg(value);
        }
        set.exec_async(redis).await.unwrap();
        close_others(redis).await;
    };
    let clients = Authority::new("clients");
    let trusted = of_redis("clients.crt", &clients.pem());
    configure(&mut redis, &[("tls-ca-cert-file", &trusted), ("tls-auth-clients", "yes")]).await;
    files.write(&tls.authority, &clients.client("twofactor", "services"));
    let operator = cluster
        .operator()
        .env("REDIS_CA_FILE", &files.path("ca.crt"))
        .env("REDIS_CLIENT_CERTIFICATE_FILE", &files.path("tls.crt"))
        .env("REDIS_CLIENT_KEY_FILE", &files.path("tls.key"))
        .start()
        .await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;
    wait_for_metric(&operator, "twofactor_redis_access_current 1").await;

    // Redis gets another certificate, and trusts another authority of clients.
    let (servers, others) = (Authority::new("servers"), Authority::new("others"));
    let server = servers.server(&["localhost", "127.0.0.1"]);
    let renewed = others.client("twofactor", "services");
    let certificate = of_redis("redis.crt", &server.certificate);
    let key = of_redis("redis.key", &server.key);
    let trusted = of_redis("others.crt", &others.pem());
    let settings = [
        ("tls-cert-file", certificate.as_str()),
        ("tls-key-file", &key),
        ("tls-ca-cert-file", &trusted),
    ];
    configure(&mut redis, &settings).await;
    files.write(&servers.pem(), &renewed);
    eventually(BOUND * 2, "services to get the certificates", async || {
        let found = |key: &str| cluster.credentials_in(&cluster.namespace, key);
        found("redis-ca") == Some(servers.pem())
            && found("redis-client-certificate").as_ref() == Some(&renewed.certificate)
            && found("redis-client-key").as_ref() == Some(&renewed.key)
    })
    .await;
    cluster.mount(&cluster.namespace, sidecar.folder());
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    sidecar.wait_accepted("dora", &cluster.seed("dora")).await;
    let log = operator.process().output();
    assert!(log.contains("access to Redis changed; the new one is in use"), "{log}");
    assert!(!log.contains("PRIVATE KEY"), "{log}");
    let metrics = operator.admin().get("/metrics").await.body;
    for kind in ["authority", "client"] {
        let metric =
            format!("twofactor_redis_certificate_end_timestamp_seconds{{certificate=\"{kind}\"}}");
        assert!(metrics.contains(&metric), "{metrics}");
    }

    // Files that do not fit are not used.
    fs::write(files.path("tls.key"), renewed.key.replace('A', "B")).unwrap();
    wait_for_metric(&operator, "twofactor_redis_access_current 0").await;
    let log = operator.process().output();
    assert!(log.contains("failed to use the changed access to Redis"), "{log}");
    cluster.apply(&app_user("erin"));
    cluster.wait_ready("erin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_own_providers_are_followed_and_an_invalid_one_is_not_used() {
    let cluster = Cluster::start().await;
    let (before, after) = (MailServer::start().await, MailServer::start().await);
    let folder = scratch::folder("providers");
    let write = |name: &str, value: &str| fs::write(folder.path().join(name), value).unwrap();
    write("SMTP_SERVER", "localhost");
    write("SMTP_SECURITY", "plain\n");
    write("SMTP_FROM_EMAIL", "otp@example.org");
    write("SMTP_PORT", &before.port().to_string());
    let operator = cluster
        .operator()
        .env("TWOFACTOR_PROVIDERS_DIRECTORY", folder.path().to_str().unwrap())
        .env("OTP_GENERATE_INTERVAL_SECONDS", "0")
        .env("OTP_GENERATES_PER_HOUR", "0")
        .start()
        .await;
    let carol = "deliveryMethod: email\n  email: carol@example.org";
    cluster.apply(&crate::support::cluster::user("carol", carol));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    let mailed = async |server: &MailServer| {
        eventually(BOUND * 2, "a code at the mail server", async || {
            let reply = sidecar.api.generate("carol").await;
            if server.messages().await.is_empty() { Err(reply.body) } else { Ok(()) }
        })
        .await;
    };
    mailed(&before).await;
    write("SMTP_PORT", &after.port().to_string());
    mailed(&after).await;
    write("SMTP_PORT", "none");
    let warning = "failed to read the operator's changed providers; the previous ones stay in use";
    operator.process().wait_for_line(warning, BOUND).await;
    let sent = after.messages().await.len();
    eventually(BOUND, "another code", async || {
        let reply = sidecar.api.generate("carol").await;
        if after.messages().await.len() > sent { Ok(()) } else { Err(reply.body) }
    })
    .await;
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
}
