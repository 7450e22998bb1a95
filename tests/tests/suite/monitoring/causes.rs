//! Brings about what alerts are about, and waits until they fire. How long each waits before it
//! fires is tested with `promtool`.

use twofactor_tests::mail::MailStage;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use super::observed::Observed;
use crate::support::cluster::BOUND;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_fire_by_their_real_causes_and_none_fires_without() {
    let system = Observed::start().await;
    let seed = system.cluster.seed("carol");
    system.kms.wait_accepted("carol", &seed).await;
    // A user has no seed on purpose, and Redis of the test is not durable.
    let usual = ["TwoFactorUsersNotReady", "TwoFactorRedisWeak"];
    for name in usual {
        system.wait_for_alert(name).await;
    }
    // Alerts about what has no delay here may fire while the system starts.
    eventually(BOUND, "no other alert", async || {
        let mut firing = system.prometheus.firing().await;
        firing.retain(|name| !usual.contains(&name.as_str()));
        if firing.is_empty() { Ok(()) } else { Err(format!("{firing:?}")) }
    })
    .await;

    system.mail.fail(MailStage::Data, "451 4.3.0 later", None).await;
    for number in 0..4 {
        let reply = system.kms.api.generate(&format!("alice-{number}")).await;
        assert_eq!(reply.status, 502, "{}", reply.body);
    }
    system.wait_for_alert("TwoFactorDeliveriesFail").await;

    for _ in 0..12 {
        let _ = system.shop.api.verify("dora", "000000").await;
    }
    system.wait_for_alert("TwoFactorUsersThrottled").await;

    // Without the realm, the other namespace is not allowed any more, and loses its login.
    let _ = system.cluster.kubectl(&["delete", "tfr", "default"]);
    system.wait_for_alert("TwoFactorSidecarsWithoutRedis").await;

    // A pod that no webhook has seen.
    let label = "--labels=twofactor.fountainai.io/inject=true";
    let _ = system.cluster.kubectl(&["run", "late", "--image=any", label]);
    system.wait_for_alert("TwoFactorPodsNotInjected").await;

    system.cluster.redis.kill();
    system.wait_for_alert("TwoFactorRedisUnavailable").await;
    let _ = system.cluster.kubectl(&["delete", "tfu", "dora", "--wait=false"]);
    system.wait_for_alert("TwoFactorRemovalsWait").await;
    for _ in 0..4 {
        assert_eq!(system.kms.api.verify("carol", "000000").await.status, 503);
    }
    system.wait_for_alert("TwoFactorDecisionsUnavailable").await;

    let _ = system.controller.process().kill();
    system.wait_for_alert("TwoFactorControllerAbsent").await;
    let _ = system.admission.process().kill();
    system.wait_for_alert("TwoFactorAdmissionAbsent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_fire_about_a_wrong_clock_a_full_redis_and_a_damaged_key() {
    let system = Observed::start().await;
    let now = system.cluster.redis.clock().unix_millis().await;
    system.cluster.redis.clock().set_unix_millis(now + 60_000).await;
    fill(&system.cluster.redis).await;
    // The leader looks at these each minute, and when it begins to lead.
    let _ = system.controller.process().kill();
    system.wait_for_alert("TwoFactorControllerAbsent").await;
    let again = system.cluster.operator().start().await;
    system.observe_controller(&again);
    for name in ["TwoFactorClockDiffers", "TwoFactorRedisFull", "TwoFactorRedisMemoryHigh"] {
        system.wait_for_alert(name).await;
    }
    let _ = again.process().kill();
    let home = &system.cluster.home;
    let damage = r#"{"data":{"master-key":"AAAA"}}"#;
    let _ = system.cluster.server.kubectl(&[
        "--namespace",
        home,
        "patch",
        "secret",
        "twofactor-master-key",
        "--type=merge",
        "-p",
        damage,
    ]);
    let blocked = system.cluster.operator().start().await;
    system.observe_controller(&blocked);
    system.wait_for_alert("TwoFactorLeaderBlocked").await;
}

/// Fills Redis, and lowers its limit to slightly more than it uses.
async fn fill(redis: &RedisServer) {
    let large = "x".repeat(1024 * 1024);
    for number in 0..40 {
        let _: () = redis.ask(&["set", &format!("ballast-{number}"), &large]).await;
    }
    let info: String = redis.ask(&["info", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let limit = used.trim().parse::<u64>().unwrap() * 100 / 98;
    let _: () = redis.ask(&["config", "set", "maxmemory", &limit.to_string()]).await;
}
