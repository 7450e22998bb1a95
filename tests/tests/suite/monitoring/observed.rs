//! Starts the whole system (controller, admission, two sidecars, Redis, a mail server) and a
//! Prometheus that scrapes it and evaluates the alerts.

use twofactor_tests::mail::MailServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::prometheus::{Prometheus, Target};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use super::rules::{alerts, without};
use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user, user};

/// The namespace of the controller and of admission, as Prometheus labels it.
const SYSTEM: &str = "twofactor-system";

/// A system under observation.
pub(super) struct Observed {
    pub(super) cluster: Cluster,
    pub(super) mail: MailServer,
    pub(super) controller: OperatorProcess,
    pub(super) admission: OperatorProcess,
    /// A service in the users' own namespace.
    pub(super) kms: Sidecar,
    /// A service in another namespace, which the realm allows.
    pub(super) shop: Sidecar,
    pub(super) prometheus: Prometheus,
}

impl Observed {
    /// Starts everything. Redis has a limit of memory, which its metrics need. Alerts fire without
    /// their delay, which `promtool` tests.
    pub(super) async fn start() -> Self {
        let redis = RedisServer::builder().with_movable_clock();
        let redis = redis.args(["--maxmemory", "64mb"]).start().await;
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
        cluster.apply(&format!(
            "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\n\
             metadata: {{name: default}}\nspec: {{allowedNamespaces: {{names: [{shop}]}}}}\n---\n"
        ));
        let mut users = app_user("carol") + &app_user("dora");
        for number in 0..5 {
            users += &user(&format!("alice-{number}"), "email: alice@example.org");
        }
        cluster.apply(&users);
        for name in ["carol", "alice-4"] {
            cluster.wait_ready(name).await;
        }
        // Has no seed, so it is never ready.
        cluster.apply(&user("erin", "deliveryMethod: app\n  secretRef: {name: missing}"));
        let (kms, shop) = tokio::join!(cluster.sidecar(), cluster.sidecar_in(&shop));
        let target = |namespace: &str, pod: &str, port| Target {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            port,
        };
        let targets = [
            target(SYSTEM, "controller", controller.admin_port()),
            target(SYSTEM, "admission", admission.process.admin_port()),
            target("kms", "kms", kms.process.admin_port()),
            target("shop", "shop", shop.process.admin_port()),
        ];
        let prometheus = Prometheus::start(&targets, &without(&alerts(), "for")).await;
        Self { cluster, mail, controller, admission: admission.process, kms, shop, prometheus }
    }

    /// Scrapes another process as the controller, and nothing else.
    pub(super) fn observe_controller(&self, controller: &OperatorProcess) {
        let (namespace, pod) = (SYSTEM.to_owned(), "controller".to_owned());
        self.prometheus.scrape(&[Target { namespace, pod, port: controller.admin_port() }]);
    }

    /// Waits until an alert fires.
    pub(super) async fn wait_for_alert(&self, name: &str) {
        eventually(BOUND * 2, format_args!("{name} to fire"), async || {
            let firing = self.prometheus.firing().await;
            if firing.contains(name) { Ok(()) } else { Err(format!("{firing:?}")) }
        })
        .await;
    }
}
