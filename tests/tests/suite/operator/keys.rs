//! Tests that every key of a realm can be replaced without a failed verify, and that what was
//! copied before opens nothing that is written afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use data_encoding::BASE64;
use redis::AsyncCommands;
use serde_json::json;
use tokio::task::JoinHandle;
use twofactor_core::key::{MasterKey, RealmKeys};
use twofactor_core::names::RealmId;
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::totp::{Totp, TotpParameters};
use twofactor_core::user::Username;
use twofactor_store::clock::Clock;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::{AppendFsync, RedisServer};
use twofactor_tests::wait::{eventually, eventually_every};

use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user};

/// The users who are verified meanwhile.
const USERS: [&str; 3] = ["alice", "bob", "carol"];
/// Pause between two verifies of the load.
const PAUSE: Duration = Duration::from_millis(40);

/// Verifies users through sidecars until it is ended, and gives the sidecars their credentials as
/// the kubelet does.
struct Load {
    stop: Arc<AtomicBool>,
    running: JoinHandle<BTreeMap<u16, u32>>,
}

impl Load {
    fn start(cluster: &Arc<Cluster>, sidecars: Vec<(String, Sidecar)>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (cluster, stopped) = (cluster.clone(), stop.clone());
        let users = USERS.map(|user| (user, totp(&cluster.seed(user))));
        let running = tokio::spawn(async move {
            let mut statuses = BTreeMap::new();
            let mut ticks = tokio::time::interval(PAUSE);
            let mut turn = 0;
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let (namespace, sidecar) = &sidecars[turn % sidecars.len()];
                if turn % 8 < sidecars.len() {
                    cluster.mount(namespace, sidecar.folder());
                }
                let (user, totp) = &users[turn % users.len()];
                let current = TotpParameters::default().step_at(Clock::System.now());
                let code = totp.code_of(current).expose_secret().to_owned();
                let reply = sidecar.api.verify(user, &code).await;
                *statuses.entry(reply.status).or_default() += 1;
                turn += 1;
            }
            statuses
        });
        Self { stop, running }
    }

    /// Ends the load, of which each verify was accepted, or refused as used.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let statuses = self.running.await.unwrap();
        eprintln!("answers: {statuses:?}");
        assert!(statuses.keys().all(|status| [200, 400].contains(status)), "{statuses:?}");
        assert!(statuses[&200] >= 1 && statuses[&400] > 20, "{statuses:?}");
    }
}

fn totp(seed: &str) -> Totp {
    Totp::new(&twofactor_core::seed::Seed::from_base32(seed).unwrap(), TotpParameters::default())
}

pub(super) fn realm(spec: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata:\n  name: default\nspec:\n  \
         tokens: {{audiences: [kms], algorithm: EdDSA}}\n  {spec}\n---\n"
    )
}

/// Keys of a realm that were copied from its credentials.
struct Copied {
    realm: RealmId,
    keys: Vec<RealmKeys>,
}

impl Copied {
    fn from(cluster: &Cluster, namespace: &str) -> Self {
        let value = |key: &str| cluster.credentials_in(namespace, key);
        let realm: RealmId = value("realm").unwrap().parse().unwrap();
        let keys = vec![RealmKeys::from_text(&realm, &value("realm-keys").unwrap()).unwrap()];
        Self { realm, keys }
    }

    /// The keys of every generation that a copied master key derives.
    fn of_master_key(cluster: &Cluster, master: &MasterKey) -> Self {
        let realm: RealmId =
            cluster.credentials_in(&cluster.namespace, "realm").unwrap().parse().unwrap();
        let keys = (1..6).map(|generation| master.realm_key(&realm, generation).keys(&realm));
        Self { keys: keys.collect(), realm }
    }

    /// The realm's record, if a key opens it.
    fn realm(&self, sealed: &[u8]) -> Option<RealmRecord> {
        let mut opened = self.keys.iter().filter_map(|keys| RealmRecord::open(keys, sealed).ok());
        opened.next().map(|(_, record)| record)
    }

