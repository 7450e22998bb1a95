//! Attacks the cluster with the operator's two accounts. RBAC alone makes them almost
//! administrators; the policies of `operator/policy.yaml`, with which all tests run, leave them
//! what the operator writes.

use std::path::Path;

use serde_json::{Value, json};
use twofactor_tests::process::try_run;
use twofactor_tests::wait::eventually;
use twofactor_tests::{scratch, tools};

use crate::support::cluster::{ADMISSION_ACCOUNT, BOUND, Cluster, app_user};

const LABEL: &str = "app.kubernetes.io/managed-by";
const CREDENTIALS: &str = "twofactor.fountainai.io/credentials";

/// Runs `kubectl` with an account of the operator.
fn with(kubeconfig: &Path, args: &[&str]) -> Result<String, String> {
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    try_run(tools::find_kubernetes("kubectl"), &[&[kubeconfig.as_str()], args].concat())
}

fn create(kubeconfig: &Path, object: &Value, more: &[&str]) -> Result<String, String> {
    let folder = scratch::folder("object");
    let path = folder.path().join("object.json");
    std::fs::write(&path, object.to_string()).unwrap();
    with(kubeconfig, &[&["create", "-f", path.to_str().unwrap()], more].concat())
}

fn secret(namespace: &str, name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "stringData": { "key": "value" },
    })
}

/// Asserts that a policy refused a request that RBAC allows.
#[track_caller]
fn assert_refused(what: &str, result: Result<String, String>) {
    let refusal = result.expect_err(what);
    assert!(refusal.contains("ValidatingAdmissionPolicy 'twofactor-operator"), "{what}: {refusal}");
}

/// A Secret in which Kubernetes writes a token of the account `strong` in `kube-system`.
fn token_of_strong() -> Value {
    let mut token = secret("kube-system", "strong-token", &json!({}));
    token["type"] = "kubernetes.io/service-account-token".into();
    token["metadata"]["annotations"] = json!({ "kubernetes.io/service-account.name": "strong" });
    token
}

#[tokio::test]
async fn the_two_requests_that_made_the_operator_cluster_admin_are_refused() {
    let controllers = ["serviceaccount-controller", "serviceaccount-token-controller"];
    let cluster = Cluster::on_own_server(&controllers).await;
    let server = &cluster.server;
    let _ = server.kubectl(&["--namespace=kube-system", "create", "serviceaccount", "strong"]);
    let admin = ["--clusterrole=cluster-admin", "--serviceaccount=kube-system:strong"];
    let _ = server.kubectl(&[&["create", "clusterrolebinding", "strong"], &admin[..]].concat());

    // Without the policy, one request makes the Secret and one reads the token.
    let _ = server.kubectl(&["delete", "validatingadmissionpolicybindings", "--all"]);
    eventually(BOUND, "the API server to forget the policy", async || {
        create(&cluster.kubeconfig, &token_of_strong(), &[])
    })
    .await;
    let read = ["--namespace=kube-system", "get", "secret", "strong-token", "-o"];
    let token = eventually(BOUND, "the token of the strong account", async || {
        let token = "go-template={{.data.token | base64decode}}";
        with(&cluster.kubeconfig, &[&read[..], &[token]].concat())
    })
    .await;
    let authority = format!("--certificate-authority={}", server.ca_path().display());
    let everything = ["auth", "can-i", "*", "*", "--all-namespaces"];
    let connection = [format!("--server={}", server.url()), authority, format!("--token={token}")];
    let connection = connection.each_ref().map(String::as_str);
    let may = try_run(tools::find_kubernetes("kubectl"), &[&connection[..], &everything].concat());
    assert_eq!(may.unwrap().trim(), "yes", "the operator's account has become cluster-admin");

    let _ = server.kubectl(&["--namespace=kube-system", "delete", "secret", "strong-token"]);
    cluster.apply_policies();
    let refusal = eventually(BOUND, "the API server to know the policy again", async || {
        create(&cluster.kubeconfig, &token_of_strong(), &["--dry-run=server"]).err()
    })
    .await;
    assert!(refusal.contains("writes Secrets of the type Opaque only"), "{refusal}");
}

