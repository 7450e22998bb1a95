//! Tests tokens with `PyJWT` and with the Python and Go code of `docs/guides/tokens.md`, and codes
//! with a context.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tempfile::TempDir;
use twofactor_tests::http::{ApiClient, Reply};
use twofactor_tests::process::{Launch, run, try_run};
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::{scratch, tools};

const USERS: &str = r"
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: alice }
spec: { email: alice@example.org }
---
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: bob }
spec: { email: bob@example.org }
---
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata: { name: zoe }
spec: { email: zoe@example.org }
";

const SHARED: &str = "a shared key of thirty-two bytes or more";
/// A PKCS #8 key in PEM, as openssl writes it, and another one as bare bytes.
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----";
const BARE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

struct Dev {
    sidecar: SidecarProcess,
    api: ApiClient,
    _folder: TempDir,
}

async fn dev(variables: &[(&str, &str)]) -> Dev {
    let folder = scratch::folder("manifests");
    fs::write(folder.path().join("users.yaml"), USERS).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let builder = SidecarProcess::builder().args(["dev", &path, "--realm", "people"]);
    let sidecar = variables
        .iter()
        .fold(builder, |builder, (name, value)| builder.env(name, value))
        .start()
        .await;
    Dev { api: sidecar.api(), sidecar, _folder: folder }
}

async fn with_shared_key() -> Dev {
    dev(&[
        ("SECRET_KEY", SHARED),
        ("TOKEN_AUDIENCES", "kms,shop"),
        ("TOKEN_LIFETIME_SECONDS", "60"),
    ])
    .await
}

async fn with_own_key() -> Dev {
    dev(&[("ALGORITHM", "EdDSA"), ("ED25519_PRIVATE_KEY", PEM), ("TOKEN_AUDIENCES", "kms,shop")])
        .await
}

fn code(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["otp_code"].as_str().unwrap().to_owned()
}

impl Dev {
    async fn code(&self, username: &str, context: Option<&str>) -> String {
        let mut body = json!({ "username": username });
        if let Some(context) = context {
            body["context"] = context.into();
        }
        code(&self.api.post_json("/auth/generate", &body).await)
    }

    async fn verify(&self, username: &str, code: &str, more: Value) -> Reply {
        let mut body = json!({ "username": username, "otp_code": code });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.api.post_json("/auth/verify", &body).await
    }

    /// A token of a success.
    async fn token(&self, username: &str, context: Option<&str>) -> String {
        let code = self.code(username, context).await;
        let mut more = json!({ "audience": "kms" });
        if let Some(context) = context {
            more["context"] = context.into();
        }
        let reply = self.verify(username, &code, more).await;
        assert_eq!(
            (reply.status, reply.json()["success"].clone()),
            (200, json!(true)),
            "{}",
            reply.body
        );
        reply.json()["token"].as_str().unwrap().to_owned()
    }
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

/// The token with other claims or another header, and its old signature.
fn changed(token: &str, part: usize, change: impl FnOnce(&mut Value)) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let mut content =
        serde_json::from_slice(&BASE64URL_NOPAD.decode(parts[part].as_bytes()).unwrap()).unwrap();
    change(&mut content);
    parts[part] = BASE64URL_NOPAD.encode(content.to_string().as_bytes());
    parts.join(".")
}

/// Invalid tokens, each derived from a valid one.
fn forged(token: &str) -> Vec<String> {
    let (signed, _) = token.rsplit_once('.').unwrap();
    vec![
        changed(token, 1, |claims| claims["sub"] = "admin".into()),
        changed(token, 1, |claims| claims["exp"] = 9_999_999_999_u64.into()),
        changed(token, 0, |header| header["alg"] = "none".into()),
        changed(token, 0, |header| header["alg"] = "HS512".into()),
        changed(token, 0, |header| header["typ"] = "JWT".into()),
        format!("{}.", changed(signed, 0, |header| header["alg"] = "none".into())),
        format!("{signed}."),
        signed.to_owned(),
        String::new(),
        "..".to_owned(),
        "W10.W10.W10".to_owned(),
        format!("{token}.{token}"),
    ]
}

/// The code of `docs/guides/tokens.md` in a language.
fn shown(language: &str) -> String {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/tokens.md"))
            .unwrap();
    let begin = format!("```{language}\n");
    let mut blocks = page.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = blocks
        .next()
        .unwrap_or_else(|| panic!("no {language} in docs/guides/tokens.md"))
        .to_owned();
    assert!(blocks.next().is_none(), "one piece of {language}");
    block
}

