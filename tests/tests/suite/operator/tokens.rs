//! Tests tokens of a realm with the operator's keys and with its own key, and a key that is missing
//! or replaced.

use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use twofactor_tests::http::Reply;
use twofactor_tests::process::run;
use twofactor_tests::tools;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user, code_of};

/// Timeout for the operator to read a changed key, which it does every 30 seconds.
const LOOKED_AT: Duration = Duration::from_secs(75);

fn realm(tokens: &Value, more: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata: {{name: default}}\n\
         spec: {{tokens: {tokens}{more}}}\n---\n"
    )
}

fn secret(name: &str, key: &str, value: &str) -> String {
    let value = BASE64.encode(value.as_bytes());
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ndata: {{{key}: {value}}}\n---\n"
    )
}

async fn wait_for_tokens(cluster: &Cluster, status: &str, reason: &str) {
    eventually(LOOKED_AT, format_args!("TokensReady to be {status}, {reason}"), async || {
        match cluster.condition_of("tfr", "default", "TokensReady") {
            Some((found, why, _)) if found == status && why == reason => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Submits a right code and requests a token.
async fn ask(cluster: &Cluster, sidecar: &Sidecar, user: &str) -> Reply {
    let body =
        json!({ "username": user, "otp_code": code_of(&cluster.seed(user)), "audience": "kms" });
    sidecar.api.post_json("/auth/verify", &body).await
}

/// A token for a user who has not verified in this step. Sidecars learn of tokens shortly after the
/// realm's status reports them.
async fn token(cluster: &Cluster, sidecar: &Sidecar, user: &str) -> String {
    eventually(BOUND, "a token", async || {
        let reply = ask(cluster, sidecar, user).await;
        if reply.status == 200 {
            Ok(reply.json()["token"].as_str().unwrap().to_owned())
        } else {
            Err(reply.body)
        }
    })
    .await
}

fn part(token: &str, number: usize) -> Value {
    let part = token.split('.').nth(number).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

async fn key_ids(sidecar: &Sidecar) -> Vec<String> {
    let keys = sidecar.api.get("/.well-known/jwks.json").await.json();
    let keys = keys["keys"].as_array().unwrap();
    keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

async fn started(
    tokens: &Value,
    more: &str,
) -> (Cluster, twofactor_tests::operator::OperatorProcess, Sidecar) {
    let cluster = Cluster::start().await;
    let operator =
        cluster.operator().args(["--secret-key-namespace", &cluster.namespace]).start().await;
    cluster.apply(&[app_user("carol"), app_user("dora"), realm(tokens, more)].concat());
    cluster.wait_ready("carol").await;
    cluster.wait_ready("dora").await;
    let namespace = cluster.namespace.clone();
    let sidecar = cluster.sidecar_in(&namespace).await;
    (cluster, operator, sidecar)
}

#[tokio::test]
async fn a_realm_with_tokens_has_them_signed_with_the_generated_shared_key() {
    let (cluster, operator, sidecar) = started(&json!({ "audiences": ["kms"] }), "").await;
    wait_for_tokens(&cluster, "True", "Available").await;
    let token = token(&cluster, &sidecar, "carol").await;
    let uid = cluster.server.kubectl(&[
        "get",
        "namespace",
        &cluster.namespace,
        "-o",
        "jsonpath={.metadata.uid}",
    ]);
    assert_eq!(part(&token, 1)["realm"], uid.trim());
    let encoded = {
        let path = "jsonpath={.data.SECRET_KEY}";
        cluster.server.kubectl(&[
            "--namespace",
            &cluster.home,
            "get",
            "secret",
            "twofactor-secret-key",
            "-o",
            path,
        ])
    };
    let shared = String::from_utf8(BASE64.decode(encoded.trim().as_bytes()).unwrap()).unwrap();
    let script = "import jwt, sys; print(jwt.decode(sys.argv[1], sys.argv[2], algorithms=['HS256'], audience='kms')['sub'])";
    assert_eq!(run(tools::find("tools-python"), &["-c", script, &token, &shared]).trim(), "carol");
    assert!(key_ids(&sidecar).await.is_empty());
    let log = operator.process().output();
    assert!(!log.contains(&shared));
}

#[tokio::test]
async fn a_realm_gets_the_shared_key_only_if_the_administrator_lists_it() {
    let cluster = Cluster::start().await;
    let _operator = cluster.operator().start().await;
    cluster.apply(&[app_user("carol"), realm(&json!({ "audiences": ["kms"] }), "")].concat());
    wait_for_tokens(&cluster, "False", "SharedKeyNotGiven").await;
    let missing = cluster.server.try_kubectl(&[
        "--namespace",
        &cluster.home,
        "get",
        "secret",
        "twofactor-secret-key",
    ]);
    assert!(missing.is_err(), "it is created only when it is needed");
}

#[tokio::test]
async fn a_realm_with_eddsa_has_its_own_key_without_a_secret() {
    let tokens = json!({ "audiences": ["kms"], "algorithm": "EdDSA", "lifetimeSeconds": 30 });
    let (cluster, _operator, sidecar) = started(&tokens, ", uniformAnswers: true").await;
    wait_for_tokens(&cluster, "True", "Available").await;
    let token = token(&cluster, &sidecar, "carol").await;
    let claims = part(&token, 1);
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 30);
    assert_eq!(key_ids(&sidecar).await, [part(&token, 0)["kid"].as_str().unwrap()]);
    // The same policy has uniform answers.
    assert_eq!(sidecar.api.verify("unknown", "000000").await.status, 401);
    let missing = cluster.server.try_kubectl(&[
        "--namespace",
        &cluster.home,
        "get",
        "secret",
        "twofactor-secret-key",
    ]);
    assert!(missing.is_err(), "it is created only when it is needed");
}

#[tokio::test]
async fn a_missing_key_is_reported_and_a_replaced_key_stays_published_for_a_while() {
    const FIRST: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const SECOND: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let tokens =
        json!({ "audiences": ["kms"], "algorithm": "EdDSA", "secretRef": { "name": "signing" } });
    let (cluster, _operator, sidecar) = started(&tokens, "").await;
    wait_for_tokens(&cluster, "False", "SecretNotFound").await;
    let reply = ask(&cluster, &sidecar, "carol").await;
    assert_eq!(
        (reply.status, &reply.json()["detail"]),
        (422, &json!("audience: this realm gives no tokens"))
    );
    cluster.apply(&secret("signing", "SECRET_KEY", "not the one that is needed"));
    wait_for_tokens(&cluster, "False", "SecretKeyMissing").await;
    cluster.apply(&secret("signing", "ED25519_PRIVATE_KEY", FIRST));
    wait_for_tokens(&cluster, "True", "Available").await;
    let first = token(&cluster, &sidecar, "carol").await;
    let first = part(&first, 0)["kid"].as_str().unwrap().to_owned();
    cluster.apply(&secret("signing", "ED25519_PRIVATE_KEY", SECOND));
    let ids = eventually(LOOKED_AT, "both keys", async || {
        let ids = key_ids(&sidecar).await;
        if ids.len() == 2 { Ok(ids) } else { Err(format!("{ids:?}")) }
    })
    .await;
    assert_eq!(ids[1], first, "the one before comes second");
    let second = token(&cluster, &sidecar, "dora").await;
    assert_eq!(part(&second, 0)["kid"], json!(ids[0]));
}