#[tokio::test]
async fn the_controllers_account_writes_no_secret_but_the_operators() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    cluster.ask_from(&cluster.namespace);
    let credentials = format!("twofactor-{}", cluster.namespace);
    eventually(BOUND, "credentials", async || cluster.get("secret", &credentials)).await;
    let (people, home) = (cluster.namespace.as_str(), cluster.home.as_str());
    let managed = json!({ LABEL: "twofactor-operator" });
    let of_realm = |realm: &str| json!({ LABEL: "twofactor-operator", CREDENTIALS: realm });
    let of_type = |kind: &str| {
        let mut secret = secret(people, "x-totp", &managed);
        secret["type"] = kind.into();
        secret["metadata"]["annotations"] =
            json!({ "kubernetes.io/service-account.name": "default" });
        secret
    };
    let owned_by = |kind: &str, owner: &str| {
        let mut secret = secret(people, "x-totp", &managed);
        secret["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "twofactor.fountainai.io/v1alpha1", "kind": kind, "name": owner,
            "uid": "7b1f7d4c-0000-4000-8000-000000000000", "controller": true,
        }]);
        secret
    };
    let account = &cluster.kubeconfig;
    let dry = |object: &Value| create(account, object, &["--dry-run=server"]);
    eventually(BOUND, "the API server to know the policy", async || {
        dry(&secret(home, "more", &managed)).err()
    })
    .await;
    for (what, object) in [
        ("a token", of_type("kubernetes.io/service-account-token")),
        ("a bootstrap token", of_type("bootstrap.kubernetes.io/token")),
        ("a Secret in kube-system", secret("kube-system", "mine", &managed)),
        ("a user's Secret without a user", secret(people, "x-totp", &managed)),
        ("one of another user", owned_by("TwoFactorUser", "y")),
        ("one of another kind", owned_by("TwoFactorRealm", "x")),
        ("credentials of another name", secret(people, "other", &of_realm("people"))),
        ("credentials without label", secret(people, "twofactor-people", &managed)),
        ("its own in another namespace", secret(people, "twofactor-keys", &json!({}))),
        ("another one in its namespace", secret(home, "more", &managed)),
    ] {
        assert_refused(what, dry(&object));
    }
    for object in [
        owned_by("TwoFactorUser", "x"),
        secret(people, "twofactor-others", &of_realm("others")),
        secret(home, "twofactor-secret-key", &json!({})),
    ] {
        dry(&object).unwrap();
    }

    let _ = cluster.kubectl(&["create", "secret", "generic", "foreign", "--from-literal=a=b"]);
    let patch = |namespace: &str, name: &str, patch: &Value| {
        let patch = patch.to_string();
        with(
            account,
            &["--namespace", namespace, "patch", "secret", name, "--dry-run=server", "-p", &patch],
        )
    };
    let delete = |namespace: &str, name: &str| {
        with(account, &["--namespace", namespace, "delete", "secret", name, "--dry-run=server"])
    };
    let value = json!({ "stringData": { "key": "value" } });
    let labelled = json!({ "metadata": { "labels": of_realm(people) } });
    let unlabelled = json!({ "metadata": { "labels": { LABEL: null } } });
    let disowned = json!({ "metadata": { "ownerReferences": null } });
    assert_refused("change", patch(people, "foreign", &value));
    assert_refused("label a foreign one", patch(people, "foreign", &labelled));
    assert_refused("label one's own away", patch(people, "carol-totp", &unlabelled));
    assert_refused("disown a user's", patch(people, "carol-totp", &disowned));
    assert_refused("label credentials away", patch(people, &credentials, &unlabelled));
    assert_refused("change the master key", patch(home, "twofactor-master-key", &value));
    assert_refused("delete a foreign one", delete(people, "foreign"));
    assert_refused("delete a user's", delete(people, "carol-totp"));
    assert_refused("delete the master key", delete(home, "twofactor-master-key"));
    patch(people, "carol-totp", &value).unwrap();
    patch(people, &credentials, &value).unwrap();
    patch(home, "twofactor-keys", &value).unwrap();
    delete(people, &credentials).unwrap();
    // An administrator is not limited.
    let _ = cluster.kubectl(&["delete", "secret", "foreign"]);
}

