//! Tests the upgrade from the previous release and the rollback to it: its operator, sidecar, CRDs
//! and roles beside those of this checkout, on a real API server and a real Redis, under load.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use twofactor_core::seed::Seed;
use twofactor_core::totp::{Algorithm, Totp, TotpParameters};
use twofactor_store::clock::Clock;
use twofactor_tests::mail::MailServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::process::Signal;
use twofactor_tests::sidecar::{SidecarBuilder, SidecarProcess};
use twofactor_tests::wait::eventually;
use twofactor_tests::{previous, scratch};

use crate::support::cluster::{BOUND, Cluster, app_user, user};

/// Users and the versions whose sidecars are asked about them. The codes of `carol` go to both.
const USERS: [(&str, &[Version]); 3] = [
    ("alice", &[Version::Previous]),
    ("bob", &[Version::Present]),
    ("carol", &[Version::Previous, Version::Present]),
];
/// Period of their codes in seconds, the shortest possible, because the next code is waited for.
const PERIOD: u32 = 15;
/// Pause between two verifies of the load.
const PAUSE: Duration = Duration::from_millis(30);
/// Timeout for a code of each user to be accepted: a period, and time for a busy machine.
const ACCEPTED: Duration = Duration::from_secs(45);
/// Timeout for a code of each user to be accepted after Redis was restarted.
const ACCEPTED_AGAIN: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Previous,
    Present,
}

/// A namespace of users that both versions can reconcile.
struct Setting {
    cluster: Arc<Cluster>,
    mail: MailServer,
}

impl Setting {
    /// As the previous release is installed.
    async fn new() -> Self {
        let cluster = Arc::new(Cluster::on_own_server(&[]).await);
        let setting = Self { cluster, mail: MailServer::start().await };
        setting.apply_objects(Version::Previous);
        setting
    }

    /// Applies CRDs, roles and policies of a version, as an upgrade or a rollback of the chart does
    /// before it replaces the operator.
    fn apply_objects(&self, version: Version) {
        let (server, home) = (&self.cluster.server, &self.cluster.home);
        let kubectl = |args: &[&str]| drop(server.kubectl(args));
        let present = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let path = |file: &str| match version {
            Version::Previous => previous::source().join(file).display().to_string(),
            Version::Present => present.join(file).display().to_string(),
        };
        kubectl(&["apply", "-f", &path("crds")]);
        kubectl(&["apply", "--namespace", home, "-f", &path("operator/rbac.yaml")]);
        match version {
            Version::Previous => {
                let policies = present.join("operator/policy.yaml").display().to_string();
                kubectl(&["delete", "--ignore-not-found", "-f", &policies]);
            }
            Version::Present => self.cluster.apply_policies(),
        }
    }

    /// Starts an operator. It leads once no other one does.
    async fn operator(&self, version: Version, pod: &str) -> OperatorProcess {
        let cluster = &self.cluster;
        let builder = match version {
            Version::Previous => OperatorProcess::of_previous_release(&cluster.kubeconfig)
                .args(["--namespace", &cluster.namespace, "--operator-namespace", &cluster.home])
                .env("REDIS_URL", &cluster.redis.url()),
            Version::Present => cluster.operator().args(["--key-overlap-seconds", "1"]),
        };
        let mail = [
            ("SMTP_SERVER", "localhost"),
            ("SMTP_PORT", &self.mail.port().to_string()),
            ("SMTP_SECURITY", "plain"),
            ("SMTP_FROM_EMAIL", "operator@example.org"),
        ];
        let builder = mail.iter().fold(builder, |builder, (name, value)| builder.env(name, value));
        builder.env("POD_NAME", pod).start().await
    }

    /// Replaces the leader by an operator of a version, as a rolling update does: for a while both
    /// run. Returns once the new one leads.
    async fn hand_over(
        &self,
        leader: OperatorProcess,
        version: Version,
        pod: &str,
    ) -> OperatorProcess {
        self.apply_objects(version);
        let next = self.operator(version, pod).await;
        assert!(!leads(&next).await, "two operators lead");
        leader.process().signal(Signal::Term);
        leader.process().wait_exit(BOUND).await;
        eventually(BOUND, format_args!("{pod} to lead"), async || leads(&next).await).await;
        next
    }

    /// A sidecar with the credentials that the operator has written.
    async fn sidecar(&self, version: Version) -> Pod {
        let builder = match version {
            Version::Previous => SidecarProcess::of_previous_release(),
            Version::Present => SidecarProcess::builder(),
        };
        Pod::start(&self.cluster, version, builder).await
    }

