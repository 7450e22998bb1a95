//! Kills components while a service verifies continuously: no answer may be wrong, no code accepted
//! twice, and an outage is allowed only while Redis is unavailable or being checked.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::wait::eventually_blocking;

use crate::load::{Load, now};
use crate::release::{self, CONTROLLER, NAMESPACE, REDIS_LABEL};
use crate::scene::Scene;
use crate::{START, finally};

/// Seconds from a ready Redis to the first decision, in which the operator checks the node and the
/// sidecars reconnect.
const CHECK: u64 = 30;
/// Timeout for every sidecar to use other credentials, which the kubelet updates within a minute or
/// two.
const FOLLOWED: Duration = Duration::from_mins(4);

pub(crate) fn a_killed_operator_changes_no_answer(scene: &Scene<'_>) {
    let load = Load::start(scene);
    let kubectl = scene.kubectl();
    let leader = || {
        let lease = kubectl.try_get(&["lease", "twofactor-operator", "--namespace", NAMESPACE])?;
        let holder = lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty());
        holder.map(str::to_owned).ok_or_else(|| "no replica leads".to_owned())
    };
    let killed = leader().expect("a leader");
    // The lease holds the name of the pod, perhaps with a suffix.
    let pods = kubectl.get(&["pods", "--namespace", NAMESPACE]);
    let names = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["metadata"]["name"].as_str());
    let pod = names
        .into_iter()
        .find(|name| killed.starts_with(*name))
        .expect("the leader's pod")
        .to_owned();
    let at = now();
    kubectl.run(&["delete", "pod", &pod, "--grace-period=0", "--force", "--namespace", NAMESPACE]);
    eventually_blocking(Duration::from_mins(1), "another leader", || {
        let leads = leader()?;
        if leads == killed { Err(format!("{leads} still leads")) } else { Ok(()) }
    });
    let took = now().saturating_sub(at);
    kubectl.wait_for_rollout(START, NAMESPACE, CONTROLLER);
    load.wait_until_accepted_after(now());
    let (answers, _) = load.check(&[]);
    scene.world.figure(
        "another operator leads after a kill",
        format!("{took} s ({answers} answers, none wrong, no outage)"),
    );
}

