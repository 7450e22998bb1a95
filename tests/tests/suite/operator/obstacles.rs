//! Tests that what the leader meets in Secrets, rules and Redis ends nothing: it is reported, and
//! the leader begins or continues to work as soon as it is corrected, without a restart.

use serde_json::{Value, json};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user};

const PASSWORD_SECRET: &str = "twofactor-redis";

impl Cluster {
    pub(super) fn in_home(&self, args: &[&str]) -> String {
        self.server.kubectl(&[&["--namespace", &self.home], args].concat())
    }

    pub(super) fn secret_in_home(&self, name: &str, key: &str, value: &str) {
        let literal = format!("--from-literal={key}={value}");
        let _ = self.in_home(&["create", "secret", "generic", name, &literal]);
    }

    /// Starts a controller that gets the password of Redis from a Secret with this value.
    pub(super) async fn operator_with_password(&self, password: &str) -> OperatorProcess {
        self.secret_in_home(PASSWORD_SECRET, "password", password);
        let url = format!("redis://127.0.0.1:{}", self.redis.port());
        let operator = self.operator().args(["--redis-password-secret", PASSWORD_SECRET]);
        operator.env("REDIS_URL", &url).start().await
    }

    /// Waits until the metric, the log and an Event about the Secret say what the leader needs.
    pub(super) async fn wait_blocked(&self, operator: &OperatorProcess, need: &str, secret: &str) {
        let metric = format!("twofactor_leader_blocked{{need=\"{need}\"}} 1");
        eventually(BOUND, &metric, async || {
            let metrics = operator.admin().get("/metrics").await.body;
            if metrics.contains(&metric) { Ok(()) } else { Err(metrics) }
        })
        .await;
        eventually(BOUND, "an Event", async || {
            let events = self.in_home(&["get", "events", "--output=json"]);
            let events: Value = serde_json::from_str(&events).unwrap();
            let about = |event: &&Value| event["involvedObject"]["name"] == secret;
            let event = events["items"].as_array().unwrap().iter().find(about).cloned();
            event.filter(|event| event["type"] == "Warning")
        })
        .await;
        let log = operator.process().output();
        assert!(log.contains("failed to prepare the leader; trying again"), "{log}");
        assert_eq!(operator.admin().get("/readyz").await.status, 200);
    }