    fn seeds(&self) -> BTreeMap<&'static str, String> {
        USERS.map(|(name, _)| (name, self.cluster.seed(name))).into()
    }
}

async fn leads(operator: &OperatorProcess) -> bool {
    operator.admin().get("/metrics").await.body.contains("\ntwofactor_leader 1\n")
}

/// A pod with a sidecar, of which the test is the kubelet.
struct Pod {
    version: Version,
    sidecar: SidecarProcess,
    folder: TempDir,
    mounted: Value,
    mounts: u32,
}

impl Pod {
    async fn start(cluster: &Cluster, version: Version, builder: SidecarBuilder) -> Self {
        cluster.ask_from(&cluster.namespace);
        let folder = scratch::folder("credentials");
        let written = async || cluster.credentials_in(&cluster.namespace, "caller");
        eventually(BOUND, "the credentials", written).await;
        mount(cluster, folder.path(), 0);
        let path = folder.path().to_str().unwrap().to_owned();
        let sidecar = builder.args(["serve", "--credentials", &path]).start().await;
        let serves = async || sidecar.api().verify("unknown", "000000").await.status == 404;
        eventually(BOUND, "the sidecar to serve", serves).await;
        Self { version, sidecar, folder, mounted: Value::Null, mounts: 0 }
    }

    /// Mounts the credentials again if they have changed.
    fn sync(&mut self, cluster: &Cluster) {
        let name = format!("twofactor-{}", cluster.namespace);
        let Some(mut secret) = cluster.get("secret", &name) else { return };
        let data = secret["data"].take();
        if data != self.mounted {
            self.mounts += 1;
            mount(cluster, self.folder.path(), self.mounts);
            self.mounted = data;
        }
    }
}

/// Writes the credentials to a folder of their own and swaps the link to it, as the kubelet does.
fn mount(cluster: &Cluster, folder: &Path, number: u32) {
    let target = format!("..{number}");
    fs::create_dir(folder.join(&target)).unwrap();
    cluster.mount(&cluster.namespace, &folder.join(&target));
    let new = folder.join("..new");
    symlink(&target, &new).unwrap();
    fs::rename(new, folder.join("..data")).unwrap();
    for file in fs::read_dir(folder.join(target)).unwrap().map(|entry| entry.unwrap().file_name()) {
        let link = folder.join(&file);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(&file), link).unwrap();
        }
    }
}

/// One answer of a sidecar.
#[derive(Clone, Debug)]
struct Answer {
    asked: Instant,
    answered: Instant,
    version: Version,
    user: &'static str,
    step: u64,
    status: u16,
    body: String,
}

/// Verifies the users through the sidecars of both versions until it is ended.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    /// Returns the pods, whose logs say why a verify failed.
    running: JoinHandle<Vec<Pod>>,
}