pub(crate) fn a_killed_redis_is_an_outage_and_nothing_else(scene: &Scene<'_>) {
    let load = Load::start(scene);
    let kubectl = scene.kubectl();
    let redis = || -> Result<Value, String> {
        let pods =
            kubectl.try_get(&["pods", "--selector", REDIS_LABEL, "--namespace", NAMESPACE])?;
        pods["items"]
            .as_array()
            .and_then(|pods| pods.first())
            .cloned()
            .ok_or_else(|| "no pod".to_owned())
    };
    let before = redis().expect("the chart's own Redis");
    let name = before["metadata"]["name"].as_str().expect("its name").to_owned();
    let restarts = load.restarts();
    let from = now().saturating_sub(1);
    kubectl.run(&["delete", "pod", &name, "--grace-period=0", "--force", "--namespace", NAMESPACE]);
    eventually_blocking(START, "another pod of Redis", || {
        let pod = redis()?;
        let ready = pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let another = pod["metadata"]["uid"] != before["metadata"]["uid"];
        if ready && another { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    let ready = now();
    load.wait_until_accepted_after(ready);
    let (answers, refused) = load.check(&[(from, ready + CHECK)]);
    assert_eq!(load.restarts(), restarts, "an outage of Redis restarted something");
    let first = refused.iter().map(|answer| answer.second).min().unwrap_or(ready);
    let last = refused.iter().map(|answer| answer.second).max().unwrap_or(ready);
    let value = format!(
        "{} s ({} of {answers} answers were 503)",
        last.saturating_sub(first),
        refused.len()
    );
    scene.world.figure("outage when the pod of Redis is killed", value);
}

/// The administrator edits the Secret twice within a minute, and restarts nothing.
pub(crate) fn another_password_of_redis_is_an_outage_of_seconds_at_most(scene: &Scene<'_>) {
    let load = Load::start(scene);
    let kubectl = scene.kubectl();
    let restarts = load.restarts();
    let from = now().saturating_sub(1);
    let password = format!("another-{}", now());
    for password in ["soon-replaced", &password] {
        let patch = json!({ "stringData": { "password": password } }).to_string();
        kubectl.run(&[
            "patch",
            "secret",
            "twofactor-redis",
            "--namespace",
            NAMESPACE,
            "--patch",
            &patch,
        ]);
    }
    let in_redis = |command: &str| {
        let command =
            format!("REDISCLI_AUTH={password} redis-cli -p 6380 --tls --insecure {command}");
        let exec =
            ["exec", "twofactor-redis-0", "--namespace", NAMESPACE, "--", "sh", "-c", &command];
        kubectl.try_run(&exec)
    };
    eventually_blocking(START, "Redis to have the new password", || match in_redis("ping") {
        Ok(reply) if reply.contains("PONG") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Everything logs in again, as after a restart.
    in_redis("client kill type normal").expect("to close all connections");
    load.wait_until_accepted_after(now());
    scene.users(&load.people, &[("after-the-change", json!({ "deliveryMethod": "app" }))]);
    let (answers, refused) = load.check(&[(from, now())]);
    assert_eq!(load.restarts(), restarts, "another password restarted something");
    let first = refused.iter().map(|answer| answer.second).min().unwrap_or_default();
    let last = refused.iter().map(|answer| answer.second).max().unwrap_or_default();
    assert!(last - first <= 10, "{refused:?}");
    let value = format!("{} s ({} of {answers} answers were 503)", last - first, refused.len());
    scene.world.figure("outage when the password of Redis is changed", value);
}

/// The administrator switches TLS of the chart's Redis off and on again. Redis is restarted each
/// time. Its services follow without another outage when the kubelet updates their credentials.
pub(crate) fn tls_of_redis_is_switched_off_and_on_with_no_outage_but_its_restarts(
    scene: &Scene<'_>,
) {
    let load = Load::start(scene);
    let restarts = load.restarts();
    let outages = RefCell::new(Vec::new());
    let install = |value: &str| {
        let from = now().saturating_sub(1);
        release::install(&[value]);
        outages.borrow_mut().push((from, now() + CHECK));
    };
    finally(
        || {
            install("redis.tls.enabled=false");
            wait_without_services_at(scene, 6380);
            load.wait_until_accepted_after(now());
        },
        || install("redis.tls.enabled=true"),
    );
    wait_without_services_at(scene, 6379);
    load.wait_until_accepted_after(now());
    let (answers, refused) = load.check(&outages.borrow());
    assert_eq!(load.restarts(), restarts, "another address of Redis restarted something");
    let value = format!("{} of {answers} answers were 503", refused.len());
    scene.world.figure("TLS of Redis off and on again", value);
}

/// Waits until no sidecar is connected to a port of the chart's Redis.
fn wait_without_services_at(scene: &Scene<'_>, port: u16) {
    let redis = ["exec", "twofactor-redis-0", "--namespace", NAMESPACE, "--"];
    let list = [&redis[..], &["sh", "/etc/redis/cli.sh", "client", "list"]].concat();
    let address = format!(":{port} fd=");
    eventually_blocking(FOLLOWED, format_args!("no sidecar at port {port}"), || {
        let clients = scene.kubectl().try_run(&list)?;
        // The login of a sidecar begins with the prefix of its keys.
        let is_there = |line: &&str| {
            line.contains("user=2fa1:")
                && line.split("laddr=").nth(1).is_some_and(|local| local.contains(&address))
        };
        let there: Vec<_> = clients.lines().filter(is_there).collect();
        if there.is_empty() { Ok(()) } else { Err(there.join("\n")) }
    });
}

pub(crate) fn a_killed_kubelet_changes_no_answer(scene: &Scene<'_>) {
    let load = Load::start(scene);
    let restarts = load.restarts();
    scene.world.control_node(&["kill", "kubelet"]);
    let stopped = || {
        // Logs come through the kubelet.
        eventually_blocking(Duration::from_secs(30), "the kubelet to stop", || {
            match load.answers() {
                Ok(_) => Err("it still answers"),
                Err(_) => Ok(()),
            }
        });
    };
    finally(stopped, || scene.world.control_node(&["start", "kubelet"]));
    let back = now();
    load.wait_until_answered_after(back);
    load.wait_until_accepted_after(back);
    load.check(&[]);
    assert_eq!(load.restarts(), restarts, "a restart of the kubelet restarted something");
}
