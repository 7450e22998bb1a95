//! Parses the command line and the environment, and starts a program or reports an error.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use kube::Client;
use rand::rngs::SysRng;
use rand_core::{Rng, UnwrapErr};
use tokio_util::sync::CancellationToken;
use twofactor_api::crds;
use twofactor_core::names::Installation;
use twofactor_core::secret::SecretText;
use twofactor_server::logging::{self, Format};
use twofactor_server::probe::{self, Check};
use twofactor_server::startup::stop_on_signals;
use twofactor_store::acl;
use twofactor_store::redis::RedisStore;

use crate::certificates::rotation::Lifetimes;
use crate::k8s::client;
use crate::k8s::watch_signs::WatchSigns;
use crate::process::config::{AdmissionConfiguration, Configuration, excluded_namespaces};
use crate::process::{admission, controller};
use crate::realm::defaults;
use crate::redis::access::{AccessSource, CertificateFiles};
use crate::redis::certificate::CertificateSource;
use crate::self_test;
use crate::state::credentials::SharedLogin;
use crate::webhook::cli::{WebhookArguments, lifetime};

const VARIABLES: &str = "\
The environment sets the policy and the providers of realms that do not set their own:
  ISSUER                 name in mails and authenticator apps [default: FountainAI]
  OTP_EXPIRATION_MINUTES minutes for which a delivered code is accepted, 1 to 10 [default: 5]
  TOKEN_AUDIENCES        audiences of tokens, for realms without spec.tokens; with SECRET_KEY
  UNIFORM_ANSWERS        whether answers hide which names are users [default: false]
  REDIS_WAIT             Redis replicas that must confirm an accepted code before the answer [default: 0]
  SMTP_SERVER, SMTP_PORT, SMTP_SECURITY, SMTP_USERNAME, SMTP_PASSWORD, SMTP_FROM_EMAIL, SMTP_EHLO_NAME, SMTP_CA
  TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN or TWILIO_API_KEY and TWILIO_API_SECRET, TWILIO_PHONE_NUMBER or TWILIO_MESSAGING_SERVICE_SID, TWILIO_API_URL, TWILIO_CA, TWILIO_PROXY
  WEBHOOK_URL, WEBHOOK_SECRET, WEBHOOK_CA, WEBHOOK_PROXY
  MESSAGE_SUBJECT, MESSAGE_TEXT, MESSAGE_HTML, MESSAGE_SMS
The controller finds the API server like kubectl: through KUBECONFIG or the pod's service account.";

/// Makes Secrets with seeds from TwoFactorUser resources, and publishes them to the sidecars
#[derive(Parser)]
#[command(name = "twofactor-operator", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile the users and realms of a cluster
    #[command(after_help = VARIABLES)]
    Controller(Box<ControllerArguments>),
    /// Give pods their sidecar: serve the webhook, and manage its certificates
    Admission(Box<AdmissionArguments>),
    /// Ask the same program in the same pod whether it is alive or ready, for a probe
    Probe(ProbeArguments),
    /// Check an installation from inside the cluster: every part, and a user and a pod of its own
    SelfTest(SelfTestArguments),
    /// Verify a user's code at the sidecar of the same pod, as the pod of the self-test
    #[command(hide = true)]
    SelfTestVerify(SelfTestVerifyArguments),
    /// Print the custom resource definitions. Apply them before the first start
    Crd,
    /// Print the names of the crash points of debug builds
    #[command(hide = true)]
    CrashPoints,
}

#[derive(Args)]
struct CommonArguments {
    /// Namespace whose users and realms count. Can be given more than once [default: all
    /// namespaces]
    #[arg(
        long = "namespace",
        env = "TWOFACTOR_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    namespaces: Vec<String>,

    /// Namespace of the operator, which contains its own Secrets
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    operator_namespace: String,

    /// Address of /livez, /readyz and /metrics
    #[arg(
        long,
        env = "TWOFACTOR_ADMIN_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:18005"
    )]
    admin_listen: SocketAddr,

    /// Format of the log lines: json or text
    #[arg(long, env = "TWOFACTOR_LOG_FORMAT", default_value = "text")]
    log_format: Format,

    /// Level of log lines: error, warn, info, debug, or a filter such as info,kube=debug
    #[arg(long, env = "TWOFACTOR_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Args)]
struct ProbeArguments {
    /// What to ask
    #[arg(value_name = "livez|readyz")]
    check: Check,

    /// Address of /livez, /readyz and /metrics, as of the program
    #[arg(
        long,
        env = "TWOFACTOR_ADMIN_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:18005"
    )]
    admin_listen: SocketAddr,
}