impl Load {
    fn start(setting: &Setting, mut pods: Vec<Pod>) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<_>>>::default());
        let (cluster, stopped, written) = (setting.cluster.clone(), stop.clone(), answers.clone());
        let totps = setting.seeds().into_iter().map(|(name, seed)| (name, totp(&seed))).collect();
        let running = tokio::spawn(async move {
            let totps: BTreeMap<&str, Totp> = totps;
            let mut ticks = tokio::time::interval(PAUSE);
            while !stopped.load(Ordering::Relaxed) {
                for pod in &mut pods {
                    pod.sync(&cluster);
                    let asked =
                        USERS.iter().filter(|(_, versions)| versions.contains(&pod.version));
                    for (user, _) in asked {
                        ticks.tick().await;
                        let current = parameters().step_at(Clock::System.now());
                        let code = totps[user].code_of(current).expose_secret().to_owned();
                        let asked = Instant::now();
                        let reply = pod.sidecar.api().verify(user, &code).await;
                        written.lock().unwrap().push(Answer {
                            asked,
                            answered: Instant::now(),
                            version: pod.version,
                            user,
                            step: current.number(),
                            status: reply.status,
                            body: reply.body,
                        });
                    }
                }
            }
            pods
        });
        Self { stop, answers, running }
    }

    /// Waits until a sidecar of each version has accepted a code of each user that it is asked
    /// about, since now. A code of `carol` is accepted by one of them.
    async fn wait_accepted(&self, bound: Duration) {
        let since = Instant::now();
        eventually(bound, "a code of each user to be accepted", async || {
            assert!(!self.running.is_finished(), "the load has ended");
            let answers = self.answers.lock().unwrap();
            let is_accepted = |user: &str| {
                answers
                    .iter()
                    .rev()
                    .take_while(|answer| answer.asked >= since)
                    .any(|answer| answer.user == user && answer.status == 200)
            };
            let missing: Vec<_> =
                USERS.iter().map(|(user, _)| *user).filter(|user| !is_accepted(user)).collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!(
                    "not {missing:?}; {:?}",
                    answers.iter().rev().take(5).collect::<Vec<_>>()
                ))
            }
        })
        .await;
    }

    /// Ends the load, and checks each answer: codes are accepted once, whichever version is asked,
    /// and nothing is refused but used codes. Between two moments of an outage, 503 is allowed.
    async fn end(self, outages: &[(Instant, Instant)]) {
        self.stop.store(true, Ordering::Relaxed);
        let pods = self.running.await.unwrap();
        let answers = self.answers.lock().unwrap();
        let mut accepted = BTreeMap::<(&str, u64), u32>::new();
        let (mut versions, mut failed) = (Vec::new(), Vec::new());
        for answer in answers.iter() {
            let is_outage =
                outages.iter().any(|(from, to)| answer.answered >= *from && answer.asked <= *to);
            match answer.status {
                200 => {
                    *accepted.entry((answer.user, answer.step)).or_default() += 1;
                    versions.push((answer.user, answer.version));
                }
                400 if answer.body.contains("used-code") => {}
                503 if is_outage => {}
                _ => failed.push(answer),
            }
        }
        if let Some(first) = failed.first() {
            let logs: Vec<String> = pods.iter().map(|pod| pod.sidecar.process().output()).collect();
            let is_cause = |line: &&str| line.contains(" WARN ") || line.contains(" twofactor_");
            let causes: Vec<&str> =
                logs.iter().flat_map(|log| log.lines()).filter(is_cause).collect();
            panic!("{} failed verifies, the first: {first:?}\n{}", failed.len(), causes.join("\n"));
        }
        assert!(accepted.values().all(|times| *times == 1), "accepted twice: {accepted:?}");
        for both in [Version::Previous, Version::Present] {
            assert!(versions.iter().any(|(_, version)| *version == both), "none of {both:?}");
        }
        eprintln!("{} answers, {} accepted", answers.len(), accepted.len());
    }
}

fn parameters() -> TotpParameters {
    TotpParameters::new(Algorithm::Sha1, 6, PERIOD, 1).unwrap()
}

fn totp(seed: &str) -> Totp {
    Totp::new(&Seed::from_base32(seed).unwrap(), parameters())
}

fn users() -> String {
    let spec = format!("deliveryMethod: app\n  totp: {{periodSeconds: {PERIOD}}}");
    USERS.map(|(name, _)| user(name, &spec)).concat()
}

fn realm(spec: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata:\n  name: default\nspec: {{{spec}}}\n---\n"
    )
}

async fn all_ready(cluster: &Cluster) {
    for (name, _) in USERS {
        cluster.wait_ready(name).await;
    }
}

#[tokio::test]
async fn an_upgrade_from_the_previous_release_and_back_fails_no_verify_and_changes_no_seed() {
    let setting = Setting::new().await;
    let cluster = setting.cluster.clone();
    let old = setting.operator(Version::Previous, "old-0").await;
    cluster.apply(&users());
    all_ready(&cluster).await;
    let seeds = setting.seeds();
    let mut pods = Vec::new();
    for version in [Version::Previous, Version::Present] {
        pods.push(setting.sidecar(version).await);
    }
    let load = Load::start(&setting, pods);
    load.wait_accepted(ACCEPTED).await;

    let new = setting.hand_over(old, Version::Present, "new-0").await;
    load.wait_accepted(ACCEPTED).await;
    all_ready(&cluster).await;
    assert_eq!(setting.seeds(), seeds, "the upgrade changed a seed");
    // What only this version knows.
    cluster.apply(&realm("maxStalenessSeconds: 600, limits: {failuresPerDay: 100}"));
    cluster.apply(&user("dora", "deliveryMethod: app\n  locale: de"));
    cluster.wait_ready("dora").await;
    let dora = cluster.seed("dora");
    load.wait_accepted(ACCEPTED).await;

    let old = setting.hand_over(new, Version::Previous, "old-1").await;
    load.wait_accepted(ACCEPTED).await;
    all_ready(&cluster).await;
    cluster.apply(&app_user("erin"));
    cluster.wait_ready("erin").await;
    assert_eq!(setting.seeds(), seeds, "the rollback changed a seed");
    assert_eq!(cluster.seed("dora"), dora, "the rollback changed a seed");
    let down = Instant::now();
    cluster.redis.restart().await;
    load.wait_accepted(ACCEPTED_AGAIN).await;
    let outage = (down, Instant::now());

    let new = setting.hand_over(old, Version::Present, "new-1").await;
    load.wait_accepted(ACCEPTED).await;
    all_ready(&cluster).await;
    assert_eq!(setting.seeds(), seeds, "the second upgrade changed a seed");
    assert_eq!(cluster.seed("dora"), dora, "the second upgrade changed a seed");
    load.end(&[outage]).await;
    drop(new);
}

