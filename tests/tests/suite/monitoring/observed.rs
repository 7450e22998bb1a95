//! Starts the whole system (controller, admission, two sidecars, Redis, a mail server) and a
//! Prometheus that scrapes it and evaluates the alerts.

use std::time::Duration;

use twofactor_tests::mail::MailServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::prometheus::Target;
use twofactor_tests::redis::{AppendFsync, RedisBuilder, RedisServer};

use super::alarms::Alarms;
use crate::operator::admission::Replica;
use crate::support::cluster::{Cluster, Sidecar, app_user, user};

/// The namespace of the controller and of admission, as Prometheus labels it.
const SYSTEM: &str = "twofactor-system";

/// A healthy system under observation.
pub(super) struct Observed {
    pub(super) cluster: Cluster,
    pub(super) mail: MailServer,
    pub(super) controller: OperatorProcess,
    pub(super) admission: Replica,
    /// A service in the users' own namespace.
    pub(super) kms: Sidecar,
    /// A service in another namespace, which the realm allows.
    pub(super) shop: Sidecar,
    pub(super) alarms: Alarms,
}

impl Observed {
    /// Starts everything, with rules that have no delay. Flushes of Redis take no time, because a
    /// disk that other tests use would make Redis look unavailable.
    pub(super) async fn start() -> Self {
        Self::start_with(flushing_at_once(), Alarms::start).await
    }

    /// Starts everything. Redis has a limit of memory, which its metrics need.
    pub(super) async fn start_with(
        redis: RedisBuilder,
        alarms: impl AsyncFnOnce(&[Target]) -> Alarms,
    ) -> Self {
        let redis = redis.append_only(AppendFsync::Always).args(["--maxmemory", "64mb"]);
        let redis = redis.start().await;
        let cluster = Cluster::on_own_server_with(redis, &[]).await;
        cluster.configure_webhook();
        let mail = MailServer::start().await;
        let port = mail.port().to_string();
        let admission = cluster.admission();
        let controller = cluster
            .operator()
            .env("SMTP_SERVER", "127.0.0.1")
            .env("SMTP_PORT", &port)
            .env("SMTP_SECURITY", "plain")
            .env("SMTP_FROM_EMAIL", "otp@example.org")
            .start();
        let (admission, controller) = tokio::join!(admission, controller);
        let shop = cluster.another_namespace("shop");
        cluster.apply(&realm(&shop, ""));
        let mut users = app_user("carol") + &app_user("dora");
        for number in 0..5 {
            users += &user(&format!("alice-{number}"), "email: alice@example.org");
        }
        cluster.apply(&users);
        for name in ["carol", "alice-4"] {
            cluster.wait_ready(name).await;
        }
        let (kms, shop) = tokio::join!(cluster.sidecar(), cluster.sidecar_in(&shop));
        let targets = [
            of_system("controller", controller.admin_port()),
            of_system("admission", admission.process.admin_port()),
            of_service("kms", kms.process.admin_port()),
            of_service("shop", shop.process.admin_port()),
        ];
        let alarms = alarms(&targets).await;
        Self { cluster, mail, controller, admission, kms, shop, alarms }
    }

    /// Changes the realm, which allows the other namespace.
    pub(super) fn configure_realm(&self, spec: &str) {
        self.cluster.apply(&realm(&format!("shop-{}", self.cluster.namespace), spec));
    }

    /// Scrapes these besides the sidecars from now on.
    pub(super) fn observe(&self, others: &[Target]) {
        let services = [("kms", &self.kms), ("shop", &self.shop)];
        let services = services.map(|(name, it)| of_service(name, it.process.admin_port()));
        self.alarms.prometheus.scrape(&[&services[..], others].concat());
    }
}

/// A Redis whose flushes take no time.
pub(super) fn flushing_at_once() -> RedisBuilder {
    RedisServer::builder().slow_flushes(Duration::ZERO)
}

/// A replica of the controller or of admission.
pub(super) fn of_system(pod: &str, port: u16) -> Target {
    Target { namespace: SYSTEM.to_owned(), pod: pod.to_owned(), port }
}

/// A sidecar in the namespace of its name.
pub(super) fn of_service(name: &str, port: u16) -> Target {
    Target { namespace: name.to_owned(), pod: name.to_owned(), port }
}

/// A realm that allows a namespace, with more of its `spec`, as lines in YAML.
fn realm(allowed: &str, spec: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\n\
         metadata: {{name: default}}\nspec:\n  allowedNamespaces: {{names: [{allowed}]}}\n  {spec}\n"
    )
}
