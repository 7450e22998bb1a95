//! Starts a real API server: etcd, kube-apiserver and the controllers that a test needs. Writes
//! kubeconfig files for it, and can kill and restart it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use data_encoding::BASE64;
use reqwest::{Certificate, Identity};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};
use tokio::sync::OnceCell;

use crate::certificates::{Authority, Leaf, key_pair};
use crate::process::{self, Launch, Process};
use crate::wait::eventually;
use crate::{http, ports, scratch, tools};

/// Timeout for a start: seconds on an idle machine, longer if it compiles at the same time.
const START: Duration = Duration::from_mins(2);

const SERVICE_ACCOUNT_CONTROLLER: &str = "serviceaccount-controller";

/// Options for a server that is about to start.
#[derive(Clone, Debug, Default)]
pub struct ApiServerBuilder {
    controllers: Vec<String>,
    args: Vec<String>,
}

impl ApiServerBuilder {
    /// Runs kube-controller-manager with these controllers, by their full names
    /// (`garbage-collector-controller`).
    ///
    /// Pods get service accounts only where `serviceaccount-controller` is among them: without it
    /// no namespace has one, and the API server would refuse every pod.
    #[must_use]
    pub fn controllers<'a>(mut self, controllers: impl IntoIterator<Item = &'a str>) -> Self {
        self.controllers.extend(controllers.into_iter().map(str::to_owned));
        self
    }

    /// Additional arguments of `kube-apiserver`.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// Starts everything, and returns when the server is ready and has its first namespaces.
    pub async fn start(self) -> ApiServer {
        let folder = scratch::folder("apiserver");
        let files = Arc::new(Files::write(folder.path()));
        let ports = Ports::free();
        let etcd = etcd(folder.path().join(ETCD), &ports).start();
        self.start_with(etcd, ports, files, folder).await
    }

    async fn start_with(
        self,
        etcd: Process,
        ports: Ports,
        files: Arc<Files>,
        folder: TempDir,
    ) -> ApiServer {
        let apiserver = Mutex::new(Arc::new(self.launch(&files, &ports).start()));
        let server = ApiServer {
            controllers: Mutex::default(),
            apiserver,
            etcd,
            reader: files.client(),
            options: self,
            ports,
            files,
            folder,
        };
        server.write_kubeconfig(ADMIN, &server.files.admin_user());
        server.wait_until_ready().await;
        let controllers: Vec<_> = server.options.controllers.iter().map(String::as_str).collect();
        if !controllers.is_empty() {
            server.start_controllers(controllers).await;
        }
        server
    }

    fn has_service_accounts(&self) -> bool {
        self.controllers.iter().any(|name| name == SERVICE_ACCOUNT_CONTROLLER)
    }

    fn launch(&self, files: &Files, ports: &Ports) -> Launch {
        let launch = Launch::new(tools::find_kubernetes("kube-apiserver"))
            // It would wait for open watches before it exits, which no test needs.
            .patience(Duration::ZERO)
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // A loopback address is not allowed as an endpoint, and no test uses endpoints.
            .arg("--endpoint-reconciler-type=none")
            .args([
                format!("--secure-port={}", ports.api),
                format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
                "--etcd-prefix=/registry".to_owned(),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--allow-privileged=true".to_owned(),
            ])
            .args([
                flag("tls-cert-file", &files.path(SERVER_CERTIFICATE)),
                flag("tls-private-key-file", &files.path(SERVER_KEY)),
                flag("client-ca-file", &files.path(CA)),
                flag("service-account-key-file", &files.path(SIGNING_PUBLIC)),
                flag("service-account-signing-key-file", &files.path(SIGNING_KEY)),
            ]);
        let launch = if self.has_service_accounts() {
            launch
        } else {
            launch.arg("--disable-admission-plugins=ServiceAccount")
        };
        launch.args(&self.args)
    }
}

fn etcd(data: PathBuf, ports: &Ports) -> Launch {
    let (client, peer) =
        (format!("http://127.0.0.1:{}", ports.etcd), format!("http://127.0.0.1:{}", ports.peer));
    Launch::new(tools::find_kubernetes("etcd"))
        .patience(Duration::ZERO)
        .arg("--data-dir")
        .arg(data)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        // Its data is not needed after the test.
        .args(["--unsafe-no-fsync", "--log-level", "warn"])
}

#[derive(Debug)]
struct Ports {
    etcd: u16,
    peer: u16,
    api: u16,
}

