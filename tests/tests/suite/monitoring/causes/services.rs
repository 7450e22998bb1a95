//! Brings about causes that services, users and the administrator's objects have.

use std::fs;
use std::time::Duration;

use redis::AsyncCommands;
use serde_json::json;
use twofactor_tests::mail::MailStage;
use twofactor_tests::scratch;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::slow_network::SlowNetwork;
use twofactor_tests::wait::{eventually, eventually_every};

use crate::monitoring::observed::{Observed, of_service, of_system};
use crate::monitoring::quiet::use_normally;
use crate::monitoring::replay::assert_quiet;
use crate::support::cluster::{BOUND, app_user, user};

/// Number of failures after which a user is disabled.
const DISABLED_AFTER: u32 = 100;
/// Size in bytes of an annotation that a slow network carries for two seconds.
const LARGE: usize = 6 * 16 * 1024;
const CRD: &str = "twofactorusers.twofactor.fountainai.io";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_fire_by_their_real_causes_and_none_fires_without() {
    let system = Observed::start().await;
    let (time, pause) = (Duration::from_secs(8), Duration::from_millis(200));
    assert_quiet(&use_normally(&system, time, pause).await);
    failures_of_users_and_providers(&system).await;
    objects_of_the_cluster(&system).await;
    damaged_data(&system).await;
    outages(&system).await;
    system.alarms.assert_fire_in_time();
}

async fn failures_of_users_and_providers(system: &Observed) {
    let (alarms, shop) = (&system.alarms, &system.shop.api);
    let fail = async || {
        system.mail.fail(MailStage::Data, "451 4.3.0 later", None).await;
        for number in 0..4 {
            let reply = system.kms.api.generate(&format!("alice-{number}")).await;
            assert_eq!(reply.status, 502, "{}", reply.body);
        }
    };
    alarms.fire(&["TwoFactorDeliveriesFail"], fail).await;
    let guess = async || {
        for _ in 0..12 {
            let _ = shop.verify("dora", "000000").await;
        }
    };
    alarms.fire(&["TwoFactorUsersThrottled"], guess).await;
    let guess_names = async || {
        let mut left = 60;
        // Prometheus has to see the number rise.
        eventually_every(Duration::from_millis(50), BOUND, "sixty guesses", async || {
            let _ = shop.verify("unknown", "000000").await;
            left -= 1;
            left == 0
        })
        .await;
    };
    alarms.fire(&["TwoFactorManyWrongCodes"], guess_names).await;
    let few_failures = async || {
        system.configure_realm("limits: {failuresPerDay: 5}");
        eventually(BOUND, "failures to be used up", async || {
            let reply = shop.verify("dora", "000000").await;
            if reply.body.contains("failures-used-up") { Ok(()) } else { Err(reply.body) }
        })
        .await;
    };
    alarms.fire(&["TwoFactorFailureBudgetUsedUp"], few_failures).await;
    system.mail.heal().await;
    let few_deliveries = async || {
        system.configure_realm("limits: {deliveriesPerHour: 1, generateIntervalSeconds: 0}");
        eventually(BOUND, "deliveries to be used up", async || {
            let reply = system.kms.api.generate("alice-4").await;
            if reply.body.contains("delivery-limit-reached") { Ok(()) } else { Err(reply.body) }
        })
        .await;
    };
    alarms.fire(&["TwoFactorDeliveryBudgetUsedUp"], few_deliveries).await;
    let hang = async || {
        system.cluster.redis.pause().await;
        let answers = (0..20).map(|_| system.kms.api.verify("carol", "000000"));
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.status, 503, "{}", answer.body);
        }
        system.cluster.redis.resume();
    };
    alarms.fire(&["TwoFactorVerifiesSlow", "TwoFactorDecisionsUnavailable"], hang).await;
}