    /// Whether one of the keys opens a record.
    fn opens(&self, sealed: &[u8]) -> bool {
        let users = USERS.map(|user| user.parse::<Username>().unwrap());
        self.realm(sealed).is_some()
            || self.keys.iter().any(|keys| {
                users
                    .iter()
                    .any(|user| UserRecord::open(keys, keys.pseudonym(user), sealed).is_ok())
            })
    }
}

/// The sealed records in Redis.
async fn records(redis: &RedisServer) -> Vec<Vec<u8>> {
    let mut connection = redis.connect().await;
    let keys: Vec<String> = connection.keys("*:rec").await.unwrap();
    connection.mget(keys).await.unwrap()
}

async fn realm_record(cluster: &Cluster, keys: &Copied) -> RealmRecord {
    eventually(BOUND, "a record of the realm", async || {
        records(&cluster.redis).await.iter().find_map(|sealed| keys.realm(sealed))
    })
    .await
}

/// The append-only file that Redis writes to.
async fn append_only_file(redis: &RedisServer) -> Vec<u8> {
    let folder: Vec<String> = redis.ask(&["CONFIG", "GET", "dir"]).await;
    let folder = format!("{}/appendonlydir", folder[1]);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = files.filter(|path| path.to_str().unwrap().ends_with(".incr.aof")).max().unwrap();
    fs::read(file).unwrap()
}

/// The arguments of all commands in a part of an append-only file that begins with a command.
fn arguments(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some(end) = file.iter().position(|byte| *byte == b'\n') {
        let line = std::str::from_utf8(&file[..end]).unwrap().trim_end();
        file = &file[end + 1..];
        if let Some(length) = line.strip_prefix('$') {
            let length: usize = length.parse().unwrap();
            found.push(file[..length].to_vec());
            file = &file[length + 2..];
        }
    }
    found
}