#[tokio::test]
async fn pyjwt_accepts_a_token_as_valid() {
    let dev = with_shared_key().await;
    let token = dev.token("alice", None).await;
    let script = "import json, jwt, sys\n\
                  print(json.dumps(jwt.decode(sys.argv[1], sys.argv[2], algorithms=['HS256'], audience='kms', \
                  issuer='fountainai-2fa', options={'require': ['exp', 'iat', 'jti', 'sub', 'aud', 'iss']})))";
    let claims: Value =
        serde_json::from_str(&run(tools::find("tools-python"), &["-c", script, &token, SHARED]))
            .unwrap();
    assert_eq!(claims["sub"], "alice");
    assert_eq!((&claims["realm"], &claims["amr"]), (&json!("people"), &json!(["otp"])));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
    assert_eq!(claims.get("context_hash"), None);
    assert_eq!((&claims["otp_channel"], &claims["auth_time"]), (&json!("email"), &claims["iat"]));
    // Each token has its own id.
    let other = self::claims(&dev.token("bob", None).await);
    assert_ne!(other["jti"], claims["jti"]);
}

#[tokio::test]
async fn a_token_is_issued_only_for_a_requested_audience_of_the_realm() {
    let dev = with_shared_key().await;
    let code = dev.code("alice", None).await;
    let missing = "audience: is not one of the audiences of this realm";
    for (audience, detail) in [
        (json!("bank"), missing),
        (json!("KMS"), missing),
        (
            json!("kms "),
            "audience: must be 1 to 200 visible ASCII characters without quotes, backslashes and commas",
        ),
        (json!(["kms"]), "audience: must be a string"),
    ] {
        let reply = dev.verify("alice", &code, json!({ "audience": audience })).await;
        assert_eq!(
            (reply.status, reply.json()["detail"].as_str()),
            (422, Some(detail)),
            "{}",
            reply.body
        );
    }
    // None of these requests has consumed the code, and there is no token without an audience.
    let reply = dev.verify("alice", &code, json!({})).await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "success": true })));
    let keys = dev.api.get("/.well-known/jwks.json").await;
    assert_eq!((keys.status, keys.json()), (200, json!({ "keys": [] })));

    let off = self::dev(&[]).await;
    let code = off.code("alice", None).await;
    let reply = off.verify("alice", &code, json!({ "audience": "kms" })).await;
    assert_eq!(
        (reply.status, &reply.json()["detail"]),
        (422, &json!("audience: this realm gives no tokens"))
    );
    assert_eq!(off.api.get("/.well-known/jwks.json").await.json(), json!({ "keys": [] }));
}

#[tokio::test]
async fn the_python_example_accepts_valid_tokens_only() {
    let dev = with_shared_key().await;
    let token = dev.token("alice", Some("transfer 100 to X")).await;
    let folder = scratch::folder("python");
    let path = folder.path().join("check.py");
    let call = "\nimport sys\ntoken, key, audience, realm, context, later, *channels = sys.argv[1:]\n\
                print(json.dumps(check_token(token, key.encode(), audience, realm, context or None, time.time() + float(later), channels or None)))\n";
    fs::write(&path, shown("python") + call).unwrap();
    let check =
        |token: &str, key: &str, audience: &str, realm: &str, context: &str, later: &str| {
            let script = path.to_str().unwrap();
            try_run(
                tools::find("tools-python"),
                &[script, token, key, audience, realm, context, later],
            )
        };
    let context = "transfer 100 to X";
    let good = check(&token, SHARED, "kms", "people", context, "0").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&good).unwrap()["sub"], "alice");
    assert!(check(&token, SHARED, "kms", "people", "", "50").is_ok());
    for (key, audience, realm, context, later, reason) in [
        ("another key of thirty-two bytes or so", "kms", "people", "", "0", "wrong signature"),
        (SHARED, "shop", "people", "", "0", "for another audience"),
        (SHARED, "kms", "others", "", "0", "of another issuer or realm"),
        (SHARED, "kms", "people", "transfer 900 to X", "0", "for something else"),
        (SHARED, "kms", "people", context, "61", "expired"),
    ] {
        let error = check(&token, key, audience, realm, context, later).unwrap_err();
        assert!(error.contains(&format!("ValueError: {reason}")), "{error}");
    }
    let of_channel = |channel: &str| {
        let script = path.to_str().unwrap();
        let arguments = [script, &token, SHARED, "kms", "people", context, "0", channel];
        try_run(tools::find("tools-python"), &arguments)
    };
    assert!(of_channel("email").is_ok());
    assert!(of_channel("app").unwrap_err().contains("ValueError: not enough"));
    for forged in forged(&token) {
        let error = check(&forged, SHARED, "kms", "people", "", "0").unwrap_err();
        assert!(error.contains("ValueError: "), "{forged}: {error}");
    }
}