#[tokio::test]
async fn a_code_that_a_sidecar_of_one_version_has_sent_is_accepted_once_by_the_other() {
    let setting = Setting::new().await;
    let cluster = setting.cluster.clone();
    let mut operator = setting.operator(Version::Previous, "old-0").await;
    let names: Vec<_> = (0..6).map(|number| format!("user-{number}")).collect();
    let address = |name: &str| format!("{name}@example.org");
    let manifests = names.iter().map(|name| user(name, &format!("email: {}", address(name))));
    cluster.apply(&manifests.collect::<String>());
    for name in &names {
        cluster.wait_ready(name).await;
    }
    let mut pods =
        [setting.sidecar(Version::Previous).await, setting.sidecar(Version::Present).await];
    let mut left = names.iter();
    let phases = [("new-0", Version::Present), ("old-1", Version::Previous)];
    for phase in [None].into_iter().chain(phases.map(Some)) {
        if let Some((pod, version)) = phase {
            operator = setting.hand_over(operator, version, pod).await;
        }
        for _ in 0..pods.len() {
            for pod in &mut pods {
                pod.sync(&cluster);
            }
            pods.reverse();
            let [sends, accepts] = &pods;
            let name = left.next().unwrap();
            let what = format_args!("a code of {name} from {:?} at {phase:?}", sends.version);
            eventually(BOUND, what, async || {
                let reply = sends.sidecar.api().generate(name).await;
                if reply.status == 200 { Ok(()) } else { Err(reply.body) }
            })
            .await;
            let text = setting.mail.wait_for_message(&address(name), BOUND).await.text;
            let code: String = text.chars().filter(char::is_ascii_digit).take(6).collect();
            let reply = accepts.sidecar.api().verify(name, &code).await;
            assert_eq!(reply.status, 200, "{phase:?}: {}", reply.body);
            let reply = sends.sidecar.api().verify(name, &code).await;
            assert!(reply.body.contains("used-code"), "{phase:?}: {}", reply.body);
        }
    }
}

#[tokio::test]
async fn a_rollback_after_keys_were_replaced_changes_no_seed_and_services_verify_again() {
    let setting = Setting::new().await;
    let cluster = setting.cluster.clone();
    let old = setting.operator(Version::Previous, "old-0").await;
    cluster.apply(&users());
    all_ready(&cluster).await;
    let seeds = setting.seeds();
    let mut pod = setting.sidecar(Version::Present).await;
    let mut operator = setting.hand_over(old, Version::Present, "new-0").await;
    let rotate = |at: &str| {
        let annotations = format!("annotations: {{twofactor.fountainai.io/rotate-keys: {at}}}");
        realm("").replace("  name: default", &format!("  name: default\n  {annotations}"))
    };
    cluster.apply(&rotate("once"));
    let replaced = async || match cluster.condition_of("tfr", "default", "KeysCurrent") {
        Some((status, _, message)) if status == "True" && message.contains('2') => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually(BOUND, "the keys to be replaced", replaced).await;
    for (version, name) in [(Version::Previous, "old-1"), (Version::Present, "new-1")] {
        let totps = seeds.iter().map(|(user, seed)| (*user, totp(seed)));
        operator = setting.hand_over(operator, version, name).await;
        all_ready(&cluster).await;
        assert_eq!(setting.seeds(), seeds, "a seed has changed with {version:?}");
        for (user, totp) in totps {
            let what = format_args!("a code of {user} to be accepted with {version:?}");
            eventually(ACCEPTED_AGAIN, what, async || {
                pod.sync(&cluster);
                let code = totp.code_of(parameters().step_at(Clock::System.now()));
                let reply = pod.sidecar.api().verify(user, code.expose_secret()).await;
                if reply.status == 200 { Ok(()) } else { Err(reply.body) }
            })
            .await;
        }
    }
}