impl Ports {
    fn free() -> Self {
        Self { etcd: ports::free_port(), peer: ports::free_port(), api: ports::free_port() }
    }
}

/// The folder with the data of etcd.
const ETCD: &str = "etcd";
const ADMIN: &str = "admin";
const CA: &str = "ca.pem";
const SERVER_CERTIFICATE: &str = "server.pem";
const SERVER_KEY: &str = "server.key";
const SIGNING_KEY: &str = "service-accounts.key";
const SIGNING_PUBLIC: &str = "service-accounts.pub";

/// The certificates and keys on disk, and the authority that signs more of them.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    authority: Authority,
    admin: Leaf,
}

impl Files {
    fn write(folder: &Path) -> Self {
        let authority = Authority::new("kubernetes");
        let server =
            authority.server(&["localhost", "127.0.0.1", "kubernetes.default.svc", "10.96.0.1"]);
        let admin = authority.client("admin", "system:masters");
        let (signing_key, signing_public) = key_pair();
        let files = Self { folder: folder.to_owned(), authority, admin };
        files.save(CA, &files.authority.pem());
        files.save(SERVER_CERTIFICATE, &server.certificate);
        files.save(SERVER_KEY, &server.key);
        files.save(SIGNING_KEY, &signing_key);
        files.save(SIGNING_PUBLIC, &signing_public);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn save(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        path
    }

    fn admin_user(&self) -> Value {
        user_with(&self.admin)
    }

    /// An HTTP client with the administrator's certificate.
    fn client(&self) -> reqwest::Client {
        let Leaf { certificate, key } = &self.admin;
        let identity = Identity::from_pem(format!("{certificate}{key}").as_bytes());
        let authority = Certificate::from_pem(self.authority.pem().as_bytes());
        http::client()
            .tls_certs_only([authority.expect("the CA")])
            .identity(identity.expect("the client certificate"))
            .build()
            .expect("an HTTP client")
    }
}

fn user_with(leaf: &Leaf) -> Value {
    json!({ "client-certificate-data": base64(&leaf.certificate), "client-key-data": base64(&leaf.key) })
}

fn base64(text: &str) -> String {
    BASE64.encode(text.as_bytes())
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// An API server on a loopback port.
#[derive(Debug)]
pub struct ApiServer {
    // Fields are dropped in this order, so the folder is removed last.
    controllers: Mutex<Option<Process>>,
    apiserver: Mutex<Arc<Process>>,
    etcd: Process,
    reader: reqwest::Client,
    options: ApiServerBuilder,
    ports: Ports,
    files: Arc<Files>,
    folder: TempDir,
}

impl ApiServer {
    /// A server without controllers.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with options.
    #[must_use]
    pub fn builder() -> ApiServerBuilder {
        ApiServerBuilder::default()
    }

    /// The server that all tests of this binary share, without controllers. Each test uses its own
    /// namespaces, and no test kills it.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a copy of this server beside it, from a snapshot of the volume of its etcd, as a
    /// restored backup is: with the same objects, UIDs, certificates and service accounts. Both go
    /// on independently.
    pub async fn start_copy(&self) -> Self {
        let folder = scratch::folder("apiserver-copy");
        let data = folder.path().join(ETCD);
        self.etcd.pause().await;
        let copied =
            Command::new("cp").arg("-a").arg(self.folder.path().join(ETCD)).arg(&data).status();
        self.etcd.resume();
        assert!(copied.expect("cp").success(), "cannot copy the data of etcd");
        let ports = Ports::free();
        let etcd = etcd(data, &ports).arg("--force-new-cluster").start();
        let files = Arc::clone(&self.files);
        self.options.clone().start_with(etcd, ports, files, folder).await
    }

    /// `https://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api)
    }

    /// The kubeconfig of an administrator who may do anything.
    #[must_use]
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.kubeconfig(ADMIN)
    }

    /// A kubeconfig for a user with a client certificate, in one group.
    #[must_use]
    pub fn kubeconfig_for_user(&self, name: &str, group: &str) -> PathBuf {
        self.write_kubeconfig(
            &format!("user-{name}"),
            &user_with(&self.files.authority.client(name, group)),
        )
    }