/// The Go code of the page within a program.
fn go_program() -> (TempDir, PathBuf) {
    const MAIN: &str = r#"package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	jwks, err := os.ReadFile(os.Args[1])
	fail(err)
	keys, err := PublicKeys(jwks)
	fail(err)
	later, err := strconv.Atoi(os.Args[5])
	fail(err)
	claims, err := CheckToken(os.Args[2], keys, os.Args[3], os.Args[4], time.Now().Add(time.Duration(later)*time.Second))
	fail(err)
	fmt.Printf("%s %v %v", claims.Username, claims.IsFor(os.Args[6]), claims.IsOfApp())
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(3)
	}
}
"#;
    let folder = scratch::folder("go");
    for (name, content) in [
        ("check.go", shown("go").as_str()),
        ("main.go", MAIN),
        ("go.mod", "module check\n\ngo 1.22\n"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let program = folder.path().join("check");
    let (path, output) = (folder.path().to_str().unwrap(), program.to_str().unwrap());
    let _ = run(tools::find("go"), &["-C", path, "vet", "."]);
    let _ = run(tools::find("go"), &["-C", path, "build", "-o", output, "."]);
    (folder, program)
}

#[tokio::test]
async fn the_go_example_accepts_valid_tokens_only() {
    let dev = with_own_key().await;
    let keys = dev.api.get("/.well-known/jwks.json").await;
    assert_eq!(keys.header("content-type"), Some("application/jwk-set+json"));
    assert!(!keys.body.contains("\"d\""), "public keys only: {}", keys.body);
    let (folder, program) = go_program();
    let token = dev.token("alice", Some("transfer 100 to X")).await;
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let known = file("jwks.json", &keys.body);
    let check =
        |keys: &str, token: &str, audience: &str, realm: &str, later: &str, context: &str| {
            try_run(&program, &[keys, token, audience, realm, later, context])
        };
    assert_eq!(
        check(&known, &token, "kms", "people", "290", "transfer 100 to X").unwrap(),
        "alice true false"
    );
    assert_eq!(
        check(&known, &token, "kms", "people", "0", "transfer 900 to X").unwrap(),
        "alice false false"
    );

    let others = self::dev(&[
        ("ALGORITHM", "EdDSA"),
        ("ED25519_PRIVATE_KEY", BARE),
        ("TOKEN_AUDIENCES", "kms"),
    ])
    .await;
    let others = file("others.json", &others.api.get("/.well-known/jwks.json").await.body);
    let none = file("none.json", r#"{"keys":[]}"#);
    for (keys, audience, realm, later, reason) in [
        (&others, "kms", "people", "0", "unknown key"),
        (&none, "kms", "people", "0", "unknown key"),
        (&known, "shop", "people", "0", "for another audience"),
        (&known, "kms", "others", "0", "of another issuer or realm"),
        (&known, "kms", "people", "301", "expired"),
    ] {
        let error = check(keys, &token, audience, realm, later, "").unwrap_err();
        assert!(error.contains(&format!("refused: {reason}")), "{error}");
    }
    for forged in forged(&token) {
        let error = check(&known, &forged, "kms", "people", "0", "").unwrap_err();
        assert!(error.contains("refused: "), "{forged}: {error}");
    }
    // The public key is not accepted as a shared key (CVE-2015-9235 and its successors).
    let mut header_and_claims = changed(&token, 0, |header| header["alg"] = "HS256".into());
    header_and_claims.truncate(header_and_claims.rfind('.').unwrap());
    let error =
        check(&known, &format!("{header_and_claims}.AAAA"), "kms", "people", "0", "").unwrap_err();
    assert!(error.contains("wrong algorithm"), "{error}");
}

#[tokio::test]
async fn a_code_requested_for_a_context_is_valid_in_that_context_only() {
    let dev = with_shared_key().await;
    let x = dev.code("alice", Some("transfer 100 to X")).await;
    let log = dev.sidecar.process().output();
    assert!(log.contains("transfer 100 to X"), "the user reads it: {log}");
    for context in [
        json!({}),
        json!({ "context": "transfer 100 to Y" }),
        json!({ "context": "transfer 100 to X " }),
    ] {
        let reply = dev.verify("alice", &x, context.clone()).await;
        assert_eq!(
            (reply.status, &reply.json()["detail"]),
            (401, &json!("Invalid OTP or expired.")),
            "{context}"
        );
    }
    let reply = dev.verify("alice", &x, json!({ "context": "transfer 100 to X" })).await;
    assert_eq!(reply.status, 200, "{}", reply.body);

    // A code without a context is not valid with one.
    let plain = dev.code("bob", None).await;
    assert_eq!(
        dev.verify("bob", &plain, json!({ "context": "transfer 100 to X" })).await.status,
        401
    );
    assert_eq!(dev.verify("bob", &plain, json!({})).await.status, 200);
}

#[tokio::test]
async fn a_wrong_context_counts_as_a_failure() {
    let dev = with_shared_key().await;
    let code = dev.code("alice", Some("to X")).await;
    for _ in 0..5 {
        assert_eq!(dev.verify("alice", &code, json!({ "context": "to Y" })).await.status, 401);
    }
    assert_eq!(dev.verify("alice", &code, json!({ "context": "to X" })).await.status, 429);
}

#[tokio::test]
async fn a_context_that_could_mislead_the_user_is_refused() {
    let dev = with_shared_key().await;
    let printable = "context: must have letters, digits, punctuation, symbols and spaces only: no line breaks, no invisible characters and no marks of text direction";
    for (context, detail) in [
        (json!(""), "context: must have at least one visible character"),
        (json!("x".repeat(141)), "context: has 141 characters, at most 140 are allowed"),
        (json!("a\r\nBcc: x@example.org"), printable),
        (json!("100 \u{202e}to X"), printable),
        (json!(7), "context: must be a string"),
    ] {
        let body = json!({ "username": "alice", "context": context });
        let generate = dev.api.post_json("/auth/generate", &body).await;
        let verify = dev.verify("alice", "123456", json!({ "context": context })).await;
        for reply in [generate, verify] {
            assert_eq!((reply.status, reply.json()["detail"].as_str()), (422, Some(detail)));
        }
    }
}

#[tokio::test]
async fn neither_keys_nor_tokens_nor_contexts_are_in_logs() {
    for (dev, keys) in [
        (with_shared_key().await, vec![SHARED]),
        (with_own_key().await, vec!["MC4CAQAwBQYDK2Vw", "1O5y2/kTWErVttjx92n4rTr"]),
    ] {
        let token = dev.token("alice", Some("a private matter")).await;
        let (log, metrics) =
            (dev.sidecar.process().stderr(), dev.sidecar.admin().get("/metrics").await.body);
        for secret in keys.iter().copied().chain([token.as_str(), "a private matter"]) {
            assert!(!log.contains(secret) && !metrics.contains(secret), "{secret}");
        }
    }
}

#[test]
fn a_missing_or_invalid_key_is_reported_at_startup_and_not_shown() {
    for (variables, expected) in [
        (
            vec![("TOKEN_AUDIENCES", "kms")],
            "SECRET_KEY is missing, although TOKEN_AUDIENCES turns tokens on",
        ),
        (
            vec![("TOKEN_AUDIENCES", "kms"), ("ALGORITHM", "EdDSA"), ("SECRET_KEY", SHARED)],
            "ED25519_PRIVATE_KEY is missing",
        ),
        (
            vec![("ED25519_PRIVATE_KEY", "a-secret-value")],
            "ED25519_PRIVATE_KEY must be an Ed25519 private key",
        ),
        (
            vec![("TOKEN_LIFETIME_SECONDS", "301")],
            "TOKEN_LIFETIME_SECONDS must be a number of seconds",
        ),
    ] {
        let launch =
            Launch::new(tools::project_binary("twofactor-sidecar")).isolated().args(["dev", "/"]);
        let process = variables
            .iter()
            .fold(launch, |launch, (name, value)| launch.env(*name, *value))
            .start();
        let status = twofactor_tests::wait::eventually_blocking(
            std::time::Duration::from_secs(10),
            "the end",
            || process.try_exit(),
        );
        assert!(!status.success());
        let error = process.stderr();
        assert!(error.contains(expected) && !error.contains("a-secret-value"), "{error}");
    }
}
