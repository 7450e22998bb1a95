//! Tests a running sidecar whose credentials change and whose access is withdrawn and restored: by
//! a Secret as the kubelet mounts it, by ACL users of a real Redis, and by the realm's list of
//! namespaces.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_tests::http::Reply;
use twofactor_tests::mail::{MailServer, MailTls};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::scratch;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;

use crate::support::sidecar::{metrics, serve, shown, with_mail};
use crate::support::world::{World, names};

const BOUND: Duration = Duration::from_secs(10);
const FILES: [&str; 5] = ["redis-url", "realm-key", "installation", "realm", "caller"];
/// The Redis commands that a sidecar needs.
const COMMANDS: &str = "+get +hget +hgetall +hmget +hkeys +hset +hsetnx +hdel +set +pexpireat +time +exists +info \
                        +evalsha +script|load +multi +exec +xadd";

/// A folder as the kubelet mounts it: each file is a link through `..data`, which is replaced when
/// the Secret changes.
struct Mount {
    folder: TempDir,
    generation: AtomicU32,
}

impl Mount {
    fn of(secret: &TempDir) -> Self {
        let mount = Self { folder: scratch::folder("mount"), generation: AtomicU32::new(0) };
        for name in FILES {
            symlink(Path::new("..data").join(name), mount.path().join(name)).unwrap();
        }
        mount.change(secret, &[]);
        mount
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Changes the mounted Secret to the files of `secret`.
    fn change(&self, secret: &TempDir, others: &[(&str, &str)]) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let target = PathBuf::from(format!("..generation_{generation}"));
        fs::create_dir(self.path().join(&target)).unwrap();
        for name in FILES {
            let to = self.path().join(&target).join(name);
            match others.iter().find(|(other, _)| *other == name) {
                Some((_, content)) => fs::write(to, content).unwrap(),
                None => drop(fs::copy(secret.path().join(name), to).unwrap()),
            }
        }
        let (link, new) = (self.path().join("..data"), self.path().join("..data_tmp"));
        let before = fs::read_link(&link).ok();
        symlink(&target, &new).unwrap();
        fs::rename(new, link).unwrap();
        if let Some(before) = before {
            fs::remove_dir_all(self.path().join(before)).unwrap();
        }
    }
}

async fn world() -> World {
    World::in_redis_with_real_time(RedisServer::start().await).await
}