#[derive(Args)]
struct SelfTestArguments {
    /// Host and port of the controller's metrics; the name has the address of each replica
    #[arg(
        long,
        value_name = "HOST:PORT",
        default_value = "twofactor-operator-controller-metrics:18005"
    )]
    controller: String,

    /// Host and port of admission's metrics; the name has the address of each replica
    #[arg(long, value_name = "HOST:PORT", default_value = "twofactor-operator-metrics:18005")]
    admission: String,

    /// Namespace in which a user and a pod are made, and deleted again [default: neither is made]
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,

    /// Image of the pod: that of the operator
    #[arg(long, value_name = "IMAGE", default_value = "fountainai/twofactor-operator")]
    image: String,
}

#[derive(Args)]
struct SelfTestVerifyArguments {
    #[arg(env = "TWOFACTOR_USERNAME")]
    username: String,

    #[arg(env = "TWOFACTOR_SEED", hide_env_values = true)]
    seed: String,
}

#[derive(Args)]
struct AdmissionArguments {
    #[command(flatten)]
    common: CommonArguments,

    #[command(flatten)]
    webhook: WebhookArguments,
}

#[derive(Args)]
struct ControllerArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// URL of Redis for the operator and the sidecars. If Redis allows the operator to create
    /// users, each realm's sidecars get their own login
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: String,

    /// File with CA certificates (PEM) for checking the certificate of Redis in place of the
    /// system's, for the operator and the sidecars
    #[arg(long, env = "REDIS_CA_FILE", value_name = "FILE")]
    redis_ca_file: Option<PathBuf>,

    /// File with the certificate (PEM) that Redis asks clients for, for the operator and the
    /// sidecars
    #[arg(long, env = "REDIS_CLIENT_CERTIFICATE_FILE", value_name = "FILE")]
    redis_client_certificate_file: Option<PathBuf>,

    /// File with the private key (PEM) of that certificate
    #[arg(long, env = "REDIS_CLIENT_KEY_FILE", value_name = "FILE")]
    redis_client_key_file: Option<PathBuf>,

    /// URL of Redis for the sidecars if Redis does not allow the operator to create users, with a
    /// login that may do less than the operator's
    #[arg(
        long,
        env = "TWOFACTOR_SIDECAR_REDIS_URL",
        hide_env_values = true,
        value_name = "URL",
        conflicts_with = "allow_shared_login"
    )]
    sidecar_redis_url: Option<String>,

    /// Whether the sidecars get the operator's own login if Redis does not allow the operator to
    /// create users. Everyone who may read Secrets in an allowed namespace can then delete every
    /// realm
    #[arg(long, env = "TWOFACTOR_ALLOW_SHARED_LOGIN")]
    allow_shared_login: bool,

    /// Secret in the operator's namespace with the password of Redis under the key password. The
    /// operator creates it if it is missing. The URL must then contain no password
    #[arg(long, env = "TWOFACTOR_REDIS_PASSWORD_SECRET", value_name = "NAME")]
    redis_password_secret: Option<String>,

    /// Secret in the operator's namespace with the certificate of Redis, its key and its authority.
    /// The operator creates it, and replaces what ends. The URL must begin with rediss, and its
    /// host is in the certificate
    #[arg(
        long,
        env = "TWOFACTOR_REDIS_CERTIFICATE_SECRET",
        value_name = "NAME",
        conflicts_with = "redis_ca_file"
    )]
    redis_certificate_secret: Option<String>,

    /// Lifetime of the authority of that certificate, such as 8760h. The operator replaces it
    /// before it expires
    #[arg(
        long,
        env = "TWOFACTOR_REDIS_CA_LIFETIME",
        value_name = "TIME",
        default_value = "8760h",
        value_parser = lifetime
    )]
    redis_ca_lifetime: Duration,

    /// Lifetime of that certificate, at most half of the authority's. The operator replaces it when
    /// a third of it is left
    #[arg(
        long,
        env = "TWOFACTOR_REDIS_CERTIFICATE_LIFETIME",
        value_name = "TIME",
        default_value = "2160h",
        value_parser = lifetime
    )]
    redis_certificate_lifetime: Duration,

    /// Folder with a file for each variable of providers and policy. It is followed. A variable of
    /// the environment takes precedence
    #[arg(long, env = "TWOFACTOR_PROVIDERS_DIRECTORY", value_name = "DIRECTORY")]
    providers_directory: Option<PathBuf>,

    /// Secret in the operator's namespace with the ecosystem's shared key of tokens. The operator
    /// creates it if a realm needs it and it is missing
    #[arg(
        long,
        env = "TWOFACTOR_SECRET_KEY_SECRET",
        value_name = "NAME",
        default_value = "twofactor-secret-key",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    secret_key_secret: String,

    /// Namespace of users whose realm may sign tokens with that key. Everyone who may read Secrets
    /// in it, or in a namespace that it allows, can sign with the key too. Can be given more than
    /// once [default: none]
    #[arg(
        long = "secret-key-namespace",
        env = "TWOFACTOR_SECRET_KEY_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    secret_key_namespaces: Vec<String>,

    /// Namespace of services that may get the credentials of a realm, beside the namespaces of
    /// --namespace. The operator then needs no right on Secrets and pods of other namespaces. Can
    /// be given more than once [default: all namespaces]
    #[arg(
        long = "service-namespace",
        env = "TWOFACTOR_SERVICE_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "namespaces"
    )]
    service_namespaces: Vec<String>,

    /// Namespace that never gets a realm's credentials, even if the realm allows it, beside the
    /// operator's own, kube-system, kube-public and kube-node-lease. Can be given more than once
    #[arg(
        long = "excluded-namespace",
        env = "TWOFACTOR_EXCLUDED_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    excluded_namespaces: Vec<String>,

    /// Name of this process in Events and in the Lease. A process with the same name counts as this
    /// one after a restart [default: a new name each time]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    instance: Option<String>,

    /// Lease in the operator's namespace. One of the replicas that share it leads
    #[arg(
        long,
        env = "TWOFACTOR_LEASE",
        value_name = "NAME",
        default_value = "twofactor-operator"
    )]
    lease: String,

    /// Name of this installation in Redis, so that several can share one [default: the UID of the
    /// namespace kube-system]
    #[arg(long, env = "TWOFACTOR_INSTALLATION", value_name = "ID")]
    installation: Option<Installation>,

    /// Number of seconds for which services have a realm's old and new keys before the new ones are
    /// used: longer than the kubelet takes to update a mounted Secret
    #[arg(
        long,
        env = "TWOFACTOR_KEY_OVERLAP_SECONDS",
        value_name = "NUMBER",
        default_value_t = 180,
        value_parser = clap::value_parser!(u32).range(1..=86_400)
    )]
    key_overlap_seconds: u32,

    /// Whether no new seeds are made, during a restore: users without a Secret wait until it is
    /// restored
    #[arg(long, env = "TWOFACTOR_HOLD_NEW_SEEDS")]
    hold_new_seeds: bool,

    /// Maximum number of users that are reconciled at the same time
    #[arg(
        long,
        env = "TWOFACTOR_CONCURRENCY",
        value_name = "NUMBER",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    concurrency: u16,
}

