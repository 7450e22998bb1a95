//! Parses the command line and runs a sidecar.
#![expect(
    clippy::doc_markdown,
    reason = "clap shows these comments in a terminal, where backticks are noise"
)]

mod dotenv;

use std::error::Error;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use twofactor_core::names::{Caller, RealmId};
use twofactor_core::realm::RealmRecord;
use twofactor_server::logging::{self, Format};
use twofactor_server::probe::{self, Check};

use crate::dev::settings::RealmOptions;
use crate::dev::{DevOptions, dev};
use crate::process::listen::{API_PORT, Addresses, AdminAddress, ApiAddress};
use crate::routes::HostName;
use crate::serve::serve;

/// Maximum number of threads that answer requests by default.
const MOST_THREADS: usize = 4;
/// Timeout for work that cannot be stopped at the end, such as resolving a host name.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

const VARIABLES: &str = "\
Passwords, and the settings that belong to them, come from the environment only:
  SMTP_PASSWORD  password of SMTP_USERNAME
  SECRET_KEY     the ecosystem's shared key for HS256 tokens, 32 bytes or more
  ED25519_PRIVATE_KEY  the private key for EdDSA tokens, in PEM, or its 32 bytes in base64
  TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN or TWILIO_API_KEY and TWILIO_API_SECRET, and
  TWILIO_PHONE_NUMBER or TWILIO_MESSAGING_SERVICE_SID
                 the account that text messages are sent with
  TWILIO_API_URL, TWILIO_CA_FILE, TWILIO_ALLOW_HTTP
                 another server with the API of Twilio: address, CA certificates (PEM), and true for http
  TWILIO_PROXY, WEBHOOK_PROXY
                 HTTP proxies, such as http://name:password@proxy.example.org:3128
  WEBHOOK_URL, WEBHOOK_SECRET, WEBHOOK_CA_FILE, WEBHOOK_ALLOW_HTTP
                 receiver of signed webhooks, its secret (whsec_...), CA certificates (PEM), and true for http
  MESSAGE_SUBJECT, MESSAGE_TEXT, MESSAGE_HTML, MESSAGE_SMS
                 templates of messages, with {{code}}, {{expires_at}}, {{issuer}}, {{username}}, {{service}}, {{context}}
Variables may also stand in a file .env in the current directory; those of the environment win.
There, a value with blanks or a $ needs single quotes.";

/// Two-factor authentication on localhost: POST /auth/generate and POST /auth/verify
#[derive(Parser)]
#[command(name = "twofactor-sidecar", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve what the operator published for this pod's namespace
    Serve(ServeArguments),
    /// Serve users from TwoFactorUser manifests on disk, without Kubernetes
    #[command(after_help = VARIABLES)]
    Dev(Box<DevArguments>),
    /// Ask the sidecar in the same pod whether it is alive or ready, for a probe
    Probe(ProbeArguments),
}

#[derive(Args)]
struct ProbeArguments {
    /// What to ask
    #[arg(value_name = "livez|readyz")]
    check: Check,

    /// Address of /livez, /readyz and /metrics, as of the sidecar
    #[arg(
        long,
        env = "TWOFACTOR_ADMIN_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:18004"
    )]
    admin_listen: AdminAddress,
}

#[derive(Args)]
struct CommonArguments {
    /// Port of the API, on 127.0.0.1 and, where there is IPv6, on ::1 [default: 8004]
    #[arg(long, env = "TWOFACTOR_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// Address of the API, in place of --port: this address and no other
    #[arg(long, env = "TWOFACTOR_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Allow --listen to be an address that other machines can reach. The API has no authentication
    #[arg(long, env = "TWOFACTOR_ALLOW_NON_LOOPBACK")]
    allow_non_loopback: bool,

    /// Names of hosts, separated by commas, under which clients may reach the API, beside localhost
    /// and the addresses of this machine. Others are refused, because a web page can give itself
    /// any name
    #[arg(
        long = "allowed-host",
        env = "TWOFACTOR_ALLOWED_HOSTS",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    allowed_hosts: Vec<HostName>,

    /// Number of addresses at the right end of X-Forwarded-For and Forwarded that are those of your
    /// own proxies; the one before them is recorded as the end user's
    #[arg(
        long,
        env = "TWOFACTOR_TRUSTED_PROXIES",
        value_name = "NUMBER",
        default_value = "0",
        value_parser = clap::value_parser!(u8).range(0..=32)
    )]
    trusted_proxies: u8,

    /// Address of /livez, /readyz and /metrics; *:PORT is every address of this machine, IPv6 and
    /// IPv4
    #[arg(
        long,
        env = "TWOFACTOR_ADMIN_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:18004"
    )]
    admin_listen: AdminAddress,

    /// Threads that answer requests [default: one for each core, at most 4]
    #[arg(long, env = "TWOFACTOR_THREADS", value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..))]
    threads: Option<u8>,

    /// Log lines as json or text
    #[arg(long, env = "TWOFACTOR_LOG_FORMAT", default_value = "text")]
    log_format: Format,

    /// Level of log lines: error, warn, info, debug, or a filter such as info,audit=off
    #[arg(long, env = "TWOFACTOR_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Args)]
