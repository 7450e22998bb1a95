//! Tests the operator while Redis is unavailable, flushed or restored from an old snapshot, while
//! the API server is unavailable, failing or slow, and when namespaces are deleted.

use std::time::{Duration, Instant};

use twofactor_tests::faults::{Fault, FaultProxy};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::{AppendFsync, RedisServer};
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user, code_of, user};

#[tokio::test]
async fn the_operator_starts_and_users_change_while_redis_is_unavailable() {
    let cluster = Cluster::start().await;
    cluster.redis.kill();
    let operator = cluster.operator().start().await;
    cluster.apply(&[app_user("carol"), app_user("dora")].concat());
    let (status, ..) =
        eventually(BOUND, "a condition of carol", async || cluster.condition("carol", "Published"))
            .await;
    assert_eq!(status, "False");
    assert_eq!(
        operator.admin().get("/readyz").await.status,
        200,
        "readiness never depends on Redis"
    );
    cluster.redis.restart().await;
    cluster.wait_ready("carol").await;
    cluster.wait_ready("dora").await;
    let sidecar = cluster.sidecar().await;
    let (carol, dora) = (cluster.seed("carol"), cluster.seed("dora"));
    sidecar.wait_accepted("carol", &carol).await;
    // Redis is unavailable again while one user is created, one changed and one deleted.
    cluster.redis.kill();
    cluster.apply(
        &[app_user("erin"), user("carol", "deliveryMethod: app\n  enabled: false")].concat(),
    );
    let _ = cluster.kubectl(&["delete", "tfu", "dora", "--wait=false"]);
    assert_eq!(sidecar.verify_seed("dora", &dora).await.status, 503);
    cluster.redis.restart().await;
    cluster.wait_ready("erin").await;
    sidecar.wait_accepted("erin", &cluster.seed("erin")).await;
    eventually(BOUND, "dora to be unknown", async || {
        sidecar.verify_seed("dora", &dora).await.status == 404
    })
    .await;
    eventually(BOUND, "carol to be disabled", async || {
        sidecar.verify_seed("carol", &carol).await.status == 404
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_starts_without_redis_parks_its_users_and_reads_nothing_for_them() {
    const USERS: usize = 200;
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let users: String = (0..USERS).map(|number| app_user(&format!("user{number:03}"))).collect();
    cluster.apply(&users);
    let metric = async |operator: &OperatorProcess, name: &str| {
        let metrics = operator.admin().get("/metrics").await.body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_default().parse::<usize>().unwrap_or_default()
    };
    eventually(BOUND, "all users to be ready", async || {
        let ready = metric(&operator, "twofactor_users{ready=\"true\"}").await;
        if ready == USERS { Ok(()) } else { Err(format!("{ready} are ready")) }
    })
    .await;
    drop(operator);
    cluster.redis.kill();
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let operator = cluster.operator_with(&kubeconfig).start().await;
    eventually(BOUND, "all users to be parked", async || {
        let parked = metric(&operator, "twofactor_users_parked").await;
        if parked == USERS { Ok(()) } else { Err(format!("{parked} are parked")) }
    })
    .await;
    let renewals =
        || proxy.count(|request| request.starts_with("PUT") && request.contains("leases"));
    let before = renewals();
    eventually(BOUND, "some seconds to pass", async || renewals() >= before + 3).await;
    let read = proxy.count(|request| request.starts_with("GET") && request.contains("-totp"));
    let written = proxy.count(|request| request.contains("/status"));
    assert_eq!((read, written), (0, 0), "Secrets read and statuses written");
    // A user that is new meanwhile gets a Secret and a reason.
    cluster.apply(&app_user("carol"));
    cluster.wait_not_ready("carol", "StoreUnavailable").await;
    cluster.redis.restart().await;
    cluster.wait_ready("carol").await;
    eventually(BOUND, "no user to be parked or queued", async || {
        metric(&operator, "twofactor_users_parked").await == 0
            && metric(&operator, "workqueue_depth{name=\"twofactoruser\"}").await == 0
    })
    .await;
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted("user007", &cluster.seed("user007")).await;
}

#[tokio::test]
async fn a_thousand_users_are_served_again_within_ten_seconds_of_a_flush() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let users: String = (0..1000).map(|number| app_user(&format!("user{number:04}"))).collect();
    cluster.apply(&users);
    cluster.wait_ready("user0000").await;
    eventually(Duration::from_mins(3), "a thousand users to be ready", async || {
        let reasons = cluster.kubectl(&[
            "get",
            "tfu",
            "-o",
            "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}",
        ]);
        let ready = reasons.lines().filter(|line| *line == "True").count();
        if ready == 1000 { Ok(()) } else { Err(format!("{ready} are ready")) }
    })
    .await;
    let sidecar = cluster.sidecar().await;
    let seed = cluster.seed("user0500");
    let used = code_of(&seed);
    assert_eq!(sidecar.api.verify("user0500", &used).await.status, 200);
    cluster.redis.flush_all().await;
    let began = Instant::now();
    eventually(BOUND, "the refill", async || {
        let reply = sidecar.api.verify("user0999", "000000").await;
        match reply.status {
            503 => Err(reply.body),
            401 => Ok(()),
            status => panic!("{status}: {}", reply.body),
        }
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(cluster.user_keys().await.iter().filter(|key| key.ends_with(":rec")).count(), 1000);
    // The used code is not accepted again, and the next one comes from the same seed.
    assert_ne!(sidecar.api.verify("user0500", &used).await.status, 200);
    assert_eq!(cluster.seed("user0500"), seed);
    sidecar.wait_accepted("user0500", &seed).await;
}

#[tokio::test]
async fn a_redis_restarted_with_lost_writes_accepts_no_code_twice() {
    let redis = RedisServer::builder()
        .append_only(AppendFsync::EverySec)
        .args(["--appendfsync", "no"])
        .start()
        .await;
    let cluster = Cluster::with_redis(redis).await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let (sidecar, seed) = (cluster.sidecar().await, cluster.seed("carol"));
    let used = code_of(&seed);
    assert_eq!(sidecar.api.verify("carol", &used).await.status, 200);
    cluster.redis.kill();
    cluster.redis.restart().await;
    eventually(BOUND, "the node to be checked", async || {
        let reply = sidecar.api.verify("carol", &used).await;
        match reply.status {
            503 => Err(reply.body),
            400 | 401 => Ok(()),
            status => panic!("accepted twice: {status}"),
        }
    })
    .await;
    sidecar.wait_accepted("carol", &seed).await;
}

#[tokio::test]
async fn redis_data_of_yesterday_is_corrected_before_any_decision() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&[app_user("carol"), app_user("deleted")].concat());
    cluster.wait_ready("carol").await;
    cluster.wait_ready("deleted").await;
    let (sidecar, seed, deleted) =
        (cluster.sidecar().await, cluster.seed("carol"), cluster.seed("deleted"));
    redis::cmd("SAVE").exec_async(&mut cluster.redis.connect().await).await.unwrap();
    // After the snapshot one user is deleted, one disabled and one created.
    let _ = cluster.kubectl(&["delete", "tfu", "deleted", "--wait=false"]);
    cluster
        .apply(&[app_user("new"), user("carol", "deliveryMethod: app\n  enabled: false")].concat());
    cluster.wait_ready("new").await;
    eventually(BOUND, "today", async || {
        sidecar.verify_seed("deleted", &deleted).await.status == 404
            && sidecar.verify_seed("carol", &seed).await.status == 404
    })
    .await;
    cluster.redis.kill();
    cluster.redis.restart().await;
    let new = cluster.seed("new");
    for (name, seed, expected) in [("deleted", &deleted, 404), ("carol", &seed, 404)] {
        eventually(BOUND, format_args!("{name} to be put right"), async || {
            let status = sidecar.verify_seed(name, seed).await.status;
            assert!(status == 503 || status == expected, "{name}: {status}");
            status == expected
        })
        .await;
    }
    sidecar.wait_accepted("new", &new).await;
}

#[tokio::test]
async fn the_operator_waits_for_an_api_server_that_is_unavailable() {
    let cluster = Cluster::on_own_server(&[]).await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    cluster.server.kill_apiserver();
    let sidecar_still_serves = cluster.user_keys().await.len();
    assert!(sidecar_still_serves > 0);
    cluster.server.restart_apiserver().await;
    cluster.apply(&app_user("dora"));
    eventually(Duration::from_mins(2), "dora to be ready", async || {
        cluster.ready("dora").filter(|ready| ready.0 == "True")
    })
    .await;
    operator.process().assert_running();
    cluster.wait_ready("carol").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_fails_or_is_slow_only_delays_a_user() {
    let cluster = Cluster::start().await;
    let proxy = FaultProxy::start(&cluster.server).await;
    let operator = cluster
        .operator_with(&proxy.kubeconfig(&cluster.server, &cluster.kubeconfig))
        .start()
        .await;
    for (number, fault) in [
        Fault::Writes(409),
        Fault::Writes(429),
        Fault::Writes(500),
        Fault::Everything(500),
        Fault::Slow(Duration::from_secs(1)),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("user{number}");
        let before = proxy.hits();
        proxy.set(Some(fault));
        cluster.apply(&app_user(&name));
        eventually(BOUND, format_args!("{fault:?} to be met"), async || proxy.hits() > before)
            .await;
        proxy.set(None);
        cluster.wait_ready(&name).await;
        operator.process().assert_running();
    }
    let sidecar = cluster.sidecar().await;
    for number in 0..5 {
        let name = format!("user{number}");
        sidecar.wait_accepted(&name, &cluster.seed(&name)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_takes_effect_within_a_minute_of_the_silent_end_of_all_watches() {
    let cluster = Cluster::start().await;
    let proxy = FaultProxy::start(&cluster.server).await;
    let kubeconfig = proxy.kubeconfig(&cluster.server, &cluster.kubeconfig);
    let operator = cluster.operator_with(&kubeconfig).start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let (sidecar, seed) = (cluster.sidecar().await, cluster.seed("carol"));
    sidecar.wait_accepted("carol", &seed).await;
    proxy.silence();
    cluster.apply(&user("carol", "deliveryMethod: app\n  enabled: false"));
    eventually(Duration::from_mins(1), "carol to be disabled", async || {
        sidecar.verify_seed("carol", &seed).await.status == 404
    })
    .await;
    assert_eq!(operator.admin().get("/livez").await.status, 200);
    let metrics = operator.admin().get("/metrics").await.body;
    for resource in ["namespaces", "pods", "secrets", "twofactorrealms", "twofactorusers"] {
        let name = format!("twofactor_watch_sign_age_seconds{{resource=\"{resource}\"}}");
        assert!(metrics.contains(&name), "{name} is missing in {metrics}");
    }
}

#[tokio::test]
async fn a_namespace_deleted_while_no_operator_runs_leaves_no_key() {
    let cluster =
        Cluster::on_own_server(&["namespace-controller", "garbage-collector-controller"]).await;
    let operator = cluster.operator().start().await;
    cluster.apply(&[app_user("carol"), app_user("dora")].concat());
    cluster.wait_ready("carol").await;
    cluster.wait_ready("dora").await;
    operator.process().kill();
    let _ = cluster.server.kubectl(&["delete", "namespace", &cluster.namespace, "--timeout=60s"]);
    let _operator = cluster.operator().start().await;
    eventually(BOUND, "no key to be left", async || {
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut cluster.redis.connect().await)
            .await
            .unwrap();
        // The heartbeat and the owner's mark belong to no realm.
        let is_the_operators =
            |key: &&String| key.ends_with(":heartbeat") || key.contains("{owner}");
        let keys: Vec<&String> = keys.iter().filter(|key| !is_the_operators(key)).collect();
        if keys.is_empty() { Ok(()) } else { Err(format!("{keys:?}")) }
    })
    .await;
}

#[tokio::test]
async fn an_unreadable_object_does_not_stop_the_other_users() {
    let cluster = Cluster::on_own_server(&[]).await;
    let operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    // A CRD of another version may accept objects that this operator cannot read.
    let patch = r#"[{"op":"remove","path":"/spec/versions/0/selectableFields"},{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}]"#;
    let _ = cluster.server.kubectl(&[
        "patch",
        "crd",
        "twofactorusers.twofactor.fountainai.io",
        "--type=json",
        "-p",
        patch,
    ]);
    eventually(BOUND, "the permissive schema", async || {
        cluster.try_apply(&user("broken", "enabled: [perhaps]\n  deliveryMethod: pigeon"), &[])
    })
    .await;
    cluster.apply(&app_user("dora"));
    cluster.wait_ready("dora").await;
    operator.process().assert_running();
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted("dora", &cluster.seed("dora")).await;
    // A new operator, which lists instead of watching, is not stopped either.
    operator.process().kill();
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("erin"));
    cluster.wait_ready("erin").await;
}

#[tokio::test]
async fn an_operator_publishes_the_configuration_it_is_restarted_with() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    cluster.apply(&user("alice", "email: alice@example.org"));
    cluster.wait_ready("alice").await;
    let sidecar = cluster.sidecar().await;
    let reply = sidecar.api.generate("alice").await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    drop(operator);
    let mail = twofactor_tests::mail::MailServer::start().await;
    let _operator = cluster
        .operator()
        .env("SMTP_SERVER", "localhost")
        .env("SMTP_PORT", &mail.port().to_string())
        .env("SMTP_SECURITY", "plain")
        .env("SMTP_FROM_EMAIL", "otp@example.org")
        .start()
        .await;
    eventually(BOUND, "a mail", async || sidecar.api.generate("alice").await.status == 200).await;
    let mail = mail.wait_for_message("alice@example.org", BOUND).await;
    let code = mail.text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(sidecar.api.verify("alice", &code).await.status, 200);
}

#[tokio::test]
async fn operators_of_different_namespaces_keep_each_others_users() {
    let (one, two) = (Cluster::start().await, Cluster::start().await);
    // Both use one Redis and one installation; only the namespaces and the Leases differ.
    let lease = "twofactor-other";
    let rights =
        ["--verb=get,update", "--resource=leases.coordination.k8s.io", "--resource-name", lease];
    let home = ["--namespace", &one.home];
    let _ = one.server.kubectl(&[&home[..], &["create", "role", lease], &rights].concat());
    let account = format!("--serviceaccount={}:twofactor-operator", one.home);
    let binding = ["create", "rolebinding", lease, "--role", lease, &account];
    let _ = one.server.kubectl(&[&home[..], &binding].concat());
    let other = || {
        let arguments =
            ["--namespace", &two.namespace, "--operator-namespace", &one.home, "--lease", lease];
        twofactor_tests::operator::OperatorProcess::builder(&one.kubeconfig)
            .args(arguments)
            .env("REDIS_URL", &one.redis.url())
            .env("POD_NAME", "other-0")
            .start()
    };
    let _first = one.operator().start().await;
    one.apply(&app_user("carol"));
    one.wait_ready("carol").await;
    let second = other().await;
    two.apply(&app_user("dora"));
    two.wait_ready("dora").await;
    // An operator removes unknown records when it starts.
    drop(second);
    let _second = other().await;
    two.apply(&app_user("erin"));
    two.wait_ready("erin").await;
    assert_eq!(one.user_keys().await.iter().filter(|key| key.ends_with(":rec")).count(), 3);
    let sidecar = one.sidecar().await;
    assert_eq!(sidecar.verify_seed("carol", &one.seed("carol")).await.status, 200);
}

#[tokio::test]
async fn an_unchanged_record_of_yesterday_is_published_again() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    redis::cmd("SAVE").exec_async(&mut cluster.redis.connect().await).await.unwrap();
    // The same record is published again under a higher revision, which the sidecar reads.
    cluster.redis.flush_all().await;
    let (sidecar, seed) = (cluster.sidecar().await, cluster.seed("carol"));
    sidecar.wait_accepted("carol", &seed).await;
    cluster.redis.kill();
    cluster.redis.restart().await;
    sidecar.wait_accepted("carol", &seed).await;
}

#[tokio::test]
async fn a_namespace_of_the_same_name_is_another_realm() {
    let cluster =
        Cluster::on_own_server(&["namespace-controller", "garbage-collector-controller"]).await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let (old_sidecar, old_seed) = (cluster.sidecar().await, cluster.seed("carol"));
    let _ = cluster.server.kubectl(&["delete", "namespace", &cluster.namespace, "--timeout=60s"]);
    let _ = cluster.server.kubectl(&["create", "namespace", &cluster.namespace]);
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    let seed = cluster.seed("carol");
    assert_ne!(seed, old_seed);
    // The operator now writes the credentials of the new realm.
    eventually(BOUND, "a code to be accepted with the new credentials", async || {
        let reply = cluster.sidecar().await.verify_seed("carol", &seed).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.body) }
    })
    .await;
    assert_ne!(old_sidecar.verify_seed("carol", &old_seed).await.status, 200);
}

#[tokio::test]
async fn the_leader_looks_for_redis_several_times_a_second_while_it_is_away() {
    let cluster = Cluster::start().await;
    let operator = cluster.operator().start().await;
    let metric = async |name: &str| {
        let text = operator.admin().get("/metrics").await.body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(0_u32)
    };
    let is_up = async || metric("twofactor_store_up ").await == 1;
    eventually(BOUND, "Redis to answer", is_up).await;
    cluster.redis.kill();
    eventually(BOUND, "Redis to be away", async || !is_up().await).await;
    let failures = "twofactor_store_failures_total{reason=\"no-answer\"} ";
    let (begun, before) = (Instant::now(), metric(failures).await);
    eventually(BOUND, "four attempts", async || metric(failures).await >= before + 4).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "one attempt a second would be as fast");
    cluster.redis.restart().await;
    eventually(BOUND, "Redis to answer again", is_up).await;
}
