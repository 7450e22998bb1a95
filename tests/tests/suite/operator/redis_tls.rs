//! Tests the certificate that the operator makes for a Redis that was installed with it: nothing is
//! legible on the wire, certificates and authorities are replaced under load, and sidecars of both
//! releases change to TLS and back. The tests do what kubelet and pod do: they give Redis and
//! sidecars what is in the Secrets.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use serde_json::json;
use tempfile::TempDir;
use twofactor_tests::faults::{Fault, FaultProxy};
use twofactor_tests::operator::{OperatorBuilder, OperatorProcess};
use twofactor_tests::process::Signal;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::{eventually, eventually_every};
use twofactor_tests::wire::Wire;
use twofactor_tests::{ports, scratch};

use super::redis_access::{Load, WRONG, close_others, wait_for_metric};
use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user, code_of};

const SECRET: &str = "twofactor-redis-certificate";
const PASSWORD: &str = "openly";
/// Interval in which the kubelet of these tests looks.
const SYNC: Duration = Duration::from_millis(300);

/// A Redis with data, which has a port without TLS, and gets one with TLS.
struct Installed {
    cluster: Cluster,
    folder: TempDir,
    tls_port: u16,
}

impl Installed {
    async fn new() -> Self {
        let redis = RedisServer::builder().password(PASSWORD).start().await;
        let cluster = Cluster::with_redis(redis).await;
        let literal = format!("--from-literal=password={PASSWORD}");
        let _ = cluster.in_home(&["create", "secret", "generic", "twofactor-redis", &literal]);
        Self { cluster, folder: scratch::folder("redis-certificate"), tls_port: ports::free_port() }
    }

    /// The operator as the chart runs it, which reaches Redis at `url`.
    fn operator(&self, url: &str) -> OperatorBuilder {
        let operator = self.cluster.operator().env("REDIS_URL", url);
        operator.args(["--redis-password-secret", "twofactor-redis"])
    }

    fn operator_with_tls(&self, port: u16) -> OperatorBuilder {
        let operator = self.operator(&format!("rediss://127.0.0.1:{port}"));
        operator.args(["--redis-certificate-secret", SECRET])
    }

    fn plain_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.cluster.redis.port())
    }

    fn in_secret(&self, key: &str) -> Option<Vec<u8>> {
        self.cluster.secret_in(&self.cluster.home, SECRET, key)
    }

    /// Waits until there is a certificate, and gives it to Redis.
    async fn certify(&self, redis: &mut MultiplexedConnection) {
        let read = async || self.in_secret("tls.crt");
        eventually(BOUND, "the operator to make the certificate", read).await;
        self.renew(redis).await;
    }

    /// Gives Redis the certificate if it has changed, as the probe of its pod does. Returns whether
    /// it has.
    async fn renew(&self, redis: &mut MultiplexedConnection) -> bool {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET");
        let mut changed = false;
        for (setting, key) in [
            ("tls-cert-file", "tls.crt"),
            ("tls-key-file", "tls.key"),
            ("tls-ca-cert-file", "ca.crt"),
        ] {
            let (path, content) = (self.folder.path().join(key), self.in_secret(key).unwrap());
            changed |= fs::read(&path).ok().as_ref() != Some(&content);
            fs::write(&path, content).unwrap();
            set.arg(setting).arg(path.to_str().unwrap());
        }
        if changed {
            set.arg("tls-auth-clients").arg("no").arg("tls-port").arg(self.tls_port);
            set.exec_async(redis).await.unwrap();
        }
        changed
    }

    /// Waits until the services' credentials name a port of Redis, and mounts them.
    async fn mount(&self, sidecars: &[&Path], port: u16) {
        let port = format!("127.0.0.1:{port}");
        eventually(BOUND, "the services to get the other address", async || {
            let url = self.cluster.credentials_in(&self.cluster.namespace, "redis-url");
            url.is_some_and(|url| url.contains(&port))
        })
        .await;
        for folder in sidecars {
            self.cluster.mount(&self.cluster.namespace, folder);
        }
    }

    /// The number of connections of services to a port of Redis.
    async fn services_at(&self, redis: &mut MultiplexedConnection, port: u16) -> usize {
        let list: String = redis::cmd("CLIENT").arg("LIST").query_async(redis).await.unwrap();
        let port = format!("laddr=127.0.0.1:{port} ");
        // The login of a service has the name of the installation.
        let is_service = |line: &&str| line.contains(&port) && line.contains("user=2fa1:");
        list.lines().filter(is_service).count()
    }
}