/// The value of a metric without labels, or with the labels at the end of the name.
async fn metric(sidecar: &SidecarProcess, name: &str) -> Option<u64> {
    let text = metrics(sidecar).await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

async fn taken_over(sidecar: &SidecarProcess, times: u64) {
    eventually(BOUND, "the new credentials to be in use", async || {
        metric(sidecar, r#"twofactor_credentials_changes_total{outcome="taken-over"}"#).await
            == Some(times)
    })
    .await;
}

async fn acl(world: &World, arguments: &str) {
    let mut command = redis::cmd("ACL");
    command.arg(arguments.split_whitespace().collect::<Vec<_>>());
    command.exec_async(&mut world.redis().connect().await).await.unwrap();
}

/// The URL with a login.
fn url_of(world: &World, user: &str, password: &str) -> String {
    world.redis().url().replace("redis://", &format!("redis://{user}:{password}@"))
}

/// Gives the ACL user `kms` the permissions that a sidecar needs on this realm's keys.
async fn set_login(world: &World, password: &str) {
    acl(world, &format!("SETUSER kms on >{password} ~{}* {COMMANDS}", names().prefix())).await;
}

fn kind(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["type"].as_str().unwrap().to_owned())
}

fn store_unavailable() -> (u16, String) {
    (503, "urn:fountainai:2fa:store-unavailable".to_owned())
}

fn namespace_not_allowed() -> (u16, String) {
    (503, "urn:fountainai:2fa:namespace-not-allowed".to_owned())
}

#[tokio::test]
async fn a_changed_password_is_taken_over_without_a_restart_and_without_a_refused_request() {
    let world = world().await;
    world.person("alice", App).await;
    set_login(&world, "first").await;
    let secret = world.credentials("kms");
    let mount = Mount::of(&secret);
    mount.change(&secret, &[("redis-url", &url_of(&world, "kms", "first"))]);
    let sidecar = serve(mount.path()).await;
    assert_eq!(sidecar.api().verify("alice", "000000").await.status, 401);

    let (api, end) = (sidecar.api(), Arc::new(AtomicBool::new(false)));
    let ended = end.clone();
    // An unknown user is never throttled, and each request about one reads Redis.
    let asking = tokio::spawn(async move {
        let mut statuses = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            statuses.push(api.verify("unknown", "123456").await.status);
        }
        statuses
    });
    acl(&world, "SETUSER kms >second").await;
    mount.change(&secret, &[("redis-url", &url_of(&world, "kms", "second"))]);
    taken_over(&sidecar, 1).await;
    acl(&world, "SETUSER kms <first").await;
    for _ in 0..20 {
        assert_eq!(sidecar.api().verify("unknown", "123456").await.status, 404);
    }
    end.store(true, Ordering::Relaxed);
    let statuses = asking.await.unwrap();
    assert!(statuses.len() > 20 && statuses.iter().all(|status| *status == 404), "{statuses:?}");
    let count =
        metric(&sidecar, r#"twofactor_http_requests_total{route="/auth/verify",status="401"}"#)
            .await;
    assert_eq!(count, Some(1), "metrics go on");
    let log = sidecar.process().output();
    assert!(!log.contains("first") && !log.contains("second"), "{log}");
}

#[tokio::test]
async fn a_sidecar_takes_over_another_realm_and_caller_and_a_used_code_stays_used() {
    let (one, two) = (world().await, world().await);
    let (alice, bob) = (one.person("alice", App).await, two.person("bob", App).await);
    // Files are written in place, as on a developer's machine.
    let folder = one.credentials("kms");
    let sidecar = serve(folder.path()).await;
    let code = shown(&alice);
    assert_eq!(sidecar.api().verify("alice", &code).await.status, 200);

    fs::write(folder.path().join("caller"), "shop").unwrap();
    taken_over(&sidecar, 1).await;
    assert_eq!(sidecar.api().verify("alice", &code).await.status, 400);
    assert!(sidecar.process().output().contains("caller=shop"));

    let other = two.credentials("shop");
    let mount = Mount::of(&other);
    for name in FILES {
        fs::remove_file(folder.path().join(name)).unwrap();
        symlink(mount.path().join(name), folder.path().join(name)).unwrap();
    }
    taken_over(&sidecar, 2).await;
    assert_eq!(sidecar.api().verify("alice", &code).await.status, 404);
    assert_eq!(sidecar.api().verify("bob", &shown(&bob)).await.status, 200);
}

#[tokio::test]
async fn unusable_credentials_are_reported_once_and_the_known_ones_stay_in_use() {
    let world = world().await;
    world.person("alice", App).await;
    let secret = world.credentials("kms");
    let mount = Mount::of(&secret);
    let sidecar = serve(mount.path()).await;
    let wait_for_log = async |line: &str| {
        eventually(BOUND, line, async || {
            sidecar.admin().get("/readyz?verbose").await.body.contains(line)
        })
        .await;
    };
    wait_for_log("[+] credentials ok (does not affect readiness)").await;

    mount.change(&secret, &[("realm-key", "1:c2VjcmV0")]);
    wait_for_log("[-] credentials failed").await;
    assert_eq!(metric(&sidecar, "twofactor_credentials_current").await, Some(0));
    assert_eq!(sidecar.api().verify("alice", "000000").await.status, 401);
    assert_eq!(sidecar.admin().get("/readyz").await.status, 200);

    mount.change(&secret, &[("redis-url", "http://:hidden@x")]);
    sidecar.process().wait_for_line("redis-url: is not a Redis URL", BOUND).await;
    fs::remove_dir_all(mount.path()).unwrap();
    sidecar.process().wait_for_line("is not a folder", BOUND).await;
    assert_eq!(sidecar.api().verify("alice", "000000").await.status, 401);

    let again = Mount::of(&secret);
    fs::rename(again.path(), mount.path()).unwrap();
    wait_for_log("[+] credentials ok").await;
    assert_eq!(metric(&sidecar, "twofactor_credentials_current").await, Some(1));
    assert_eq!(
        metric(&sidecar, r#"twofactor_credentials_changes_total{outcome="refused"}"#).await,
        Some(3)
    );
    let log = sidecar.process().output();
    assert_eq!(log.matches("the previous ones stay in use").count(), 3, "{log}");
    assert!(log.contains("realm-key: must have the form") && !log.contains("c2VjcmV0"), "{log}");
    assert!(!log.contains("hidden"), "{log}");
}

#[tokio::test]
async fn a_namespace_no_longer_allowed_is_refused_within_two_seconds_and_no_mail_is_sent() {
    let world = world().await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (alice, bob) = (world.person("alice", Email).await, world.person("bob", App).await);
    let allow = async |namespaces: &[&str]| {
        let callers: BTreeSet<String> = namespaces.iter().map(|&name| name.to_owned()).collect();
        let realm = RealmRecord { callers: Some(callers), ..with_mail(&mail) };
        world.fill_with(&realm, &[&alice, &bob]).await;
    };
    allow(&["kms", "shop"]).await;
    let credentials = world.credentials("kms");
    let sidecar = serve(credentials.path()).await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    assert_eq!(sidecar.api().verify("bob", "000000").await.status, 401);
    assert_eq!(mail.messages().await.len(), 1);

    allow(&["shop"]).await;
    let began = Instant::now();
    eventually(BOUND, "the withdrawal", async || {
        kind(&sidecar.api().verify("unknown", "123456").await) == namespace_not_allowed()
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_millis(2300), "{took:?}");
    let attempts = mail.attempts().await;
    let reply = sidecar.api().generate("alice").await;
    assert_eq!(kind(&reply), namespace_not_allowed());
    assert_eq!(
        reply.json()["detail"],
        "This namespace is not allowed by the realm of these users."
    );
    assert_eq!(reply.header("retry-after"), Some("10"));
    assert_eq!(kind(&sidecar.api().verify("bob", &shown(&bob)).await), namespace_not_allowed());
    assert_eq!(kind(&sidecar.api().verify("unknown", "123456").await), namespace_not_allowed());
    assert_eq!(mail.attempts().await, attempts, "nothing is sent");
    sidecar.process().wait_for_line("the realm does not allow this namespace", BOUND).await;
    sidecar.process().wait_for_line("outcome=\"namespace-not-allowed\"", BOUND).await;
    assert_eq!(metric(&sidecar, "twofactor_namespace_allowed").await, Some(0));
    let health = sidecar.admin().get("/readyz?verbose").await;
    assert!(
        health.status == 200 && health.body.contains("[-] namespace-allowed failed"),
        "{}",
        health.body
    );

    // Also after a restart.
    let another = self::serve(credentials.path()).await;
    assert_eq!(kind(&another.api().generate("alice").await), namespace_not_allowed());

    allow(&["kms"]).await;
    eventually(BOUND, "access again", async || {
        sidecar.api().verify("bob", &shown(&bob)).await.status == 200
    })
    .await;
    eventually(BOUND, "the metric", async || {
        metric(&sidecar, "twofactor_namespace_allowed").await == Some(1)
    })
    .await;
}

#[tokio::test]
async fn a_removed_redis_login_is_reported_and_service_resumes_when_it_is_back() {
    let world = world().await;
    let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
    let (alice, bob) = (world.person("alice", Email).await, world.person("bob", App).await);
    world.fill_with(&with_mail(&mail), &[&alice, &bob]).await;
    set_login(&world, "secret").await;
    let credentials = world.credentials("kms");
    fs::write(credentials.path().join("redis-url"), url_of(&world, "kms", "secret")).unwrap();
    let sidecar = serve(credentials.path()).await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    assert_eq!(sidecar.api().verify("bob", "000000").await.status, 401);
    assert_eq!(sidecar.api().verify("unknown", "123456").await.status, 404);

    acl(&world, "DELUSER kms").await;
    let attempts = mail.attempts().await;
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(kind(&sidecar.api().verify("bob", "000000").await), store_unavailable());
        assert_eq!(kind(&sidecar.api().generate("alice").await), store_unavailable());
        assert!(began.elapsed() < Duration::from_millis(2400), "{:?}", began.elapsed());
    }
    sidecar.process().wait_for_line("Redis refuses access to this sidecar", BOUND).await;
    eventually(BOUND, "the metric", async || {
        metric(&sidecar, r#"twofactor_store_failures_total{reason="access-refused"}"#).await
            >= Some(2)
            && metric(&sidecar, "twofactor_store_answers").await == Some(0)
    })
    .await;
    assert_eq!(mail.attempts().await, attempts, "nothing is sent");
    assert_eq!(sidecar.admin().get("/readyz").await.status, 200);

    set_login(&world, "secret").await;
    let began = Instant::now();
    eventually(BOUND, "recovery", async || {
        sidecar.api().verify("unknown", "123456").await.status == 404
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");

    eventually(BOUND, "the metric", async || {
        metric(&sidecar, "twofactor_store_answers").await == Some(1)
    })
    .await;

    // A Redis user with fewer permissions is refused access too.
    acl(&world, "SETUSER kms -get -evalsha").await;
    sidecar
        .process()
        .wait_for_line("this user has no permissions to run the 'get' command", BOUND)
        .await;
    assert_eq!(kind(&sidecar.api().verify("bob", &shown(&bob)).await), store_unavailable());
    acl(&world, "SETUSER kms +get +evalsha").await;
    eventually(BOUND, "recovery", async || {
        sidecar.api().verify("bob", &shown(&bob)).await.status == 200
    })
    .await;
    assert!(!sidecar.process().output().contains("secret"));
}
