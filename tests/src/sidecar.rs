//! Starts the sidecar's binary with arguments and environment, and gives clients for its two ports.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::http::ApiClient;
use crate::process::{Launch, Process};
use crate::{ports, previous, tools};

const START: Duration = Duration::from_secs(20);

/// Options for a sidecar that is about to start.
#[derive(Debug)]
pub struct SidecarBuilder {
    launch: Launch,
    in_pod: bool,
    ip: Ipv4Addr,
}

impl SidecarBuilder {
    /// Adds arguments, such as a subcommand; the two listen addresses are added at the end. Paths
    /// are absolute, because the sidecar runs in another folder.
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

    /// Listens as it does in a pod: on both loopback addresses, and for probes on every address.
    #[must_use]
    pub fn as_in_a_pod(mut self) -> Self {
        self.in_pod = true;
        self
    }

    /// Lets the API listen on every IPv4 address.
    #[must_use]
    pub fn on_every_address(mut self) -> Self {
        self.ip = Ipv4Addr::UNSPECIFIED;
        self.args(["--allow-non-loopback"])
    }

    /// Starts the sidecar on free ports, and returns when it is alive.
    pub async fn start(self) -> SidecarProcess {
        let (api_port, admin_port) = (ports::free_port(), ports::free_port());
        let launch = if self.in_pod {
            self.launch
                .env("TWOFACTOR_PORT", api_port.to_string())
                .env("TWOFACTOR_ADMIN_LISTEN", format!("*:{admin_port}"))
        } else {
            self.launch
                .args(["--listen".to_owned(), format!("{}:{api_port}", self.ip)])
                .args(["--admin-listen".to_owned(), format!("127.0.0.1:{admin_port}")])
        };
        let process = launch.start();
        let sidecar = SidecarProcess { process, api_port, admin_port };
        sidecar.admin().wait_until_ok("/livez", &sidecar.process, START).await;
        sidecar
    }
}

/// A running sidecar.
#[derive(Debug)]
pub struct SidecarProcess {
    process: Process,
    api_port: u16,
    admin_port: u16,
}

impl SidecarProcess {
    /// A sidecar with options.
    #[must_use]
    pub fn builder() -> SidecarBuilder {
        Self::builder_of(tools::project_binary("twofactor-sidecar"))
    }

    /// A sidecar of the previous release with options.
    #[must_use]
    pub fn of_previous_release() -> SidecarBuilder {
        Self::builder_of(previous::program("twofactor-sidecar"))
    }

    fn builder_of(binary: PathBuf) -> SidecarBuilder {
        SidecarBuilder {
            launch: Launch::new(binary).isolated(),
            in_pod: false,
            ip: Ipv4Addr::LOCALHOST,
        }
    }

    /// A client of the API.
    #[must_use]
    pub fn api(&self) -> ApiClient {
        ApiClient::new(format!("http://127.0.0.1:{}", self.api_port))
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