/// Returns the definition of the command line, from which the reference page is generated.
#[must_use]
pub fn definition() -> clap::Command {
    CommandLine::command()
}

/// Parses the command line and runs the command.
///
/// # Errors
/// Returns a message for the administrator.
pub fn start() -> Result<(), Box<dyn Error>> {
    match CommandLine::parse().command {
        Command::Controller(arguments) => start_controller(*arguments),
        Command::Admission(arguments) => start_admission(*arguments),
        Command::Probe(ProbeArguments { check, admin_listen }) => {
            Ok(probe::ask(&probe::own_addresses(admin_listen), check.path())?)
        }
        Command::SelfTest(arguments) => start_self_test(arguments),
        Command::SelfTestVerify(SelfTestVerifyArguments { username, seed }) => {
            let seed = SecretText::new(seed);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(self_test::verify(&username, seed.expose_secret()))?)
        }
        Command::Crd => print_crds(),
        Command::CrashPoints => {
            print_crash_points();
            Ok(())
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's purpose is to print")]
fn print_crds() -> Result<(), Box<dyn Error>> {
    for crd in crds::crds()? {
        println!("---\n{}", crd.yaml.trim_end());
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's purpose is to print")]
fn print_crash_points() {
    for step in crate::failpoint::Step::ALL {
        println!("{}", step.name());
    }
}

fn start_controller(arguments: ControllerArguments) -> Result<(), Box<dyn Error>> {
    let ControllerArguments { common, .. } = arguments;
    common.start_logging()?;
    let providers = path(arguments.providers_directory);
    let certificate = redis_certificate(
        arguments.redis_certificate_secret,
        &common.operator_namespace,
        &arguments.redis_url,
        arguments.redis_ca_lifetime,
        arguments.redis_certificate_lifetime,
    )?;
    let configuration = Configuration {
        namespaces: named(common.namespaces),
        service_namespaces: named(arguments.service_namespaces),
        redis: AccessSource {
            url: SecretText::new(arguments.redis_url),
            password_secret: arguments.redis_password_secret.filter(|name| !name.is_empty()),
            namespace: common.operator_namespace.clone(),
            files: CertificateFiles {
                authority: path(arguments.redis_ca_file),
                certificate: path(arguments.redis_client_certificate_file),
                key: path(arguments.redis_client_key_file),
            },
            certificate,
        },
        shared_login: shared_login(arguments.sidecar_redis_url, arguments.allow_shared_login)?,
        secret_key_secret: arguments.secret_key_secret,
        secret_key_namespaces: named(arguments.secret_key_namespaces).into_iter().collect(),
        excluded_namespaces: excluded_namespaces(
            &common.operator_namespace,
            named(arguments.excluded_namespaces),
        ),
        operator_namespace: common.operator_namespace,
        instance: arguments.instance.filter(|name| !name.is_empty()).unwrap_or_else(new_instance),
        installation: arguments.installation,
        admin_listen: common.admin_listen,
        hold_new_seeds: arguments.hold_new_seeds,
        concurrency: arguments.concurrency,
        realm: defaults::read(providers.as_deref())?,
        providers,
        key_overlap: Duration::from_secs(arguments.key_overlap_seconds.into()),
        lease: arguments.lease,
    };
    in_runtime(async |client, signs, stop| {
        controller::run(configuration, client, signs, stop).await
    })
}

fn start_admission(arguments: AdmissionArguments) -> Result<(), Box<dyn Error>> {
    let AdmissionArguments { common, webhook } = arguments;
    common.start_logging()?;
    let configuration = AdmissionConfiguration {
        namespaces: named(common.namespaces),
        operator_namespace: common.operator_namespace,
        admin_listen: common.admin_listen,
        webhook: webhook.configuration()?,
    };
    in_runtime(async |client, signs, stop| admission::run(configuration, client, signs, stop).await)
}

fn start_self_test(arguments: SelfTestArguments) -> Result<(), Box<dyn Error>> {
    let SelfTestArguments { controller, admission, namespace, image } = arguments;
    let settings = self_test::Settings { controller, admission, namespace, image };
    in_runtime(async |client, _, stop| {
        let tested = stop.run_until_cancelled(Box::pin(self_test::run(client, settings))).await;
        tested.unwrap_or(Ok(()))
    })
}

impl CommonArguments {
    fn start_logging(&self) -> Result<(), String> {
        logging::start(self.log_format, &self.log).map_err(|error| format!("--log: {error}"))
    }
}

/// Returns the certificate of Redis that the operator makes, if it is to make one.
fn redis_certificate(
    secret: Option<String>,
    namespace: &str,
    url: &str,
    authority: Duration,
    leaf: Duration,
) -> Result<Option<CertificateSource>, String> {
    let Some(secret) = secret.filter(|name| !name.is_empty()) else { return Ok(None) };
    if authority < leaf * 2 {
        let text = "--redis-ca-lifetime must be at least twice --redis-certificate-lifetime";
        return Err(text.to_owned());
    }
    let host = acl::tls_host(url).ok_or(
        "--redis-certificate-secret needs a --redis-url of one server with TLS, like rediss://host:6380",
    )?;
    // Services get another authority within minutes.
    let lifetimes = Lifetimes { authority, leaf, longest_grace: Duration::from_hours(1) };
    Ok(Some(CertificateSource { secret, namespace: namespace.to_owned(), host, lifetimes }))
}

/// Returns what sidecars get if the operator may not create logins.
fn shared_login(url: Option<String>, allowed: bool) -> Result<SharedLogin, String> {
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Ok(if allowed { SharedLogin::Operators } else { SharedLogin::Refused });
    };
    RedisStore::check_url(&url).map_err(|error| format!("--sidecar-redis-url {error}"))?;
    Ok(SharedLogin::OfServices(SecretText::new(url)))
}

/// An empty path counts as unset, because an environment variable may be set to nothing.
fn path(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Removes the empty name that an empty environment variable gives.
fn named(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

/// Runs a program with a client of the API server until a signal stops it.
fn in_runtime<E: Error + 'static>(
    run: impl AsyncFnOnce(Client, WatchSigns, CancellationToken) -> Result<(), E>,
) -> Result<(), Box<dyn Error>> {
    // Fails only if a provider was installed before, but this program installs no other.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(&stop)?;
        let (client, signs) = client::connect().await?;
        run(client, signs, stop).await.map_err(Box::<dyn Error>::from)
    });
    // Tasks that still run have had their time to end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Makes a unique name for this process.
fn new_instance() -> String {
    format!("twofactor-operator-{:08x}", UnwrapErr(SysRng).next_u32())
}
