//! Reads the Secret and the status that the operator writes for a user, so that the bare client can
//! make the same writes.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::api::{self, BareClient, Call, USERS, create_user, name};

const NAMESPACE: &str = "sample";
const BOUND: Duration = Duration::from_secs(30);

/// What the operator wrote for user 0.
pub(crate) struct Sample {
    secret: Value,
    status: Value,
}

impl Sample {
    /// Lets an operator make one user ready in a namespace of its own.
    pub(crate) async fn take(server: &ApiServer, client: &Arc<BareClient>) -> Self {
        let redis = RedisServer::start().await;
        let _ = server.kubectl(&["create", "namespace", NAMESPACE]);
        client.each(1, |number| create_user(NAMESPACE, number)).await;
        let operator = OperatorProcess::builder(&api::kubeconfig(server))
            .args(["--namespace", NAMESPACE, "--operator-namespace", "home", "--log", "warn"])
            .env("REDIS_URL", &redis.url())
            .start()
            .await;
        let get = |kind: &str, name: &str| -> Value {
            let args = ["--namespace", NAMESPACE, "get", kind, name, "--output=json"];
            serde_json::from_str(&server.kubectl(&args)).expect("JSON of kubectl")
        };
        let ready = async || {
            let user = get("twofactorusers", &name(0));
            let conditions = user["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is_ready = |of: &Value| of["type"] == "Ready" && of["status"] == "True";
            conditions.iter().any(is_ready).then(|| user["status"].clone())
        };
        let status = eventually(BOUND, "the sample to be ready", ready).await;
        let mut secret = get("secrets", status["secretName"].as_str().expect("a name"));
        let metadata = secret["metadata"].as_object_mut().expect("metadata");
        for field in ["creationTimestamp", "managedFields", "namespace", "resourceVersion", "uid"] {
            metadata.remove(field);
        }
        operator.process().stop();
        // The next operator must not find this user.
        let kinds = "twofactorusers,twofactorrealms,secrets";
        let _ = server.kubectl(&["--namespace", NAMESPACE, "delete", kinds, "--all"]);
        Self { secret, status }
    }

    /// Creates a Secret like the operator's.
    pub(crate) fn create_secret(&self, namespace: &str, number: usize) -> Call {
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        (Method::POST, path, "application/json", of(number, &self.secret))
    }

    /// Writes a status like the operator's.
    pub(crate) fn patch_status(&self, namespace: &str, number: usize) -> Call {
        let name = name(number);
        let path = format!("{USERS}/namespaces/{namespace}/twofactorusers/{name}/status");
        let body = json!({ "status": of(number, &self.status) });
        (Method::PATCH, path, "application/merge-patch+json", body)
    }
}

/// The same object for another user.
fn of(number: usize, sample: &Value) -> Value {
    let text = sample.to_string().replace(&name(0), &name(number));
    serde_json::from_str(&text).expect("the same JSON with another name")
}
