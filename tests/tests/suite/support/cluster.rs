//! Prepares a namespace of users, a Redis and an operator with its own RBAC rules on an API server.
//! Has short methods for what an administrator does with `kubectl`, and for reading the results.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use data_encoding::BASE64;
use redis::AsyncCommands;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::http::{ApiClient, Reply};
use twofactor_tests::operator::{OperatorBuilder, OperatorProcess};
use twofactor_tests::process::run;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::sidecar::{SidecarBuilder, SidecarProcess};
use twofactor_tests::wait::{eventually, eventually_every};
use twofactor_tests::{scratch, tools};

/// Timeout for anything that the operator does at once. It is generous, because many tests share
/// the processors; tests of a promised time measure that time themselves.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// Service account of the controller, and name of its roles.
const ACCOUNT: &str = "twofactor-operator";
/// Service account of admission, and name of its roles.
pub(crate) const ADMISSION_ACCOUNT: &str = "twofactor-operator-admission";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// An API server that the tests share, or one for a single test.
pub(crate) enum Server {
    Shared(&'static ApiServer),
    Own(Arc<ApiServer>),
}

impl std::ops::Deref for Server {
    type Target = ApiServer;

    fn deref(&self) -> &ApiServer {
        match self {
            Self::Shared(server) => server,
            Self::Own(server) => server,
        }
    }
}

/// A namespace of users, with everything around it.
pub(crate) struct Cluster {
    pub(crate) server: Server,
    pub(crate) redis: RedisServer,
    /// Namespace of the users.
    pub(crate) namespace: String,
    /// Namespace of the operator's own Secrets.
    pub(crate) home: String,
    pub(crate) kubeconfig: PathBuf,
}

fn root(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

impl Cluster {
    /// On the shared API server, which has no controllers.
    pub(crate) async fn start() -> Self {
        Self::with_redis(RedisServer::start().await).await
    }

    pub(crate) async fn with_redis(redis: RedisServer) -> Self {
        static PREPARED: OnceCell<()> = OnceCell::const_new();
        let server = ApiServer::shared().await;
        PREPARED.get_or_init(async || prepare(server)).await;
        Self::new(Server::Shared(server), redis)
    }

    /// On a separate API server, which the test may kill and which may have controllers.
    pub(crate) async fn on_own_server(controllers: &[&str]) -> Self {
        Self::on_own_server_with(RedisServer::start().await, controllers).await
    }

    pub(crate) async fn on_own_server_with(redis: RedisServer, controllers: &[&str]) -> Self {
        let cluster = Self::on(ApiServer::start().await, redis);
        if !controllers.is_empty() {
            cluster.server.start_controllers(controllers.iter().copied()).await;
        }
        cluster
    }

    /// On an API server with options of its own.
    pub(crate) fn on(server: ApiServer, redis: RedisServer) -> Self {
        prepare(&server);
        Self::new(Server::Own(Arc::new(server)), redis)
    }

    /// Another namespace of users with another installation, on the same API server.
    pub(crate) async fn beside(&self) -> Self {
        let server = match &self.server {
            Server::Shared(server) => Server::Shared(server),
            Server::Own(server) => Server::Own(server.clone()),
        };
        Self::new(server, RedisServer::start().await)
    }

    fn new(server: Server, redis: RedisServer) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (namespace, home) = (format!("people-{number}"), format!("home-{number}"));
        for name in [&namespace, &home] {
            let _ = server.kubectl(&["create", "namespace", name]);
        }
        let mut cluster = Self { server, redis, namespace, home, kubeconfig: PathBuf::new() };
        cluster.bind_accounts();
        cluster
    }

    /// Creates the accounts of the operator in its namespace, with the rules of a real
    /// installation, bound there and for cluster-wide objects.
    pub(crate) fn bind_accounts(&mut self) {
        let (server, home) = (&self.server, &self.home);
        let role =
            server.kubectl(&["apply", "--namespace", home, "-f", &root("operator/rbac.yaml")]);
        assert!(role.contains("role"), "{role}");
        for account in [ACCOUNT, ADMISSION_ACCOUNT] {
            let in_home = |args: &[&str]| {
                let _ = server.kubectl(&[&["--namespace", home, "create"], args].concat());
            };
            in_home(&["serviceaccount", account]);
            let name = format!("{home}-{account}");
            let subject = format!("--serviceaccount={home}:{account}");
            let role = format!("--clusterrole={account}");
            in_home(&["clusterrolebinding", &name, &role, &subject]);
            in_home(&["rolebinding", account, &format!("--role={account}"), &subject]);
        }
        self.kubeconfig = server.kubeconfig_for_service_account(home, ACCOUNT);
    }

    /// An operator for this namespace only.
    pub(crate) fn operator(&self) -> OperatorBuilder {
        self.operator_with(&self.kubeconfig)
    }

    pub(crate) fn operator_with(&self, kubeconfig: &std::path::Path) -> OperatorBuilder {
        OperatorProcess::builder(kubeconfig)
            .args(["--namespace", &self.namespace, "--operator-namespace", &self.home])
            .env("REDIS_URL", &self.redis.url())
            // The same name each time, like a container that restarts in its pod.
            .env("POD_NAME", "operator-0")
    }

    /// `kubectl` in the users' namespace.
    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.server.kubectl(&[&["--namespace", &self.namespace], args].concat())
    }

    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        self.server.try_kubectl(&[&["--namespace", &self.namespace], args].concat())
    }

    /// Applies the policies for the operator's accounts, which a test has removed.
    pub(crate) fn apply_policies(&self) {
        let _ = self.server.kubectl(&["apply", "-f", &root("operator/policy.yaml")]);
    }

    /// `kubectl apply` of a text.
    pub(crate) fn apply(&self, manifest: &str) {
        self.try_apply(manifest, &[]).unwrap_or_else(|error| panic!("{error}\n{manifest}"));
    }

    /// `kubectl apply` of a text whose objects name their namespaces.
    pub(crate) fn apply_anywhere(&self, manifest: &str) {
        let folder = scratch::folder("apply");
        let path = folder.path().join("manifest.yaml");
        fs::write(&path, manifest).unwrap();
        let _ = self.server.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    }

    pub(crate) fn try_apply(&self, manifest: &str, more: &[&str]) -> Result<String, String> {
        let folder = scratch::folder("apply");
        let path = folder.path().join("manifest.yaml");
        fs::write(&path, manifest).unwrap();
        self.try_kubectl(&[&["apply", "-f", path.to_str().unwrap()], more].concat())
    }

    /// An object in the users' namespace, by the short name of its kind.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.get_in(&self.namespace, kind, name)
    }

    fn get_in(&self, namespace: &str, kind: &str, name: &str) -> Option<Value> {
        let (group, kinds) = match kind {
            "tfu" => ("apis/twofactor.fountainai.io/v1alpha1", "twofactorusers"),
            "tfr" => ("apis/twofactor.fountainai.io/v1alpha1", "twofactorrealms"),
            "secret" => ("api/v1", "secrets"),
            "configmap" => ("api/v1", "configmaps"),
            _ => panic!("the tests read no {kind}"),
        };
        self.server.read(&format!("/{group}/namespaces/{namespace}/{kinds}/{name}"))
    }

    /// The condition `Ready` of a user: status, reason and message.
    pub(crate) fn ready(&self, user: &str) -> Option<(String, String, String)> {
        self.condition(user, "Ready")
    }

    pub(crate) fn condition(&self, user: &str, kind: &str) -> Option<(String, String, String)> {
        self.condition_of("tfu", user, kind)
    }

    /// A condition of any object, if it is about the current generation.
    pub(crate) fn condition_of(
        &self,
        resource: &str,
        name: &str,
        kind: &str,
    ) -> Option<(String, String, String)> {
        let object = self.get(resource, name)?;
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let condition = conditions.into_iter().find(|condition| condition["type"] == kind)?;
        if condition["observedGeneration"].as_i64()? < object["metadata"]["generation"].as_i64()? {
            return None;
        }
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    pub(crate) async fn wait_ready(&self, user: &str) {
        eventually(BOUND, format_args!("{user} to be ready"), async || match self.ready(user) {
            Some((status, ..)) if status == "True" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// Waits until a user is not ready for this reason, and returns the message.
    pub(crate) async fn wait_not_ready(&self, user: &str, reason: &str) -> String {
        self.wait_condition(user, "Ready", "False", reason).await
    }

    /// Waits until a condition of a user has this status and reason, and returns the message.
    pub(crate) async fn wait_condition(
        &self,
        user: &str,
        kind: &str,
        status: &str,
        reason: &str,
    ) -> String {
        let what = format_args!("{kind} of {user} to be {status}: {reason}");
        eventually(BOUND, what, async || match self.condition(user, kind) {
            Some((found, why, message)) if found == status && why == reason => Ok(message),
            other => Err(format!("{other:?}")),
        })
        .await
    }

    /// A value of a Secret.
    pub(crate) fn secret(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        self.secret_in(&self.namespace, name, key)
    }

    /// A value of a Secret in any namespace.
    pub(crate) fn secret_in(&self, namespace: &str, name: &str, key: &str) -> Option<Vec<u8>> {
        let secret = self.get_in(namespace, "secret", name)?;
        Some(BASE64.decode(secret["data"][key].as_str()?.as_bytes()).unwrap())
    }

    /// A user's seed in base32, as their Secret holds it.
    pub(crate) fn seed(&self, user: &str) -> String {
        String::from_utf8(self.secret(&format!("{user}-totp"), "secret").unwrap()).unwrap()
    }

    /// All keys in Redis except those of the realm itself.
    pub(crate) async fn user_keys(&self) -> Vec<String> {
        let keys: Vec<String> = self.redis.connect().await.keys("*").await.unwrap();
        let is_the_realms =
            |key: &String| key.ends_with(":meta") || key.ends_with(":sent") || is_realm_record(key);
        keys.into_iter().filter(|key| !is_the_realms(key)).collect()
    }

    pub(crate) async fn wait_for_no_user_keys(&self) {
        eventually(BOUND, "no key of a user to be left", async || {
            let keys = self.user_keys().await;
            if keys.is_empty() { Ok(()) } else { Err(format!("{keys:?}")) }
        })
        .await;
    }

    /// A sidecar with the credentials that the operator wrote.
    pub(crate) async fn sidecar(&self) -> Sidecar {
        self.sidecar_in(&self.namespace).await
    }

    /// A sidecar in another namespace, with the credentials that the operator wrote there.
    pub(crate) async fn sidecar_in(&self, namespace: &str) -> Sidecar {
        self.sidecar_of(&self.namespace, namespace).await
    }

    /// A sidecar of any realm in a namespace, with the credentials that the operator wrote there.
    pub(crate) async fn sidecar_of(&self, realm: &str, namespace: &str) -> Sidecar {
        self.start_sidecar(SidecarProcess::builder(), realm, namespace).await
    }

    /// A sidecar of the previous release, with the credentials that the operator wrote.
    pub(crate) async fn sidecar_of_previous_release(&self) -> Sidecar {
        let builder = SidecarProcess::of_previous_release();
        self.start_sidecar(builder, &self.namespace, &self.namespace).await
    }

    async fn start_sidecar(
        &self,
        builder: SidecarBuilder,
        realm: &str,
        namespace: &str,
    ) -> Sidecar {
        self.ask_for(realm, namespace);
        let folder = scratch::folder("credentials");
        let what = format!("the credentials in {namespace}");
        eventually(BOUND, what, async || self.credentials_of(realm, namespace, "caller")).await;
        self.mount_of(realm, namespace, folder.path());
        let path = folder.path().to_str().unwrap().to_owned();
        let process = builder.args(["serve", "--credentials", &path]).start().await;
        Sidecar { api: process.api(), process, folder }
    }

    /// Writes the credentials of this realm in a namespace to a folder, as the kubelet does.
    pub(crate) fn mount(&self, namespace: &str, folder: &Path) {
        self.mount_of(&self.namespace, namespace, folder);
    }

    fn mount_of(&self, realm: &str, namespace: &str, folder: &Path) {
        let name = format!("twofactor-{realm}");
        let secret = self.get_in(namespace, "secret", &name).unwrap();
        let data = secret["data"].as_object().unwrap();
        for (key, value) in data {
            let bytes = BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap();
            let path = folder.join(key);
            if fs::read(&path).ok().as_ref() != Some(&bytes) {
                let new = folder.join(".new");
                fs::write(&new, bytes).unwrap();
                fs::rename(new, path).unwrap();
            }
        }
        for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            if !data.contains_key(file.file_name().to_str().unwrap()) {
                fs::remove_file(file.path()).unwrap();
            }
        }
    }

    /// Lets a pod in a namespace ask for the credentials of this realm. No pod runs, because there
    /// is no kubelet.
    pub(crate) fn ask_from(&self, namespace: &str) {
        self.ask_for(&self.namespace, namespace);
    }

    /// Lets a pod in a namespace ask for the credentials of any realm.
    pub(crate) fn ask_for(&self, realm: &str, namespace: &str) {
        let folder = scratch::folder("pod");
        let path = folder.path().join("pod.json");
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("asks-{realm}"),
                "labels": { "twofactor.fountainai.io/inject": "true" },
                "annotations": {
                    "twofactor.fountainai.io/realm": realm,
                    "twofactor.fountainai.io/injected": env!("CARGO_PKG_VERSION"),
                },
            },
            "spec": { "containers": [{ "name": "app", "image": "app" }] },
        });
        fs::write(&path, pod.to_string()).unwrap();
        let path = path.to_str().unwrap();
        let _ = self.server.kubectl(&["apply", "--namespace", namespace, "-f", path]);
    }

    /// Removes the pod of [`Cluster::ask_from`].
    pub(crate) fn stop_asking_from(&self, namespace: &str) {
        let pod = format!("asks-{}", self.namespace);
        let delete =
            ["delete", "pod", &pod, "--namespace", namespace, "--grace-period=0", "--force"];
        let _ = self.server.kubectl(&delete);
    }

    /// A value of the credentials of this realm in a namespace.
    pub(crate) fn credentials_in(&self, namespace: &str, key: &str) -> Option<String> {
        self.credentials_of(&self.namespace, namespace, key)
    }

    /// A value of the credentials of any realm in a namespace.
    pub(crate) fn credentials_of(&self, realm: &str, namespace: &str, key: &str) -> Option<String> {
        let secret = self.get_in(namespace, "secret", &format!("twofactor-{realm}"))?;
        let bytes = BASE64.decode(secret["data"][key].as_str()?.as_bytes()).unwrap();
        Some(String::from_utf8(bytes).unwrap())
    }

    /// Another namespace, named after the users' one.
    pub(crate) fn another_namespace(&self, prefix: &str) -> String {
        let name = format!("{prefix}-{}", self.namespace);
        let _ = self.server.kubectl(&["create", "namespace", &name]);
        name
    }
}