#[tokio::test]
async fn the_account_of_admission_changes_only_its_ca_and_the_ca_bundle() {
    let cluster = Cluster::on_own_server(&[]).await;
    cluster.configure_webhook();
    let _replica = cluster.admission().await;
    let home = cluster.home.as_str();
    let account = cluster.server.kubeconfig_for_service_account(home, ADMISSION_ACCOUNT);
    let dry = ["--dry-run=server"];
    eventually(BOUND, "the API server to know the policy", async || {
        create(&account, &secret(home, "more", &json!({})), &dry).err()
    })
    .await;
    assert_refused("another Secret", create(&account, &secret(home, "more", &json!({})), &dry));
    let mut token = secret(home, "twofactor-webhook-ca", &json!({}));
    token["type"] = "kubernetes.io/service-account-token".into();
    token["metadata"]["annotations"] = json!({ "kubernetes.io/service-account.name": "default" });
    assert_refused("a token", create(&account, &token, &dry));

    let patch = |operations: &Value| {
        let operations = operations.to_string();
        let configuration = "mutatingwebhookconfiguration/twofactor-operator";
        with(&account, &["patch", configuration, dry[0], "--type=json", "-p", &operations])
    };
    let bundle = "/webhooks/0/clientConfig/caBundle";
    let authority = std::fs::read(cluster.server.ca_path()).unwrap();
    let authority = data_encoding::BASE64.encode(&authority);
    patch(&json!([{ "op": "replace", "path": bundle, "value": authority }])).unwrap();
    let everything = json!([{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"],
        "resources": ["*"] }]);
    let another = json!({ "name": "evil.example.org", "admissionReviewVersions": ["v1"],
        "sideEffects": "None", "clientConfig": { "url": "https://evil.example.org/" } });
    for (what, operation) in [
        ("rules", json!({ "op": "replace", "path": "/webhooks/0/rules", "value": everything })),
        (
            "the service",
            json!({ "op": "replace", "path": "/webhooks/0/clientConfig/service/name", "value": "evil" }),
        ),
        (
            "the failure policy",
            json!({ "op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore" }),
        ),
        (
            "a condition",
            json!({ "op": "add", "path": "/webhooks/0/matchConditions", "value": [{ "name": "none", "expression": "false" }] }),
        ),
        ("another webhook", json!({ "op": "add", "path": "/webhooks/-", "value": another })),
        ("no webhook", json!({ "op": "remove", "path": "/webhooks/0" })),
        ("a label", json!({ "op": "add", "path": "/metadata/labels", "value": { "a": "b" } })),
        (
            "a finalizer",
            json!({ "op": "add", "path": "/metadata/finalizers", "value": ["a.example.org/b"] }),
        ),
    ] {
        assert_refused(what, patch(&json!([operation])));
    }
}

#[tokio::test]
async fn every_write_of_the_operator_has_its_field_manager() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    // The API server takes the name from the User-Agent, which is twofactor-operator/VERSION.
    let managers = |object: &Value| -> Vec<String> {
        let fields = object["metadata"]["managedFields"].as_array().unwrap().iter();
        fields.map(|entry| entry["manager"].as_str().unwrap().to_owned()).collect()
    };
    let secret = cluster.get("secret", "carol-totp").unwrap();
    assert_eq!(managers(&secret), ["twofactor-operator"]);
    let user = cluster.get("tfu", "carol").unwrap();
    let of_status = user["metadata"]["managedFields"].as_array().unwrap().iter();
    let mut of_status = of_status.filter(|entry| entry["subresource"] == "status");
    assert!(of_status.all(|entry| entry["manager"] == "twofactor-operator"), "{user}");
    let lease = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/twofactor-operator",
        cluster.home
    );
    assert_eq!(managers(&cluster.server.read(&lease).unwrap()), ["twofactor-operator"]);
}