async fn objects_of_the_cluster(system: &Observed) {
    let (alarms, cluster) = (&system.alarms, &system.cluster);
    let all = [
        "TwoFactorPodsNotInjected",
        "TwoFactorPodsWaiting",
        "TwoFactorPodsOutdated",
        "TwoFactorUsersNotReady",
        "TwoFactorManyUsersNotReady",
        "TwoFactorRealmsNotReady",
        "TwoFactorUsersDisabledByFailures",
    ];
    let write = async || {
        // A pod that no webhook has seen, one that the realm does not allow, and an old one.
        let label = "--labels=twofactor.fountainai.io/inject=true";
        let _ = cluster.kubectl(&["run", "late", "--image=any", label]);
        let stranger = cluster.another_namespace("stranger");
        cluster.ask_from(&stranger);
        let old = "--annotations=twofactor.fountainai.io/injected=0.0.1";
        let _ = cluster.kubectl(&["run", "old", "--image=any", label, old]);
        let mut users = String::new();
        for number in 0..7 {
            let spec = "deliveryMethod: app\n  secretRef: {name: missing}";
            users += &user(&format!("erin-{number}"), spec);
        }
        cluster.apply(&users);
        system.configure_realm("delivery: {secretRef: {name: missing}}");
        let mut connection = cluster.redis.connect().await;
        let states: Vec<String> = connection.keys("*:state").await.unwrap();
        for state in states {
            let () = connection.hset(&state, "failures:another", DISABLED_AFTER - 1).await.unwrap();
        }
        eventually(BOUND, "the last failure", async || {
            let reply = system.kms.api.verify("dora", "0000000").await;
            if reply.status == 404 { Ok(()) } else { Err(reply.body) }
        })
        .await;
    };
    alarms.fire(&all, write).await;
    let invalid = json!({ "twofactor.fountainai.io/realm": "no name of a namespace" });
    let refuse = async || {
        let mut left = 8;
        eventually_every(Duration::from_millis(500), BOUND, "eight refusals", async || {
            let answer = cluster.review_annotated(&system.admission, &invalid).await.unwrap();
            assert_eq!(answer["response"]["allowed"], false, "{answer}");
            left -= 1;
            left == 0
        })
        .await;
    };
    alarms.fire(&["TwoFactorPodsRefused"], refuse).await;
    let slow = SlowNetwork::start(system.admission.address).await;
    let large = json!({ "note": "x".repeat(LARGE) });
    let slowly = async || {
        let answer = cluster.review_at(slow.address(), &large).await.unwrap();
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
    };
    alarms.fire(&["TwoFactorAdmissionSlow"], slowly).await;
    let unreadable = async || {
        // A CRD of another version may accept objects that this operator cannot read.
        let patch = r#"[{"op":"remove","path":"/spec/versions/0/selectableFields"},{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}]"#;
        let _ = cluster.server.kubectl(&["patch", "crd", CRD, "--type=json", "-p", patch]);
        eventually(BOUND, "the permissive schema", async || {
            cluster.try_apply(&user("broken", "enabled: [perhaps]\n  deliveryMethod: pigeon"), &[])
        })
        .await;
    };
    alarms.fire(&["TwoFactorObjectsUnreadable"], unreadable).await;
}

async fn damaged_data(system: &Observed) {
    let alarms = &system.alarms;
    let spoil = async || {
        let mut connection = system.cluster.redis.connect().await;
        let records: Vec<String> = connection.keys("*:rec").await.unwrap();
        for record in records {
            let () = connection.set(record, "spoilt").await.unwrap();
        }
        eventually(BOUND, "a refused record", async || {
            let reply = system.kms.api.verify("carol", "000000").await;
            if reply.status == 503 { Ok(()) } else { Err(reply.body) }
        })
        .await;
    };
    alarms.fire(&["TwoFactorRecordsRefused"], spoil).await;
    let damage = async || {
        fs::write(system.kms.folder().join("installation"), "no UID at all: \n").unwrap();
    };
    alarms.fire(&["TwoFactorCredentialsInvalid"], damage).await;
    system.cluster.mount(&system.cluster.namespace, system.kms.folder());
    let users = scratch::folder("exposed");
    fs::write(users.path().join("users.yaml"), app_user("carol")).unwrap();
    let path = users.path().to_str().unwrap();
    let exposing =
        SidecarProcess::builder().args(["dev", "--expose-codes=true", path]).start().await;
    let observe = async || {
        system.observe(&[
            of_system("controller", system.controller.admin_port()),
            of_system("admission", system.admission.process.admin_port()),
            of_service("exposing", exposing.admin_port()),
        ]);
    };
    alarms.fire(&["TwoFactorCodesExposed"], observe).await;
}

async fn outages(system: &Observed) {
    let (alarms, cluster) = (&system.alarms, &system.cluster);
    // Without the realm, the other namespace is not allowed any more, and loses its login.
    let withdraw = async || drop(cluster.kubectl(&["delete", "tfr", "default"]));
    alarms.fire(&["TwoFactorSidecarsWithoutRedis"], withdraw).await;
    let kill = async || {
        let _ = cluster.redis.kill();
    };
    alarms.fire(&["TwoFactorRedisUnavailable"], kill).await;
    let delete = async || drop(cluster.kubectl(&["delete", "tfu", "dora", "--wait=false"]));
    alarms.fire(&["TwoFactorRemovalsWait"], delete).await;
    let kill = async || {
        let _ = system.admission.process.process().kill();
    };
    alarms.fire(&["TwoFactorAdmissionAbsent"], kill).await;
}
