//! Tests that sidecars run only scripts that the publisher has loaded, and that those of the
//! previous release are among them.

use std::time::Duration;

use redis::Value;
use twofactor_core::decision::Verdict;
use twofactor_core::limits::Allowance;
use twofactor_core::user::DeliveryMethod::App;
use twofactor_store::redis::scripts;
use twofactor_store::{StoreError, StoreFailure};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::support::world::{Person, World, caller, names, random};

const BOUND: Duration = Duration::from_secs(30);

/// Checks Redis as the operator does every second.
async fn check(world: &World) {
    eventually(BOUND, "Redis to be checked", async || {
        let store = world.publisher.store().redis().unwrap();
        let nodes = store.nodes().await?;
        store.check_realms(&nodes, std::slice::from_ref(store), &mut random()).await
    })
    .await;
}

async fn known(server: &RedisServer) -> Vec<bool> {
    let scripts = scripts::of_sidecars();
    let mut words = vec!["SCRIPT", "EXISTS"];
    words.extend(scripts.iter().map(scripts::Script::hash));
    server.ask(&words).await
}

fn lacks_scripts<T>(result: &Result<T, StoreError>) -> bool {
    result.as_ref().is_err_and(|error| error.failure() == StoreFailure::ScriptsMissing)
}

/// Flushes the scripts of all servers, and expects sidecars to decide again after a check.
async fn flush_and_check(world: &World, person: &Person, servers: &[&RedisServer]) {
    for server in servers {
        assert_eq!(known(server).await, [true; 8]);
        let _: () = server.ask(&["SCRIPT", "FLUSH"]).await;
    }
    let code = person.code_at(world.now(), 0);
    for _ in 0..2 {
        let undecided = world.verify(person, "kms", &code).await;
        assert!(lacks_scripts(&undecided), "{undecided:?}");
    }
    check(world).await;
    assert_eq!(world.verify(person, "kms", &code).await.unwrap(), Verdict::Accepted);
    for server in servers {
        assert_eq!(known(server).await, [true; 8]);
        // The sidecar has asked for nothing that its login does not have.
        assert_eq!(server.ask::<Vec<Value>>(&["ACL", "LOG"]).await, []);
    }
}

#[tokio::test]
async fn a_sidecar_loads_no_script_and_decides_after_the_publisher_has_loaded_it() {
    let world = World::in_redis_as_a_service().await;
    let carol = world.person("carol", App).await;
    flush_and_check(&world, &carol, &[world.redis()]).await;
}

#[tokio::test]
async fn the_publisher_loads_the_scripts_on_each_master_of_a_cluster() {
    let world = World::in_a_cluster_as_a_service().await;
    let carol = world.person("carol", App).await;
    let servers: Vec<&RedisServer> = world.cluster.as_ref().unwrap().nodes().collect();
    flush_and_check(&world, &carol, &servers).await;
}

#[tokio::test]
async fn the_publisher_loads_the_scripts_before_it_completes_a_fill() {
    let world = World::in_redis_as_a_service().await;
    let carol = world.person("carol", App).await;
    let _: () = world.redis().ask(&["SCRIPT", "FLUSH"]).await;
    world.empty().await;
    world.fill(&[&carol]).await;
    assert_eq!(known(world.redis()).await, [true; 8]);
}

#[tokio::test]
async fn the_login_of_a_sidecar_of_the_previous_release_runs_the_scripts_of_that_release() {
    let world = World::in_redis().await;
    let carol = world.person("carol", App).await;
    let url = world.service_url(names()).await;
    let client = redis::Client::open(url).unwrap();
    let mut service = client.get_multiplexed_async_connection().await.unwrap();
    let user = names().user(&carol.pseudonym);
    let meta: std::collections::HashMap<String, String> =
        redis::cmd("HGETALL").arg(names().realm_meta()).query_async(&mut service).await.unwrap();
    let guards: Vec<String> = meta
        .iter()
        .filter_map(|(field, since)| Some(format!("{}={since}", field.strip_prefix("guard:")?)))
        .collect();
    let now = world.now();
    let step = carol.step(now).number();
    let scripts = scripts::of_sidecars();
    let [verify, issue, conclude, deliveries] = &scripts[4..] else { panic!() };
    let mut call = async |script: &scripts::Script, keys: &[&str], arguments: &[String]| {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.hash()).arg(keys.len()).arg(keys).arg(arguments);
        let answer: Vec<Value> = command.query_async(&mut service).await.unwrap();
        redis::from_redis_value::<String>(answer[0].clone()).unwrap()
    };
    let checked = [
        guards.join(" "),
        carol.revision.0.to_string(),
        now.millis().to_string(),
        "2000".to_owned(),
    ];
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let trace = ["86400000", "app", "", ""];
    let (state, otp, log) = (user.state.as_str(), user.otp.as_str(), user.log.as_str());

    let wish = text(&["kms", "tag", &step.to_string(), "30", "300000", "60000", "10"]);
    let arguments = [&checked[..], &wish, &text(&trace), &text(&["20"])].concat();
    assert_eq!(call(issue, &[state, otp, log], &arguments).await, "issued");
    let rules = ["30", "1", "5", "30000", "3600000", "100"];
    let claim = text(&["authenticator", "kms", "tag", &step.to_string()]);
    let arguments = [&checked[..], &claim, &text(&rules), &text(&trace)].concat();
    assert_eq!(call(verify, &[state, otp, log], &arguments).await, "accepted");
    let arguments = text(&["kms", "generate", "sent", "nothing", "0"]);
    let arguments = [arguments, text(&trace)].concat();
    assert_eq!(call(conclude, &[state, log], &arguments).await, "concluded");
    let sent = names().realm_deliveries();
    // Both releases count the same deliveries, in either order.
    for _ in 0..2 {
        let counted = world.store.count_delivery(&caller("kms"), 4, 0).await.unwrap();
        assert_eq!(counted, Allowance::Granted);
        assert_eq!(call(deliveries, &[&sent], &text(&["4"])).await, "granted");
    }
    let counted = world.store.count_delivery(&caller("kms"), 4, 0).await.unwrap();
    assert!(matches!(counted, Allowance::LimitReached { .. }), "{counted:?}");
    assert_eq!(call(deliveries, &[&sent], &text(&["4"])).await, "used-up");
}