    /// Waits until a user is not ready because of Redis, and returns the message.
    async fn wait_for_store(&self, user: &str) -> String {
        eventually(BOUND, format_args!("{user} to wait for Redis"), async || {
            match self.ready(user) {
                Some((status, reason, message))
                    if status == "False" && reason.contains("Store") =>
                {
                    Ok(message)
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Removes the bindings of the controller's roles, and returns them as a manifest.
    fn unbind_controller(&self) -> String {
        let everywhere = format!("clusterrolebinding/{}-twofactor-operator", self.home);
        let manifests = ["rolebinding/twofactor-operator", &everywhere].map(|binding| {
            let manifest = self.in_home(&["get", binding, "--output=json"]);
            let _ = self.in_home(&["delete", binding]);
            let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
            let metadata = manifest["metadata"].as_object_mut().unwrap();
            metadata.retain(|field, _| ["name", "namespace"].contains(&field.as_str()));
            manifest
        });
        json!({ "apiVersion": "v1", "kind": "List", "items": manifests }).to_string()
    }

    /// Waits until a new user is ready, with the same process.
    async fn wait_for_work(&self, operator: &OperatorProcess, user: &str) {
        self.apply(&app_user(user));
        self.wait_ready(user).await;
        operator.process().assert_running();
        let metrics = operator.admin().get("/metrics").await.body;
        assert!(!metrics.contains("twofactor_leader_blocked{need=\"redis-password\"} 1"));
        assert!(!metrics.contains("twofactor_leader_blocked{need=\"master-key\"} 1"));
    }
}

async fn with_password() -> Cluster {
    Cluster::with_redis(RedisServer::builder().password("right").start().await).await
}

#[tokio::test]
async fn a_controller_with_an_empty_redis_password_waits_for_one() {
    let cluster = with_password().await;
    let operator = cluster.operator_with_password("").await;
    cluster.wait_blocked(&operator, "redis-password", PASSWORD_SECRET).await;
    let right = json!({ "stringData": { "password": "right" } }).to_string();
    let _ = cluster.in_home(&["patch", "secret", PASSWORD_SECRET, "--patch", &right]);
    cluster.wait_for_work(&operator, "carol").await;
}

#[tokio::test]
async fn a_controller_with_a_wrong_redis_password_works_as_soon_as_redis_accepts_it() {
    let cluster = with_password().await;
    let operator = cluster.operator_with_password("wrong").await;
    cluster.apply(&app_user("carol"));
    let message = cluster.wait_for_store("carol").await;
    assert!(!message.contains("wrong") && !message.contains("right"), "{message}");
    let metrics = operator.admin().get("/metrics").await.body;
    assert!(metrics.contains("\ntwofactor_store_up 0\n"), "{metrics}");
    let log = operator.process().output();
    assert!(
        log.contains("failed to reach Redis, because it refuses the operator's login"),
        "{log}"
    );
    let () = cluster.redis.ask(&["CONFIG", "SET", "requirepass", "wrong"]).await;
    cluster.wait_for_work(&operator, "dora").await;
    cluster.wait_ready("carol").await;
}

#[tokio::test]
async fn a_controller_with_a_damaged_master_key_waits_and_does_not_replace_it() {
    let cluster = Cluster::start().await;
    cluster.secret_in_home("twofactor-master-key", "master-key", "damaged");
    let operator = cluster.operator().start().await;
    cluster.wait_blocked(&operator, "master-key", "twofactor-master-key").await;
    let kept = cluster.in_home(&["get", "secret", "twofactor-master-key", "--output=json"]);
    assert!(kept.contains("ZGFtYWdlZA=="), "the damaged key is kept for the administrator");
    // The administrator restores the key from a backup: here, a new one.
    let key = data_encoding::BASE64.encode(&[7; 32]);
    let patch = json!({ "stringData": { "master-key": key } }).to_string();
    let _ = cluster.in_home(&["patch", "secret", "twofactor-master-key", "--patch", &patch]);
    cluster.wait_for_work(&operator, "carol").await;
}

#[tokio::test]
async fn a_lost_master_key_is_reported_and_not_replaced() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.wait_for_work(&operator, "carol").await;
    drop(operator);
    let get = ["get", "secret", "twofactor-master-key", "--output=json"];
    let mut saved: Value = serde_json::from_str(&cluster.in_home(&get)).unwrap();
    // Also if nothing but a user's Secret is left.
    for lost in [&["twofactor-master-key"][..], &["twofactor-keys"]] {
        for name in lost {
            let _ = cluster.in_home(&["delete", "secret", name]);
        }
        let operator = cluster.operator().start().await;
        cluster.wait_blocked(&operator, "master-key", "twofactor-master-key").await;
        let log = operator.process().output();
        assert!(log.contains("is lost"), "{log}");
        let secrets = cluster.in_home(&["get", "secrets", "--output=name"]);
        assert!(!secrets.contains("twofactor-master-key"), "{secrets}");
    }
    // Another key than the one of the fingerprint is not taken for it.
    saved["metadata"] = json!({ "name": "twofactor-master-key" });
    let folder = twofactor_tests::scratch::folder("master-key");
    let saved_key = folder.path().join("secret.json");
    std::fs::write(&saved_key, saved.to_string()).unwrap();
    let _ = cluster.in_home(&["apply", "-f", saved_key.to_str().unwrap()]);
    let operator = cluster.operator().start().await;
    cluster.wait_for_work(&operator, "dora").await;
    drop(operator);
    let key = data_encoding::BASE64.encode(&[7; 32]);
    let patch = json!({ "stringData": { "master-key": key } }).to_string();
    let _ = cluster.in_home(&["patch", "secret", "twofactor-master-key", "--patch", &patch]);
    let operator = cluster.operator().start().await;
    cluster.wait_blocked(&operator, "master-key", "twofactor-master-key").await;
    assert!(operator.process().output().contains("does not hold the master key"));
    let _ = cluster.in_home(&["apply", "-f", saved_key.to_str().unwrap()]);
    cluster.wait_for_work(&operator, "erna").await;
}

#[tokio::test]
async fn a_controller_without_permissions_waits_for_them() {
    let cluster = Cluster::start().await;
    let bindings = cluster.unbind_controller();
    let operator = cluster.operator().launch();
    eventually(BOUND, "the log to name the permission", async || {
        let log = operator.process().output();
        if log.contains("waiting to lead") && log.contains("403") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(operator.admin().get("/livez").await.status, 200);
    let folder = twofactor_tests::scratch::folder("bindings");
    let file = folder.path().join("bindings.json");
    std::fs::write(&file, bindings).unwrap();
    let _ = cluster.server.kubectl(&["create", "-f", file.to_str().unwrap()]);
    cluster.wait_for_work(&operator, "carol").await;
}

#[tokio::test]
async fn a_controller_whose_redis_has_a_full_disk_works_as_soon_as_there_is_space() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.wait_for_work(&operator, "carol").await;
    let redis = &cluster.redis;
    let folder: Vec<String> = redis.ask(&["CONFIG", "GET", "dir"]).await;
    let () = redis.ask(&["CONFIG", "SET", "save", "3600 1"]).await;
    // A snapshot cannot be written over a folder, as it cannot be written to a full disk.
    let in_the_way = std::path::Path::new(&folder[1]).join("dump.rdb");
    std::fs::create_dir(&in_the_way).unwrap();
    let save = async |status: &str| {
        eventually(BOUND, format_args!("a snapshot: {status}"), async || {
            let _: Result<String, _> =
                redis::cmd("BGSAVE").query_async(&mut redis.connect().await).await;
            let info: String = redis.ask(&["INFO", "persistence"]).await;
            info.contains(&format!("rdb_last_bgsave_status:{status}"))
        })
        .await;
    };
    save("err").await;
    cluster.apply(&app_user("dora"));
    let _ = cluster.wait_for_store("dora").await;
    operator.process().assert_running();
    std::fs::remove_dir(&in_the_way).unwrap();
    save("ok").await;
    cluster.wait_ready("dora").await;
    cluster.wait_for_work(&operator, "erin").await;
}

#[tokio::test]
async fn a_controller_says_that_redis_has_too_many_clients() {
    let cluster = Cluster::start().await;
    let mut administrator = cluster.redis.connect().await;
    let mut limit = async |clients: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxclients").arg(clients);
        set.exec_async(&mut administrator).await.unwrap();
    };
    limit("1").await;
    let operator = cluster.operator().start().await;
    let metric = "twofactor_store_failures_total{reason=\"too-many-clients\"}";
    eventually(BOUND, metric, async || {
        let metrics = operator.admin().get("/metrics").await.body;
        if metrics.contains(metric) { Ok(()) } else { Err(metrics) }
    })
    .await;
    eventually(BOUND, "the log to say so", async || {
        let log = operator.process().output();
        if log.contains("because it has too many clients") { Ok(()) } else { Err(log) }
    })
    .await;
    limit("1000").await;
    cluster.wait_for_work(&operator, "carol").await;
}