pub(super) async fn wait_for_keys(cluster: &Cluster, reason: &str, part: &str) {
    let what = format_args!("KeysCurrent with {reason}: {part}");
    eventually_every(Duration::from_millis(200), BOUND * 2, what, async || {
        match cluster.condition_of("tfr", "default", "KeysCurrent") {
            Some((_, found, message)) if found == reason && message.contains(part) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

pub(super) fn operator(
    cluster: &Cluster,
    kubeconfig: &Path,
    seconds: u32,
) -> twofactor_tests::operator::OperatorBuilder {
    cluster.operator_with(kubeconfig).env("TWOFACTOR_KEY_OVERLAP_SECONDS", &seconds.to_string())
}

/// A realm with users, whose services have their credentials.
async fn started(
    spec: &str,
    namespaces: &[&str],
    seconds: u32,
) -> (Arc<Cluster>, OperatorProcess, Vec<String>) {
    let redis = RedisServer::builder().append_only(AppendFsync::Always).start().await;
    let cluster = Arc::new(Cluster::with_redis(redis).await);
    let operator = operator(&cluster, &cluster.kubeconfig, seconds).start().await;
    let names: Vec<String> =
        namespaces.iter().map(|prefix| cluster.another_namespace(prefix)).collect();
    let mut spec = spec.to_owned();
    for (prefix, name) in namespaces.iter().zip(&names) {
        spec = spec.replace(prefix, name);
    }
    cluster.apply(&[USERS.map(app_user).concat(), realm(&spec)].concat());
    for user in USERS {
        cluster.wait_ready(user).await;
    }
    wait_for_keys(&cluster, "Current", "Generation 1").await;
    for name in names.iter().chain([&cluster.namespace]) {
        cluster.ask_from(name);
        eventually(BOUND, "credentials", async || cluster.credentials_in(name, "realm-keys")).await;
    }
    (cluster, operator, names)
}

pub(super) async fn serving(cluster: &Cluster, namespace: &str) -> (String, Sidecar) {
    let sidecar = cluster.sidecar_in(namespace).await;
    eventually(BOUND, "the sidecar to serve", async || {
        let reply = sidecar.api.verify("unknown", "000000").await;
        if reply.status == 404 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    (namespace.to_owned(), sidecar)
}

pub(super) async fn may_log_in(url: &str) -> bool {
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.is_ok()
}

fn public_keys(reply: &twofactor_tests::http::Reply) -> Vec<String> {
    let keys = reply.json()["keys"].as_array().unwrap().clone();
    keys.iter().map(|key| key["x"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_a_withdrawn_namespace_has_copied_opens_nothing_that_is_written_afterwards() {
    let (cluster, _operator, names) =
        started("allowedNamespaces: {names: [kms, vault]}", &["kms", "vault"], 4).await;
    let (kms, vault) = (&names[0], &names[1]);
    let copied = Copied::from(&cluster, kms);
    let url = cluster.credentials_in(kms, "redis-url").unwrap();
    let url_of_vault = cluster.credentials_in(vault, "redis-url").unwrap();
    let token_key = realm_record(&cluster, &copied).await.tokens.unwrap().key;
    assert!(records(&cluster.redis).await.iter().all(|sealed| copied.opens(sealed)));
    assert!(may_log_in(&url).await);
    let sidecars =
        vec![serving(&cluster, &cluster.namespace).await, serving(&cluster, vault).await];
    let before = public_keys(&sidecars[0].1.api.get("/.well-known/jwks.json").await);
    let load = Load::start(&cluster, sidecars);

    cluster.apply(&realm(&format!("allowedNamespaces: {{names: [{vault}]}}")));
    eventually(BOUND, "the login to go first", async || !may_log_in(&url).await).await;
    wait_for_keys(&cluster, "Current", "Generation 2").await;
    load.end().await;

    // Live Redis.
    assert!(records(&cluster.redis).await.iter().all(|sealed| !copied.opens(sealed)));
    // What is appended to its file from now on.
    let end = append_only_file(&cluster.redis).await.len();
    cluster.apply(
        &USERS
            .map(|user| crate::support::cluster::user(user, "deliveryMethod: app\n  issuer: New"))
            .concat(),
    );
    let current = Copied::from(&cluster, vault);
    eventually(BOUND, "the users to be written", async || {
        let file = append_only_file(&cluster.redis).await;
        let written = arguments(&file[end..]);
        let opened = written.iter().filter(|argument| current.opens(argument)).count();
        if opened < USERS.len() {
            return Err(opened);
        }
        assert!(!written.iter().any(|argument| copied.opens(argument)));
        Ok(())
    })
    .await;

    // The key of tokens is another one. The old public key is shown until its last token expires,
    // also by a sidecar that has just started.
    let record = realm_record(&cluster, &current).await;
    assert!(record.tokens.unwrap().key != token_key);
    let (_, fresh) = serving(&cluster, vault).await;
    let shown = public_keys(&fresh.api.get("/.well-known/jwks.json").await);
    assert!(shown.len() == 2 && shown.contains(&before[0]), "{before:?}, {shown:?}");
    let until = record.retired_keys[0].until;
    assert!(until > Clock::System.now().offset(240_000), "{until:?}");

    // The logins that were replaced are gone, and a namespace that is allowed again gets another.
    eventually(BOUND, "the old login to go", async || !may_log_in(&url_of_vault).await).await;
    assert_ne!(cluster.credentials_in(vault, "redis-url").unwrap(), url_of_vault);
    cluster.apply(&realm(&format!("allowedNamespaces: {{names: [{kms}, {vault}]}}")));
    let (_, again) = serving(&cluster, kms).await;
    assert_eq!(again.api.verify("carol", "000000").await.status, 401);
    assert!(!may_log_in(&url).await);
    assert!(cluster.credentials_in(kms, "realm-key").is_none(), "no first key is given out");
}

#[tokio::test]
async fn an_annotation_replaces_the_keys_once_also_if_the_operator_is_restarted_meanwhile() {
    // Longer than anything takes before the operator is restarted with a shorter time.
    let (cluster, operator_process, _) = started("issuer: A", &[], 600).await;
    let copied = Copied::from(&cluster, &cluster.namespace);
    let annotate = |value: &str| {
        let annotation = format!("twofactor.fountainai.io/rotate-keys={value}");
        let _ = cluster.kubectl(&["annotate", "tfr", "default", "--overwrite", &annotation]);
    };
    annotate("2026-12-01");
    wait_for_keys(&cluster, "KeysAnnounced", "Generation 2").await;
    assert!(records(&cluster.redis).await.iter().all(|sealed| copied.opens(sealed)));
    drop(operator_process);
    let restarted = operator(&cluster, &cluster.kubeconfig, 2).start().await;
    wait_for_keys(&cluster, "Current", "Generation 2").await;
    assert!(records(&cluster.redis).await.iter().all(|sealed| !copied.opens(sealed)));
    // The same request is carried out once.
    annotate("2026-12-01");
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    wait_for_keys(&cluster, "Current", "Generation 2").await;
    annotate("again");
    wait_for_keys(&cluster, "Current", "Generation 3").await;
    let (_, sidecar) = serving(&cluster, &cluster.namespace).await;
    sidecar.wait_accepted("dora", &cluster.seed("dora")).await;
    drop(restarted);
}

#[tokio::test]
async fn a_new_master_key_replaces_the_old_one_without_a_failed_verify() {
    let (cluster, operator_process, _) = started("issuer: A", &[], 3).await;
    let in_home =
        |args: &[&str]| cluster.server.kubectl(&[&["--namespace", &cluster.home], args].concat());
    let get = ["get", "secret", "twofactor-master-key", "-o", "jsonpath={.data.master-key}"];
    let old = BASE64.decode(in_home(&get).trim().as_bytes()).unwrap();
    let old = String::from_utf8(old).unwrap();
    let copied = Copied::of_master_key(&cluster, &MasterKey::from_base64(&old).unwrap());
    assert!(records(&cluster.redis).await.iter().all(|sealed| copied.opens(sealed)));
    let url = cluster.credentials_in(&cluster.namespace, "redis-url").unwrap();
    let load = Load::start(&cluster, vec![serving(&cluster, &cluster.namespace).await]);

    let new = BASE64.encode(&[42; 32]);
    let replace = |keys: serde_json::Value| {
        let patch = json!({ "stringData": keys }).to_string();
        let _ = in_home(&["patch", "secret", "twofactor-master-key", "--patch", &patch]);
    };
    replace(json!({ "master-key": new, "previous-master-key": old }));
    drop(operator_process);
    // A realm without a TwoFactorRealm is known only when its first user is reconciled.
    let _ = cluster.kubectl(&["delete", "tfr", "default"]);
    let restarted = operator(&cluster, &cluster.kubeconfig, 3).start().await;
    eventually(BOUND, "the old key to be unused", async || {
        restarted.process().output().contains("the previous master key is no longer needed")
    })
    .await;
    load.end().await;
    assert!(records(&cluster.redis).await.iter().all(|sealed| !copied.opens(sealed)));
    eventually(BOUND, "the old login to go", async || !may_log_in(&url).await).await;
    assert_eq!(
        Copied::from(&cluster, &cluster.namespace).realm,
        copied.realm,
        "the realm is the same"
    );

    // The operator needs the old key no longer.
    let remove = json!([{ "op": "remove", "path": "/data/previous-master-key" }]).to_string();
    let _ = in_home(&["patch", "secret", "twofactor-master-key", "--type=json", "-p", &remove]);
    drop(restarted);
    let _restarted = operator(&cluster, &cluster.kubeconfig, 3).start().await;
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    let (_, sidecar) = serving(&cluster, &cluster.namespace).await;
    sidecar.wait_accepted("dora", &cluster.seed("dora")).await;
}
