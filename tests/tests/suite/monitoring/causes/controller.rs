//! Brings about causes that the API server, its watches and its permissions have, and connections
//! to Redis with TLS.

use std::fs;
use std::time::Duration;

use twofactor_core::time::UnixMillis;
use twofactor_store::clock::Clock;
use twofactor_tests::certificates::Authority;
use twofactor_tests::faults::{Fault, FaultProxy};
use twofactor_tests::redis::{RedisServer, Tls};
use twofactor_tests::scratch;

use crate::monitoring::alarms::Alarms;
use crate::monitoring::observed::of_system;
use crate::support::cluster::{Cluster, app_user};

/// More users than the queue has normally.
const MANY: usize = 200;
const TEN_DAYS: Duration = Duration::from_hours(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_fire_about_an_api_server_that_refuses_and_watches_that_are_silent() {
    let end = UnixMillis::from_seconds(Clock::System.now().seconds() + TEN_DAYS.as_secs());
    let authority = Authority::until("an authority that ends soon", end);
    let redis = RedisServer::builder().tls(Tls::of(&authority)).start().await;
    let cluster = Cluster::with_redis(redis).await;
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let folder = scratch::folder("authority");
    let file = folder.path().join("ca.crt");
    fs::write(&file, authority.pem()).unwrap();
    let controller =
        || cluster.operator_with(&kubeconfig).args(["--redis-ca-file", file.to_str().unwrap()]);
    let (first, alarms) = (controller().start().await, Alarms::start(&[]).await);
    let observe = |port: u16| alarms.prometheus.scrape(&[of_system("controller", port)]);
    alarms.fire(&["TwoFactorRedisCertificateEnds"], async || observe(first.admin_port())).await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;

    let damage = async || fs::write(&file, "no certificate").unwrap();
    alarms.fire(&["TwoFactorRedisAccessNotCurrent"], damage).await;
    fs::write(&file, authority.pem()).unwrap();

    let refuse = async || {
        proxy.set(Some(Fault::Path("/secrets", 500)));
        cluster.apply(&users("refused", 8));
    };
    alarms.fire(&["TwoFactorReconcilesFail"], refuse).await;
    let hold = async || {
        proxy.set(Some(Fault::Held("/secrets")));
        cluster.apply(&users("held", MANY));
    };
    alarms.fire(&["TwoFactorQueueNeverEmpty"], hold).await;

    // Connections that seem to live, and on which nothing arrives any more.
    let silence = async || {
        proxy.set(Some(Fault::Held("watch=true")));
        proxy.silence();
    };
    alarms.fire(&["TwoFactorWatchSilent"], silence).await;
    let forbid = async || {
        let binding = format!("{}-twofactor-operator", cluster.home);
        let _ = cluster.server.kubectl(&["delete", "clusterrolebinding", &binding]);
        proxy.set(None);
    };
    alarms.fire(&["TwoFactorWatchForbidden"], forbid).await;

    let binding = ["delete", "rolebinding", "twofactor-operator", "--namespace", &cluster.home];
    let _ = cluster.server.kubectl(&binding);
    let _ = first.process().kill();
    let second = controller().launch();
    alarms.fire(&["TwoFactorNoLeader"], async || observe(second.admin_port())).await;
    alarms.assert_fire_in_time();
}

fn users(prefix: &str, count: usize) -> String {
    (0..count).map(|number| app_user(&format!("{prefix}-{number}"))).collect()
}