async fn wait_served(sidecar: &Sidecar) {
    eventually(BOUND, "the sidecar to serve", async || {
        sidecar.api.verify("stranger", WRONG).await.status == 404
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_what_is_sent_to_redis_is_legible_on_the_wire() {
    let installed = Installed::new().await;
    let cluster = &installed.cluster;
    let mut redis = cluster.redis.connect().await;
    let (plain, encrypted) =
        (Wire::start(cluster.redis.port()).await, Wire::start(installed.tls_port).await);
    // Without TLS, the recording shows what is looked for.
    let operator = installed.operator(&format!("redis://127.0.0.1:{}", plain.port())).start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;
    let words = [PASSWORD.as_bytes(), b"2fa1:", b"AUTH", b"HELLO", b"evalsha", b"EVALSHA"];
    let legible: Vec<_> = words.iter().filter(|word| plain.shows(word)).collect();
    assert!(legible.len() >= 4, "{legible:?}");
    operator.process().signal(Signal::Term);
    operator.process().wait_exit(BOUND).await;

    let operator = installed.operator_with_tls(encrypted.port()).start().await;
    installed.certify(&mut redis).await;
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    installed.mount(&[sidecar.folder()], encrypted.port()).await;
    let plain_port = cluster.redis.port();
    eventually(BOUND, "the sidecar to use TLS", async || {
        installed.services_at(&mut redis, plain_port).await == 0
            && installed.services_at(&mut redis, installed.tls_port).await > 0
    })
    .await;
    let seed = cluster.seed("dora");
    sidecar.wait_accepted("dora", &seed).await;
    let streams = encrypted.streams();
    // The operator's connections and the sidecar's, in both directions.
    assert!(streams.len() >= 4, "{}", streams.len());
    for stream in &streams {
        assert_eq!(stream[..2], [22, 3], "a connection begins with a handshake of TLS");
    }
    let code = code_of(&seed);
    let more = [b"dora", seed.as_bytes(), cluster.namespace.as_bytes(), code.as_bytes()];
    for word in words.iter().chain(&more) {
        assert!(!encrypted.shows(word), "{}", String::from_utf8_lossy(word));
    }
    assert_eq!(installed.services_at(&mut redis, plain_port).await, 0);
    // What the operator says about it contains no key.
    let log = operator.process().output();
    assert!(log.contains("certificate of Redis written") && !log.contains("PRIVATE"), "{log}");
    let metrics = operator.admin().get("/metrics").await.body;
    for kind in ["authority", "server"] {
        let metric =
            format!("twofactor_redis_certificate_end_timestamp_seconds{{certificate=\"{kind}\"}}");
        assert!(metrics.contains(&metric), "{metrics}");
    }
    let credentials = cluster.get("secret", &format!("twofactor-{}", cluster.namespace)).unwrap();
    let authority = cluster.credentials_in(&cluster.namespace, "redis-ca").unwrap();
    assert_eq!(authority.as_bytes(), installed.in_secret("ca.crt").unwrap());
    assert!(credentials["data"].get("ca.key").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_and_authority_are_replaced_while_services_verify() {
    let installed = Installed::new().await;
    let cluster = &installed.cluster;
    let mut redis = cluster.redis.connect().await;
    let lifetimes = ["--redis-ca-lifetime", "60s", "--redis-certificate-lifetime", "24s"];
    let operator = installed.operator_with_tls(installed.tls_port).args(lifetimes).start().await;
    installed.certify(&mut redis).await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar().await;
    wait_served(&sidecar).await;
    let folder = sidecar.folder().to_owned();
    let load = Load::start(sidecar);
    let (first, begun) = (installed.in_secret("ca.crt").unwrap(), Instant::now());
    let (mut renewals, mut closed) = (0, Instant::now());
    let what = "another authority to sign";
    eventually_every(SYNC, BOUND * 4, what, async || {
        renewals += usize::from(installed.renew(&mut redis).await);
        cluster.mount(&cluster.namespace, &folder);
        // Every service has to check the certificate again.
        if closed.elapsed() > Duration::from_secs(2) {
            close_others(&mut redis).await;
            closed = Instant::now();
        }
        let current = installed.in_secret("ca.crt").unwrap();
        let trusted = fs::read(folder.join("redis-ca")).unwrap();
        current != first && trusted.starts_with(&current) && renewals >= 3
    })
    .await;
    eprintln!("{renewals} certificates, another authority after {:?}", begun.elapsed());
    close_others(&mut redis).await;
    let sidecar = load.end().await;
    wait_served(&sidecar).await;
    wait_for_metric(&operator, "twofactor_redis_access_current 1").await;

    // An administrator spoils the Secret.
    let spoilt = json!({ "stringData": { "ca.key": "none" } }).to_string();
    let _ = cluster.in_home(&["patch", "secret", SECRET, "--patch", &spoilt]);
    let said = "authority of Redis invalid, creating a new one";
    operator.process().wait_for_line(said, BOUND).await;
    eventually_every(SYNC, BOUND, "the services to trust the new authority", async || {
        installed.renew(&mut redis).await;
        cluster.mount(&cluster.namespace, &folder);
        let current = installed.in_secret("ca.crt").unwrap();
        fs::read(folder.join("redis-ca")).unwrap().starts_with(&current)
    })
    .await;
    close_others(&mut redis).await;
    wait_served(&sidecar).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_of_both_releases_change_to_tls_and_back_without_a_failed_verify() {
    let installed = Installed::new().await;
    let cluster = &installed.cluster;
    let mut redis = cluster.redis.connect().await;
    let before = installed.operator(&installed.plain_url()).env("POD_NAME", "before").start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let sidecars = [cluster.sidecar_of_previous_release().await, cluster.sidecar().await];
    for sidecar in &sidecars {
        wait_served(sidecar).await;
    }
    let folders = sidecars.each_ref().map(|sidecar| sidecar.folder().to_owned());
    let folders = folders.each_ref().map(std::path::PathBuf::as_path);
    let loads = sidecars.map(Load::start);
    let plain_port = cluster.redis.port();

    // The certificate is made before the new version leads, because Redis has no port for TLS
    // without it.
    let next =
        installed.operator_with_tls(installed.tls_port).env("POD_NAME", "next").start().await;
    installed.certify(&mut redis).await;
    hand_over(before, &next).await;
    installed.mount(&folders, installed.tls_port).await;
    eventually(BOUND, "no service without TLS", async || {
        let plain = installed.services_at(&mut redis, plain_port).await;
        let encrypted = installed.services_at(&mut redis, installed.tls_port).await;
        if plain == 0 && encrypted >= 2 { Ok(()) } else { Err(format!("{plain}, {encrypted}")) }
    })
    .await;
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;

    // And back, as before a rollback.
    let back = installed.operator(&installed.plain_url()).env("POD_NAME", "back").start().await;
    hand_over(next, &back).await;
    installed.mount(&folders, plain_port).await;
    eventually(BOUND, "no service with TLS", async || {
        installed.services_at(&mut redis, installed.tls_port).await == 0
    })
    .await;
    for load in loads {
        let sidecar = load.end_without_outage().await;
        sidecar.wait_accepted("dora", &cluster.seed("dora")).await;
    }
}

/// Ends the leader, and waits until another replica leads.
async fn hand_over(leader: OperatorProcess, next: &OperatorProcess) {
    leader.process().signal(Signal::Term);
    leader.process().wait_exit(BOUND).await;
    wait_for_metric(next, "twofactor_leader 1").await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_made_is_said_and_made_as_soon_as_it_can() {
    let installed = Installed::new().await;
    let cluster = &installed.cluster;
    let proxy = FaultProxy::start(&cluster.server).await;
    proxy.set(Some(Fault::Path("/secrets", 403)));
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let url = format!("rediss://127.0.0.1:{}", installed.tls_port);
    let operator = cluster.operator_with(&kubeconfig).env("REDIS_URL", &url);
    let operator = operator.env("TWOFACTOR_INSTALLATION", &cluster.home);
    let operator = operator.args(["--redis-certificate-secret", SECRET]);
    let operator = operator.args(["--redis-password-secret", "twofactor-redis"]).start().await;
    let said = "failed to make the certificate of Redis; trying again";
    operator.process().wait_for_line(said, BOUND).await;
    proxy.set(Some(Fault::Path(SECRET, 403)));
    cluster.wait_blocked(&operator, "redis-certificate", SECRET).await;
    proxy.set(None);
    installed.certify(&mut cluster.redis.connect().await).await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    wait_for_metric(&operator, "twofactor_leader_blocked{need=\"redis-certificate\"} 0").await;
}

#[tokio::test]
async fn settings_that_contradict_each_other_are_refused_at_the_start() {
    let cluster = Cluster::start().await;
    for (url, more, reason) in [
        ("redis://a:6379", &[][..], "--redis-certificate-secret needs a --redis-url"),
        ("rediss+cluster://a,b", &[], "--redis-certificate-secret needs a --redis-url"),
        ("rediss://a", &["--redis-ca-file", "/ca.crt"], "--redis-ca-file"),
        ("rediss://a", &["--redis-ca-lifetime", "24h"], "must be at least twice"),
        ("rediss://a", &["--redis-certificate-lifetime", "1s"], "must be 10s or more"),
    ] {
        let operator = cluster.operator().env("REDIS_URL", url);
        let operator = operator.args(["--redis-certificate-secret", SECRET]);
        let operator = operator.args(more.iter().copied()).launch();
        assert!(!operator.process().wait_exit(BOUND).await.success(), "{url} {more:?}");
        let said = operator.process().output();
        assert!(said.contains(reason), "{url} {more:?}: {said}");
    }
}