/// The realm's record has the realm's id as its tag, a user's a pseudonym of 32 hexadecimal digits.
fn is_realm_record(key: &str) -> bool {
    let tag = key.split(['{', '}']).nth(1).unwrap_or_default();
    !(tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Applies the CRDs, the operator's RBAC rules and its policies.
fn prepare(server: &ApiServer) {
    let _ = server.kubectl(&["apply", "-f", &root("crds")]);
    let _ = server.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "-f",
        &root("crds"),
    ]);
    let _ = server.kubectl(&["apply", "--namespace", "default", "-f", &root("operator/rbac.yaml")]);
    let _ = server.kubectl(&["apply", "-f", &root("operator/policy.yaml")]);
}

/// A running sidecar.
pub(crate) struct Sidecar {
    pub(crate) api: ApiClient,
    pub(crate) process: SidecarProcess,
    folder: TempDir,
}

impl Sidecar {
    /// Its health and metrics.
    pub(crate) fn admin(&self) -> ApiClient {
        self.process.admin()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.process().output()
    }

    /// The folder with its credentials.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Verifies the code that an authenticator shows for a seed, by the clock of this machine.
    pub(crate) async fn verify_seed(&self, username: &str, seed: &str) -> Reply {
        self.api.verify(username, &code_of(seed)).await
    }

    /// Waits until the authenticator's code is accepted: after an import or a loss, that takes up
    /// to a minute.
    pub(crate) async fn wait_accepted(&self, username: &str, seed: &str) {
        let (pause, bound) = (Duration::from_millis(100), Duration::from_secs(100));
        let what = format_args!("a code of {username} to be accepted");
        eventually_every(pause, bound, what, async || {
            let reply = self.verify_seed(username, seed).await;
            match reply.status {
                200 => Ok(()),
                400 | 503 => Err(reply.body),
                status => panic!("{status}: {}", reply.body),
            }
        })
        .await;
    }
}

/// The code of another implementation, `oathtool`.
pub(crate) fn code_of(seed: &str) -> String {
    run(tools::find("oathtool"), &["--totp", "--base32", seed]).trim().to_owned()
}

/// A user with an authenticator app.
pub(crate) fn app_user(name: &str) -> String {
    user(name, "deliveryMethod: app")
}

pub(crate) fn user(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata:\n  name: {name}\nspec:\n  {spec}\n---\n"
    )
}
