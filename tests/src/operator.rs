//! Starts a program of the operator's binary, controller or admission, with a kubeconfig and
//! options, and gives access to its health port and its log.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::http::ApiClient;
use crate::process::{Launch, Process};
use crate::{ports, previous, tools};

const START: Duration = Duration::from_secs(30);

/// Options for an operator that is about to start.
#[derive(Debug)]
pub struct OperatorBuilder {
    launch: Launch,
    admin_host: &'static str,
}

impl OperatorBuilder {
    /// Additional arguments.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.launch = self.launch.args(args);
        self
    }

    /// Adds a variable to the environment, which is otherwise almost empty.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.launch = self.launch.env(name, value);
        self
    }

    /// With a wall clock that is behind by this number of seconds.
    #[must_use]
    pub fn clock_behind_by(self, seconds: u64) -> Self {
        self.env("LD_PRELOAD", &tools::libfaketime().display().to_string())
            .env("FAKETIME", &format!("-{seconds}"))
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Listens for probes and scrapes on every address, as in a pod.
    #[must_use]
    pub fn as_in_a_pod(mut self) -> Self {
        self.admin_host = "0.0.0.0";
        self
    }

    /// Starts the operator without waiting for it, for tests in which it fails to start.
    #[must_use]
    pub fn launch(self) -> OperatorProcess {
        let admin_port = ports::free_port();
        let process = self
            .launch
            .args(["--admin-listen".to_owned(), format!("{}:{admin_port}", self.admin_host)])
            .start();
        OperatorProcess { process, admin_port }
    }

    /// Starts the operator, and returns when it is ready.
    pub async fn start(self) -> OperatorProcess {
        let operator = self.launch();
        operator.admin().wait_until_ok("/readyz", &operator.process, START).await;
        operator
    }
}

/// A running operator.
#[derive(Debug)]
pub struct OperatorProcess {
    process: Process,
    admin_port: u16,
}

impl OperatorProcess {
    /// A controller that talks to the API server of `kubeconfig`.
    #[must_use]
    pub fn builder(kubeconfig: &Path) -> OperatorBuilder {
        Self::program("controller", kubeconfig)
    }

    /// A replica of admission that talks to the API server of `kubeconfig`, and whose webhook
    /// listens on `webhook`.
    #[must_use]
    pub fn admission(kubeconfig: &Path, webhook: SocketAddr) -> OperatorBuilder {
        let listen = webhook.to_string();
        Self::program("admission", kubeconfig).args([
            "--webhook-listen",
            &listen,
            "--sidecar-image",
            "sidecar:test",
        ])
    }

    /// The operator of the previous release, which is one program.
    #[must_use]
    pub fn of_previous_release(kubeconfig: &Path) -> OperatorBuilder {
        Self::launch_of(previous::program("twofactor-operator"), "run", kubeconfig)
    }

    fn program(name: &str, kubeconfig: &Path) -> OperatorBuilder {
        Self::launch_of(tools::project_binary("twofactor-operator"), name, kubeconfig)
    }

    fn launch_of(binary: PathBuf, name: &str, kubeconfig: &Path) -> OperatorBuilder {
        let launch = Launch::new(binary).isolated().env("KUBECONFIG", kubeconfig).arg(name);
        OperatorBuilder { launch, admin_host: "127.0.0.1" }
    }

    /// A client of the health and metrics port.
    #[must_use]
    pub fn admin(&self) -> ApiClient {
        ApiClient::new(format!("http://127.0.0.1:{}", self.admin_port))
    }

    /// The port for health and metrics.
    #[must_use]
    pub const fn admin_port(&self) -> u16 {
        self.admin_port
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}
