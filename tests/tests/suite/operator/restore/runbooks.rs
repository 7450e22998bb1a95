//! Runs the commands of the pages on restores and disasters on a real API server with its garbage
//! collector. The end-to-end tests run those that need pods.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::json;
use twofactor_tests::runbook::{Runbook, Shell};
use twofactor_tests::wait::eventually;

use super::collector::{CONTROLLERS, operator_forgets};
use super::{BACKUP, DISASTERS, MASTER_KEY};
use crate::support::cluster::{BOUND, Cluster, app_user};

fn run(shell: &Shell, page: &Runbook, heading: &str) {
    for block in page.blocks(heading) {
        shell.run(block);
    }
}

const CREATED: &str = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata:\n  \
                       name: default\nspec:\n  issuer: Acme\n---\n";

#[tokio::test]
async fn the_commands_of_backup_and_restore_bring_back_every_seed() {
    let cluster = Cluster::on_own_server(CONTROLLERS).await;
    let moved = format!("staff-{}", cluster.namespace);
    let _operator = cluster.operator().args(["--namespace", &moved]).start().await;
    cluster.apply(CREATED);
    for user in ["carol", "dora"] {
        let _ = cluster.saved_user(user).await;
    }
    let seeds = ["carol", "dora"].map(|user| cluster.seed(user));
    let (page, shell) = (Runbook::read(BACKUP), cluster.shell(&cluster.server.kubeconfig_path()));
    assert_eq!(
        page.headings(),
        [
            "Back up",
            "Restore a namespace",
            "Restore one Secret",
            "Move users to another namespace",
            "With GitOps"
        ]
    );
    run(&shell, &page, "Back up");

    let _ = cluster.server.kubectl(&["delete", "namespace", &cluster.namespace]);
    run(&shell, &page, "Restore a namespace");
    for (user, seed) in ["carol", "dora"].iter().zip(&seeds) {
        cluster.wait_adopted(user, seed).await;
    }
    assert!(cluster.get("tfr", "default").is_some());
    cluster.sidecar().await.wait_accepted("carol", &seeds[0]).await;

    operator_forgets(&cluster, "carol").await;
    let blocks = page.blocks("Restore one Secret");
    shell.run(blocks[0]);
    cluster.wait_adopted("carol", &seeds[0]).await;
    let _ = cluster.kubectl(&["annotate", "tfu", "carol", "twofactor.fountainai.io/rotate=1"]);
    eventually(BOUND, "a new seed", async || cluster.seed("carol") != seeds[0]).await;
    shell.run(blocks[1]);
    let _ = cluster.wait_event("carol", "SecretEdited").await;
    assert_eq!(cluster.seed("carol"), seeds[0]);

    run(&shell, &page, "With GitOps");
    cluster.wait_adopted("carol", &seeds[0]).await;

    run(&shell, &page, "Move users to another namespace");
    for (user, seed) in ["carol", "dora"].iter().zip(&seeds) {
        let path = format!("/api/v1/namespaces/{moved}/secrets/{user}-totp");
        let found = cluster.server.read(&path).unwrap()["data"]["secret"].clone();
        assert_eq!(found, BASE64.encode(seed.as_bytes()), "{user}");
        assert!(
            cluster
                .server
                .read(&format!("/api/v1/namespaces/{moved}/secrets/{user}-seed"))
                .is_none()
        );
    }
}

#[tokio::test]
async fn the_commands_of_disaster_recovery_bring_back_redis_cluster_and_master_key() {
    let first = Cluster::on_own_server(CONTROLLERS).await;
    let mut operator = first.operator().start().await;
    let _ = first.saved_user("carol").await;
    let seed = first.seed("carol");
    let page = Runbook::read(DISASTERS);
    assert_eq!(
        page.headings(),
        [
            "Redis is lost",
            "The cluster is lost",
            "A copy beside the original",
            "The master key is lost",
            "If no backup has it",
            "If Secrets were restored before their master key"
        ]
    );
    let shell = first.shell(&first.server.kubeconfig_path());
    run(&shell, &Runbook::read(BACKUP), "Back up");

    let sidecar = first.sidecar().await;
    first.redis.flush_all().await;
    run(&shell, &page, "Redis is lost");
    sidecar.wait_accepted("carol", &seed).await;

    // The cluster, in another one.
    let mut second = Cluster::on_own_server(CONTROLLERS).await;
    for namespace in [&second.namespace, &second.home] {
        let _ = second.server.kubectl(&["delete", "namespace", namespace]);
    }
    second.namespace.clone_from(&first.namespace);
    second.home.clone_from(&first.home);
    let there = first.shell(&second.server.kubeconfig_path());
    for file in ["operator.json", "secrets.json", "users.json"] {
        std::fs::copy(shell.folder().join(file), there.folder().join(file)).unwrap();
    }
    let [secrets, helm, namespace] = page.blocks("The cluster is lost")[..] else { panic!() };
    there.run(secrets);
    assert!(helm.starts_with("helm install"), "{helm}");
    second.bind_accounts();
    let operator_of_second = second.operator().start().await;
    there.run(namespace);
    second.wait_adopted("carol", &seed).await;
    second.sidecar().await.wait_accepted("carol", &seed).await;
    assert_eq!(second.master_key(), first.master_key());

    // A second cluster that has made a key of its own before.
    drop(operator_of_second);
    second.lose("carol");
    let own = json!({ "master-key": BASE64.encode(&[7; 32]) });
    for name in [MASTER_KEY, "twofactor-keys"] {
        let _ = second.server.kubectl(&["delete", "secret", name, "--namespace", &second.home]);
    }
    second.restore_master_key(&own);
    let operator_of_second = second.operator().start().await;
    second.restore(&first.saved_secret("carol"));
    second.apply(&app_user("carol"));
    let _ = second.wait_not_ready("carol", "SecretNotProven").await;
    let [key, restart, wait] = page.blocks("If Secrets were restored before their master key")[..]
    else {
        panic!()
    };
    there.run(key);
    assert!(restart.contains("rollout restart"), "{restart}");
    drop(operator_of_second);
    let _operator_of_second = second.operator().start().await;
    there.run(wait);
    second.wait_adopted("carol", &seed).await;

    // The master key, with and without a backup.
    for heading in ["The master key is lost", "If no backup has it"] {
        let old = first.master_key();
        drop(operator);
        let _ = first.server.kubectl(&["delete", "secret", MASTER_KEY, "--namespace", &first.home]);
        operator = first.operator().start().await;
        let blocked = "twofactor_leader_blocked{need=\"master-key\"}";
        eventually(BOUND, "the loss to be reported", async || {
            operator.admin().get("/metrics").await.body.contains(&format!("{blocked} 1"))
        })
        .await;
        run(&shell, &page, heading);
        eventually(BOUND, "the leader to work", async || {
            operator.admin().get("/metrics").await.body.contains(&format!("{blocked} 0"))
        })
        .await;
        assert_eq!(first.master_key() == old, heading == "The master key is lost");
        let user = if first.master_key() == old { "dora" } else { "erin" };
        let _ = first.saved_user(user).await;
        assert_eq!(first.seed("carol"), seed);
    }
    let bound = Duration::from_mins(2);
    eventually(bound, "new credentials", async || {
        let sidecar = first.sidecar().await;
        let reply = sidecar.verify_seed("carol", &seed).await;
        if [200, 400].contains(&reply.status) { Ok(()) } else { Err(reply.body) }
    })
    .await;
}