struct ServeArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// Folder with the realm's credentials, mounted from a Secret: redis-url, realm-keys,
    /// installation, realm, caller. A change needs no restart
    #[arg(
        long,
        env = "TWOFACTOR_CREDENTIALS",
        value_name = "FOLDER",
        default_value = "/var/run/secrets/twofactor"
    )]
    credentials: PathBuf,
}

#[derive(Args)]
struct DevArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// Files and folders with manifests of TwoFactorUsers, and of the Secrets that they import
    /// seeds from
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// Keep codes and users in this Redis, so that they survive and can be shared; otherwise in
    /// memory
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,

    /// File with CA certificates (PEM) to check Redis against in place of the system's
    #[arg(long, env = "REDIS_CA_FILE", value_name = "FILE")]
    redis_ca_file: Option<PathBuf>,

    /// File with the key that records in Redis are sealed with, created at the first start
    /// [default: fountainai-2fa/master-key in the user's state directory]
    #[arg(long, env = "TWOFACTOR_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// Name of the set of users in Redis: two processes with different manifests need different
    /// ones
    #[arg(long, env = "TWOFACTOR_REALM", default_value = "dev")]
    realm: RealmId,

    /// Name of the calling service: a code that one requests is not accepted from another
    #[arg(long, env = "TWOFACTOR_CALLER", default_value = "dev")]
    caller: Caller,

    /// Put codes into the answers of /auth/generate. On by default if there is no provider, such as
    /// SMTP_SERVER, and the API listens on a loopback address; refused on any other
    #[arg(long, env = "EXPOSE_CODES", value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    expose_codes: Option<bool>,

    #[command(flatten)]
    realm_options: RealmOptions,
}

impl CommonArguments {
    fn addresses(&self) -> Result<Addresses, &'static str> {
        let api = match (self.listen, self.port) {
            (Some(_), Some(_)) => {
                return Err(
                    "--port (TWOFACTOR_PORT) and --listen (TWOFACTOR_LISTEN) exclude each other: \
                     the first is a port on both loopback addresses, the second one address only",
                );
            }
            (Some(address), None) => ApiAddress::One(address),
            (None, port) => ApiAddress::Loopback(port.unwrap_or(API_PORT)),
        };
        Ok(Addresses {
            api,
            allow_non_loopback: self.allow_non_loopback,
            admin: self.admin_listen,
            allowed_hosts: self.allowed_hosts.clone(),
            trusted_proxies: self.trusted_proxies,
        })
    }

    /// A sidecar uses a small part of a node, so a thread for each core would only take memory.
    /// Four answer more requests than any service sends.
    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(|| cores().min(MOST_THREADS), usize::from)
    }
}

impl DevArguments {
    /// Whether answers contain the code: never if other machines can reach the API, because an
    /// answer would then be all that they need to be the user.
    fn exposes_codes(
        &self,
        realm: &RealmRecord,
        loopback_only: bool,
    ) -> Result<bool, &'static str> {
        match self.expose_codes {
            Some(true) if !loopback_only => Err(
                "--expose-codes (EXPOSE_CODES): codes are never put into answers that other machines \
                 can read; listen on a loopback address, or leave it out",
            ),
            Some(expose) => Ok(expose),
            None => Ok(loopback_only && realm.providers.methods().is_empty()),
        }
    }
}

/// Whether the file `.env` is read: for `dev` only. A file in a container's directory must not
/// change where a sidecar listens, or what it trusts.
fn reads_dotenv(arguments: impl IntoIterator<Item = OsString>) -> bool {
    arguments.into_iter().nth(1).is_some_and(|command| command == "dev")
}

/// Returns the definition of the command line, from which the reference page is generated.
#[must_use]
pub fn definition() -> clap::Command {
    CommandLine::command()
}

/// Parses the command line and runs it.
///
/// # Errors
/// A sentence for the person who started the program.
pub fn start() -> Result<(), Box<dyn Error>> {
    if reads_dotenv(std::env::args_os()) {
        dotenv::load()?;
    }
    let command = CommandLine::parse().command;
    let common = match &command {
        Command::Serve(arguments) => &arguments.common,
        Command::Dev(arguments) => &arguments.common,
        Command::Probe(ProbeArguments { check, admin_listen }) => {
            return Ok(probe::ask(&admin_listen.own(), check.path())?);
        }
    };
    logging::start(common.log_format, &common.log).map_err(|error| format!("--log: {error}"))?;
    let addresses = common.addresses()?;
    let threads = common.threads();
    // Fails only if a provider was installed before, and this program has no other.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let stop = CancellationToken::new();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let result = match command {
        Command::Serve(arguments) => {
            runtime.block_on(serve(&addresses, &arguments.credentials, stop))
        }
        Command::Dev(arguments) => {
            let realm = arguments.realm_options.realm(|name| std::env::var(name).ok())?;
            let options = DevOptions {
                expose_codes: arguments.exposes_codes(&realm, addresses.loopback_only())?,
                paths: arguments.paths,
                redis_url: arguments.redis_url.filter(|url| !url.is_empty()),
                redis_ca_file: arguments.redis_ca_file.filter(|path| !path.as_os_str().is_empty()),
                master_key_file: arguments.master_key_file,
                realm_id: arguments.realm,
                caller: arguments.caller,
                realm,
            };
            runtime.block_on(dev(&addresses, options, stop))
        }
        Command::Probe(_) => unreachable!("a probe has ended above"),
    };
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    Ok(result?)
}
