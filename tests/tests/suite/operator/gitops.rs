//! Tries the examples for tools for Git with their own evaluators: Argo CD's Lua with a real Lua
//! 5.1, and kstatus, which Flux uses too, with `helm upgrade --wait`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use twofactor_tests::process::try_run;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::{scratch, tools};

use crate::support::cluster::{Cluster, user};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/gitops/");

fn example(name: &str) -> Value {
    serde_saphyr::from_str(&fs::read_to_string(Path::new(EXAMPLES).join(name)).unwrap()).unwrap()
}

fn object(generation: u32, observed: u32, ready: &str, reason: &str) -> Value {
    let other = json!({ "type": "Published", "status": "False", "reason": "x", "message": "y" });
    let ready = json!({ "type": "Ready", "status": ready, "reason": reason, "message": "because" });
    json!({
        "metadata": { "generation": generation },
        "status": { "observedGeneration": observed, "conditions": [other, ready] },
    })
}

#[tokio::test]
async fn argo_cd_sees_which_objects_are_healthy_progress_or_need_an_administrator() {
    let redis = RedisServer::start().await;
    let mut connection = redis.connect().await;
    let map = example("argocd-cm.yaml");
    for kind in ["TwoFactorUser", "TwoFactorRealm"] {
        let key = format!("resource.customizations.health.twofactor.fountainai.io_{kind}");
        let health = map["data"][key].as_str().unwrap();
        // Redis runs the script with the version of Lua that Argo CD has.
        let script = format!(
            "local function health(obj) {health} end return cjson.encode(health(cjson.decode(ARGV[1])))"
        );
        let new = json!({ "metadata": { "generation": 1 } });
        for (object, expected) in [
            (new, "Progressing"),
            (
                json!({ "metadata": { "generation": 1 }, "status": { "observedGeneration": 1 } }),
                "Progressing",
            ),
            (object(2, 1, "True", "Ready"), "Progressing"),
            (object(2, 2, "True", "Ready"), "Healthy"),
            (object(2, 2, "True", "Disabled"), "Healthy"),
            (object(2, 2, "True", "DisabledByFailures"), "Healthy"),
            (object(2, 2, "False", "StoreFilling"), "Progressing"),
            (object(2, 2, "False", "WaitingForPredecessor"), "Progressing"),
            (object(2, 2, "False", "ImportRefused"), "Degraded"),
            (object(2, 2, "False", "SecretNotFound"), "Degraded"),
        ] {
            let answer: String = redis::cmd("EVAL")
                .arg(&script)
                .arg(0)
                .arg(object.to_string())
                .query_async(&mut connection)
                .await
                .unwrap();
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["status"], expected, "{object}");
            assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
        }
    }
}

#[tokio::test]
async fn helm_and_flux_wait_for_users_and_are_content_with_disabled_ones() {
    assert_eq!(example("flux-kustomization.yaml")["spec"]["wait"], true);
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    let folder = scratch::folder("users-chart");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    fs::create_dir(folder.path().join("templates")).unwrap();
    write("Chart.yaml", "apiVersion: v2\nname: people\nversion: 0.0.1\n");
    let kubeconfig = cluster.server.kubeconfig_path();
    let helm = |args: &[&str]| {
        let (kubeconfig, chart) = (kubeconfig.to_str().unwrap(), folder.path().to_str().unwrap());
        let on = ["--kubeconfig", kubeconfig, "--namespace", &cluster.namespace];
        try_run(tools::find("helm"), &[&on[..], args, &[chart]].concat())
    };
    let users = [
        user("alice", "deliveryMethod: app"),
        user("zoe", "deliveryMethod: app\n  enabled: false"),
        user("bob", "deliveryMethod: app\n  secretRef: {name: none}"),
    ];
    // kstatus takes objects without a status for ready, so it is asked when they have one.
    write("templates/users.yaml", &users[..2].concat());
    helm(&["install", "good"]).unwrap();
    cluster.wait_condition("zoe", "Ready", "True", "Disabled").await;
    cluster.wait_ready("alice").await;
    helm(&["upgrade", "--wait", "--timeout", "60s", "good"]).unwrap();
    write("templates/users.yaml", &users[2]);
    helm(&["install", "bad"]).unwrap();
    cluster.wait_not_ready("bob", "ImportRefused").await;
    let error = helm(&["upgrade", "--wait", "--timeout", "5s", "bad"]).unwrap_err();
    assert!(error.contains("bob"), "{error}");
}
