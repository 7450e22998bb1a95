//! Tests that what an administrator restores from a backup works again with the same seeds, and
//! that what does not prove itself is refused.

mod adoption;
mod collector;
mod fencing;
mod runbooks;

use std::path::Path;

use serde_json::{Value, json};
use twofactor_tests::runbook::Shell;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, app_user};

const PROOF: &str = "twofactor.fountainai.io/proof";
const MASTER_KEY: &str = "twofactor-master-key";
const BACKUP: &str = "backup-and-restore.md";
const DISASTERS: &str = "disaster-recovery.md";

impl Cluster {
    /// The Secret of a user as a backup tool like Velero restores it: without what the API server
    /// gave it, and without its owner.
    fn saved_secret(&self, user: &str) -> Value {
        let mut secret = self.get("secret", &format!("{user}-totp")).unwrap();
        let metadata = secret["metadata"].as_object_mut().unwrap();
        let kept = ["name", "namespace", "labels", "annotations"];
        metadata.retain(|field, _| kept.contains(&field.as_str()));
        secret
    }

    /// Creates a user, and returns their Secret as a backup has it.
    async fn saved_user(&self, user: &str) -> Value {
        self.apply(&app_user(user));
        self.wait_ready(user).await;
        self.saved_secret(user)
    }

    /// Deletes a user with their Secret, as the garbage collector of a complete cluster does.
    fn lose(&self, user: &str) {
        let _ = self.kubectl(&["delete", "tfu", user]);
        let secret = format!("{user}-totp");
        let _ = self.kubectl(&["delete", "secret", &secret, "--ignore-not-found"]);
    }

    /// Creates an object that was saved.
    fn restore(&self, object: &Value) {
        self.try_apply(&object.to_string(), &["--server-side", "--force-conflicts"]).unwrap();
    }

    /// Waits until a user is ready with an adopted Secret, which has this seed and the user as its
    /// owner.
    async fn wait_adopted(&self, user: &str, seed: &str) {
        eventually(BOUND, format_args!("{user} to have adopted a Secret"), async || {
            match self.condition(user, "SecretReady") {
                Some((status, reason, _)) if (&*status, &*reason) == ("True", "Adopted") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        self.wait_ready(user).await;
        assert_eq!(self.seed(user), seed);
        let secret = self.get("secret", &format!("{user}-totp")).unwrap();
        let owners = secret["metadata"]["ownerReferences"].as_array().unwrap();
        let uid = &self.get("tfu", user).unwrap()["metadata"]["uid"];
        assert!(owners.len() == 1 && owners[0]["uid"] == *uid, "{owners:?}");
    }

    /// The Events of a user with this reason.
    async fn wait_event(&self, user: &str, reason: &str) -> Value {
        eventually(BOUND, format_args!("an Event {reason} of {user}"), async || {
            let events: Value =
                serde_json::from_str(&self.kubectl(&["get", "events", "--output=json"])).unwrap();
            let events = events["items"].as_array().unwrap().iter();
            let mut of_user = events.filter(|event| event["involvedObject"]["name"] == user);
            of_user.find(|event| event["reason"] == reason).cloned()
        })
        .await
    }

    fn proof(&self, user: &str) -> Option<String> {
        let secret = self.get("secret", &format!("{user}-totp"))?;
        secret["metadata"]["annotations"][PROOF].as_str().map(str::to_owned)
    }

    /// The master key of the operator in base64.
    pub(super) fn master_key(&self) -> String {
        let path = format!("/api/v1/namespaces/{}/secrets/{MASTER_KEY}", self.home);
        let secret = self.server.read(&path).unwrap();
        let encoded = secret["data"]["master-key"].as_str().unwrap();
        let decoded = data_encoding::BASE64.decode(encoded.as_bytes()).unwrap();
        String::from_utf8(decoded).unwrap()
    }

    /// Writes the Secret with the master key of a backup.
    pub(super) fn restore_master_key(&self, data: &Value) {
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": MASTER_KEY, "namespace": self.home },
            "stringData": data,
        });
        self.apply_anywhere(&secret.to_string());
    }

    /// A shell in which the names of the operations manual are those of this cluster.
    fn shell(&self, kubeconfig: &Path) -> Shell {
        let moved = format!("staff-{}", self.namespace);
        let (home, people) = (self.home.as_str(), self.namespace.as_str());
        Shell::new(kubeconfig, &[("twofactor-system", home), ("people", people), ("staff", &moved)])
    }
}
