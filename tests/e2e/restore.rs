//! Tests that the commands of the pages on restores and disasters work where pods run: services
//! verify the codes of before, and no user gets a new seed.

use std::time::Duration;

use serde_json::json;
use twofactor_tests::runbook::{Runbook, Shell};
use twofactor_tests::wait::eventually_blocking;

use crate::release::{self, CONTROLLER, CRDS, NAMESPACE};
use crate::scene::Scene;
use crate::{START, manifests};

const USERS: [&str; 2] = ["carol", "dora"];
/// The shortest, because each test waits several times for a code that was not used before.
const PERIOD: u32 = 15;
/// Timeout for a running sidecar to get other credentials and to accept a code.
const ACCEPTED: Duration = Duration::from_mins(4);
const REMOVAL: Duration = Duration::from_mins(3);
const MASTER_KEY: &str = "twofactor-master-key";

/// Users, a service that verifies them, and a shell with a backup.
struct Affected<'a> {
    scene: &'a Scene<'a>,
    people: String,
    service: String,
    seeds: [String; 2],
    shell: Shell,
    disasters: Runbook,
    backup: Runbook,
}

impl<'a> Affected<'a> {
    fn start(scene: &'a Scene<'a>) -> Self {
        let (people, service) = (scene.namespace("people"), scene.restricted_namespace("service"));
        let spec = json!({ "deliveryMethod": "app", "totp": { "periodSeconds": PERIOD } });
        scene.users(&people, &USERS.map(|user| (user, spec.clone())));
        scene.realm(&people, &[&service], None);
        let kubeconfig = std::env::var_os("KUBECONFIG").expect("KUBECONFIG");
        let shell = Shell::new(kubeconfig, &[("people", &people)]);
        let seeds = USERS.map(|user| scene.seed(&people, user));
        let [disasters, backup] =
            ["disaster-recovery.md", "backup-and-restore.md"].map(Runbook::read);
        let affected = Self { scene, people, service, seeds, shell, disasters, backup };
        affected.start_service();
        affected.wait_accepted();
        affected.run(&affected.backup, "Back up");
        affected
    }

    fn start_service(&self) {
        self.scene.start(&manifests::client_with_sidecar(&self.service, "app", &self.people));
    }

    fn run(&self, page: &Runbook, heading: &str) {
        for block in page.blocks(heading) {
            self.shell.run(block);
        }
    }

    /// Waits until the service has a new code of each user accepted, and checks the seeds.
    fn wait_accepted(&self) {
        for (user, seed) in USERS.iter().zip(&self.seeds) {
            eventually_blocking(ACCEPTED, format_args!("a code of {user} to be accepted"), || {
                let code = self.scene.app_code_every(PERIOD, &self.service, "app", seed);
                let reply = self.scene.verify(&self.service, "app", user, &code);
                if reply.status == 200 { Ok(()) } else { Err(format!("{reply:?}")) }
            });
            assert_eq!(self.scene.seed(&self.people, user), *seed, "{user} has another seed");
        }
    }

    fn restart_controller(&self) {
        let kubectl = self.scene.kubectl();
        kubectl.run(&["rollout", "restart", CONTROLLER, "--namespace", NAMESPACE]);
        kubectl.wait_for_rollout(START, NAMESPACE, CONTROLLER);
    }

    fn delete(&self, what: &[&str]) {
        let said = self.scene.kubectl().say_within(REMOVAL, &[&["delete"], what].concat(), "");
        assert!(said.success, "{said}");
    }
}

pub(crate) fn a_deleted_namespace_is_restored_and_its_services_go_on(scene: &Scene<'_>) {
    let affected = Affected::start(scene);
    affected.delete(&["namespace", &affected.people]);
    affected.run(&affected.backup, "Restore a namespace");
    affected.wait_accepted();
}

pub(crate) fn a_lost_redis_is_filled_again(scene: &Scene<'_>) {
    let affected = Affected::start(scene);
    let redis = ["exec", "--namespace", NAMESPACE, "twofactor-redis-0", "--"];
    scene.kubectl().run(&[&redis[..], &["sh", "/etc/redis/cli.sh", "FLUSHALL"]].concat());
    affected.run(&affected.disasters, "Redis is lost");
    affected.wait_accepted();
}

pub(crate) fn a_lost_master_key_is_reported_and_restored_or_replaced(scene: &Scene<'_>) {
    let affected = Affected::start(scene);
    let key = scene.secret(NAMESPACE, MASTER_KEY, "master-key");
    for heading in ["The master key is lost", "If no backup has it"] {
        affected.delete(&["secret", MASTER_KEY, "--namespace", NAMESPACE]);
        affected.restart_controller();
        scene.wait_for_event(NAMESPACE, MASTER_KEY, "is lost");
        // Services go on with what was published.
        affected.wait_accepted();
        assert!(
            scene.kubectl().try_get(&["secret", MASTER_KEY, "--namespace", NAMESPACE]).is_err(),
            "the operator has made another key"
        );
        affected.run(&affected.disasters, heading);
        affected.wait_accepted();
        let found = scene.secret(NAMESPACE, MASTER_KEY, "master-key");
        assert_eq!(found == key, heading == "The master key is lost");
    }
}

pub(crate) fn a_lost_cluster_is_built_again_from_the_backup(scene: &Scene<'_>) {
    let affected = Affected::start(scene);
    release::uninstall();
    affected.delete(&["namespace", &affected.people, &affected.service, NAMESPACE]);
    affected.delete(&["crd", CRDS[0], CRDS[1]]);
    if scene.world.control().is_some() {
        scene.world.control_node(&["volumes"]);
    }
    affected.run(&affected.disasters, "The cluster is lost");
    let level = "pod-security.kubernetes.io/enforce=restricted";
    scene.kubectl().run(&["label", "namespace", NAMESPACE, level]);
    scene.kubectl().run(&["create", "namespace", &affected.service]);
    affected.start_service();
    affected.wait_accepted();
}