    /// A kubeconfig with a token (valid for an hour) for an existing service account.
    #[must_use]
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", name, "--namespace", namespace]);
        self.write_kubeconfig(
            &format!("account-{namespace}-{name}"),
            &json!({ "token": token.trim() }),
        )
    }

    /// Runs `kubectl` as administrator and returns its standard output; panics if it fails.
    #[must_use]
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|error| panic!("kubectl {args:?} failed: {error}"))
    }

    /// Runs `kubectl` as administrator and returns its standard output.
    ///
    /// # Errors
    /// The exit status and the output, if the program failed.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        let kubeconfig = flag("kubeconfig", &self.kubeconfig_path());
        process::try_run(
            tools::find_kubernetes("kubectl"),
            &[&[kubeconfig.as_str()], args].concat(),
        )
    }

    /// An object as administrator, or `None` if it cannot be read. Probes use this instead of
    /// `kubectl get`, because a `kubectl` takes a tenth of a second of a processor each time.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<Value> {
        static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
            let builder = &mut runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().expect("a runtime")
        });
        let request = self.reader.get(self.url() + path);
        let (sender, receiver) = mpsc::channel();
        RUNTIME.spawn(async move {
            let response = request.send().await.and_then(reqwest::Response::error_for_status);
            let text = match response {
                Ok(response) => response.text().await.ok(),
                Err(_) => None,
            };
            // The receiver is there: it waits below.
            sender.send(text).ok();
        });
        serde_json::from_str(&receiver.recv().ok()??).ok()
    }

    /// The certificate authority of the server, as a PEM file.
    #[must_use]
    pub fn ca_path(&self) -> PathBuf {
        self.files.path(CA)
    }

    /// The process of etcd.
    #[must_use]
    pub fn etcd(&self) -> &Process {
        &self.etcd
    }

    /// The current process of the API server.
    #[must_use]
    pub fn apiserver(&self) -> Arc<Process> {
        Arc::clone(&self.apiserver.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Kills the API server; etcd and the controllers keep running.
    pub fn kill_apiserver(&self) {
        self.apiserver().kill();
    }

    /// Starts the API server again on the same port with the same data, and kills it first if it
    /// still runs.
    pub async fn restart_apiserver(&self) {
        self.kill_apiserver();
        let process = Arc::new(self.options.launch(&self.files, &self.ports).start());
        *self.apiserver.lock().unwrap_or_else(PoisonError::into_inner) = process;
        self.wait_until_ready().await;
    }

    /// Replaces the running controllers by these. Start the garbage collector after the CRDs exist,
    /// because it looks for new kinds of objects only every 30 seconds.
    pub async fn start_controllers<'a>(&self, controllers: impl IntoIterator<Item = &'a str>) {
        let names = controllers.into_iter().collect::<Vec<_>>().join(",");
        self.stop_controllers();
        let process = Launch::new(tools::find_kubernetes("kube-controller-manager"))
            .patience(Duration::ZERO)
            .args(["--leader-elect=false", "--secure-port=0", &format!("--controllers={names}")])
            .args([
                flag("kubeconfig", &self.kubeconfig_path()),
                flag("root-ca-file", &self.files.path(CA)),
                flag("service-account-private-key-file", &self.files.path(SIGNING_KEY)),
            ])
            .start();
        *self.running_controllers() = Some(process);
        if self.options.has_service_accounts() {
            self.wait_for("/api/v1/namespaces/default/serviceaccounts/default").await;
        }
    }

    /// Stops the controllers.
    pub fn stop_controllers(&self) {
        *self.running_controllers() = None;
    }

    fn running_controllers(&self) -> MutexGuard<'_, Option<Process>> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_until_ready(&self) {
        self.wait_for("/readyz").await;
        for namespace in ["default", "kube-system"] {
            self.wait_for(&format!("/api/v1/namespaces/{namespace}")).await;
        }
    }

    async fn wait_for(&self, path: &str) {
        let client = self.files.client();
        let (url, apiserver) = (self.url() + path, self.apiserver());
        eventually(START, format_args!("{path} of the API server"), async || {
            apiserver.assert_running();
            self.etcd.assert_running();
            if let Some(controllers) = &*self.running_controllers() {
                controllers.assert_running();
            }
            let response = client.get(&url).send().await.map_err(|error| format!("{error:?}"))?;
            if response.status().is_success() { Ok(()) } else { Err(response.status().to_string()) }
        })
        .await;
    }

    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.kubeconfig"))
    }

    /// Writes JSON, which is also YAML.
    fn write_kubeconfig(&self, name: &str, user: &Value) -> PathBuf {
        let cluster = json!({ "server": self.url(), "certificate-authority-data": base64(&self.files.authority.pem()) });
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
            "current-context": "test",
        });
        let path = self.kubeconfig(name);
        fs::write(&path, kubeconfig.to_string()).expect("to write a kubeconfig");
        path
    }
}
