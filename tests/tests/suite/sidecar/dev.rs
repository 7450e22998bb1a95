//! Tests `dev`: valid and invalid manifests on disk, addresses, variables, and Redis in place of
//! memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use twofactor_tests::certificates::Authority;
use twofactor_tests::process::Launch;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;
use twofactor_tests::{ports, scratch, tools};

const BOUND: Duration = Duration::from_secs(10);

fn user(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata:\n  name: {name}\nspec:\n  {spec}\n"
    )
}

fn manifests(files: &[(&str, &str)]) -> (TempDir, String) {
    let folder = scratch::folder("manifests");
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let path = folder.path().to_str().unwrap().to_owned();
    (folder, path)
}

async fn dev(path: &str) -> SidecarProcess {
    SidecarProcess::builder().args(["dev", path]).start().await
}

/// Runs `twofactor-sidecar`, which must fail, and returns its output.
async fn failing(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut launch = Launch::new(tools::project_binary("twofactor-sidecar")).isolated();
    for (name, value) in variables {
        launch = launch.env(*name, *value);
    }
    let process = launch.args(arguments.iter().copied()).start();
    assert!(!process.wait_exit(BOUND).await.success());
    process.stderr()
}

#[tokio::test]
async fn a_broken_manifest_is_named_with_its_line_and_the_others_are_served() {
    let broken = format!(
        "{}---\nkind: TwoFactorUser\n  metadata: [\n---\n{}",
        user("alice", "email: a@example.org"),
        user("bob", "email: b@example.org")
    );
    let (_folder, path) = manifests(&[
        ("a.yaml", &broken),
        ("b.yml", "apiVersion: v1\nkind: secret\nmetadata:\n  name: x\n"),
        ("c.yaml", &user("dora", "email: not-an-address")),
        ("d.yaml", &user("eve", "emial: eve@example.org")),
        (
            "e.json",
            r#"{"apiVersion":"twofactor.fountainai.io/v1alpha1","kind":"TwoFactorUser","metadata":{"name":"frank"},"spec":{"email":"f@example.org"}}"#,
        ),
        ("f.txt", "this is not read"),
    ]);
    let sidecar = dev(&path).await;
    for name in ["alice", "bob", "frank"] {
        assert_eq!(sidecar.api().generate(name).await.status, 200, "{name}");
    }
    for name in ["dora", "eve"] {
        assert_eq!(sidecar.api().generate(name).await.status, 404, "{name}");
    }
    let log = sidecar.process().stderr();
    for expected in ["a.yaml:9", "b.yml:2: kind", "c.yaml:6: spec.email", "d.yaml:6: spec.emial"] {
        assert!(log.contains(expected), "{expected} is missing in:\n{log}");
    }
}

#[tokio::test]
async fn two_manifests_with_one_username_serve_the_first_and_name_both() {
    let first = user("alice", "email: a@example.org");
    let second = user("other", "username: alice\n  email: b@example.org");
    let (_folder, path) = manifests(&[("a.yaml", &first), ("b.yaml", &second)]);
    let sidecar = dev(&path).await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    let log = sidecar.process().stderr();
    let line =
        log.lines().find(|line| line.contains("spec.username")).unwrap_or_else(|| panic!("{log}"));
    assert!(
        line.contains("b.yaml:6")
            && line.contains("is taken by the user at")
            && line.contains("a.yaml:1"),
        "{line}"
    );
}

#[tokio::test]
async fn seeds_that_cannot_be_imported_are_named_without_being_shown() {
    let secret = |name: &str, value: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\nstringData:\n  secret: {value}\n"
        )
    };
    let mut text = String::new();
    for (name, value) in [
        ("nobase", "SECRET-VALUE-018!"),
        ("short", "GEZDGNBVGY3TQOJQ"),
        ("good", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"),
    ] {
        text += &secret(name, value);
        text += "---\n";
        text += &user(name, &format!("email: {name}@example.org\n  secretRef:\n    name: {name}"));
    }
    text += "---\n";
    text += &user("missing", "email: m@example.org\n  secretRef:\n    name: nowhere");
    text += "---\n";
    text += &user("keyless", "email: k@example.org\n  secretRef:\n    name: good\n    key: other");
    let (_folder, path) = manifests(&[("a.yaml", &text)]);
    let sidecar = dev(&path).await;
    for name in ["nobase", "short", "missing", "keyless"] {
        let reply = sidecar.api().generate(name).await;
        assert_eq!(
            (reply.status, reply.json()["detail"].as_str().unwrap()),
            (400, "OTP secret not configured."),
            "{name}"
        );
    }
    let log = sidecar.process().stderr();
    for expected in [
        "is not base32",
        "has 80 bits, at least 160 are needed",
        "there is no Secret \"nowhere\" among the manifests",
        "the Secret \"good\" has no key \"other\"",
    ] {
        assert!(log.contains(expected), "{expected} is missing in:\n{log}");
    }
    assert!(!log.contains("SECRET-VALUE") && !log.contains("GEZDGNBV"), "{log}");
}

#[tokio::test]
async fn changed_manifests_take_effect_without_a_restart() {
    let (folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let sidecar = dev(&path).await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    fs::write(folder.path().join("b.yaml"), user("bob", "email: b@example.org")).unwrap();
    eventually(BOUND, "bob to be served", async || {
        sidecar.api().generate("bob").await.status == 200
    })
    .await;
    fs::write(
        folder.path().join("a.yaml"),
        user("alice", "email: a@example.org\n  enabled: false"),
    )
    .unwrap();
    eventually(BOUND, "alice to be disabled", async || {
        sidecar.api().generate("alice").await.status == 404
    })
    .await;
    fs::write(folder.path().join("a.yaml"), user("alice", "deliveryMethod: app")).unwrap();
    eventually(BOUND, "alice to use an app", async || {
        sidecar.api().generate("alice").await.status == 400
    })
    .await;
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    eventually(BOUND, "bob to be unknown", async || {
        sidecar.api().generate("bob").await.status == 404
    })
    .await;
}

#[tokio::test]
async fn dev_reads_a_file_or_a_folder_and_names_a_missing_one() {
    let (_folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let sidecar = dev(&format!("{path}/a.yaml")).await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    let free = format!("127.0.0.1:{}", ports::free_port());
    let error = failing(
        &["dev", "/nowhere/users.yaml", "--listen", &free, "--admin-listen", "127.0.0.1:0"],
        &[],
    )
    .await;
    assert!(error.contains("/nowhere/users.yaml: No such file"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_reported_with_the_flag_that_changes_it() {
    let (_folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = failing(&["dev", &path, "--listen", &address], &[]).await;
    assert!(
        error.contains(&address) && error.contains("Choose another address with --listen"),
        "{error}"
    );
    let error =
        failing(&["dev", &path, "--listen", "127.0.0.1:0", "--admin-listen", &address], &[]).await;
    assert!(error.contains("--admin-listen"), "{error}");
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_a_flag_that_says_so() {
    let (_folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let error = failing(&["dev", &path, "--listen", "0.0.0.0:0"], &[]).await;
    assert!(
        error.contains("--allow-non-loopback") && error.contains("no authentication"),
        "{error}"
    );
    let open = ["dev", &path, "--listen", "0.0.0.0:0", "--allow-non-loopback", "--expose-codes"];
    let error = failing(&open, &[]).await;
    assert!(error.contains("--expose-codes (EXPOSE_CODES): codes are never"), "{error}");
    let error = failing(&["dev", &path, "--allowed-host", "*.example"], &[]).await;
    assert!(error.contains("must be a host name"), "{error}");
}

#[tokio::test]
async fn variables_that_are_wrong_are_named_and_never_repeated() {
    let (_folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    for (variables, expected) in [
        (
            &[("SECRET_KEY", "thirty-one bytes are not enough")][..],
            "SECRET_KEY has 31 bytes, at least 32 are needed",
        ),
        (
            &[("OTP_EXPIRATION_MINUTES", "11")],
            "OTP_EXPIRATION_MINUTES must be a number of minutes from 1 to 10",
        ),
        (&[("ALGORITHM", "none")], "ALGORITHM must be HS256"),
        (&[("SMTP_SERVER", "mail.example.org")], "SMTP_FROM_EMAIL is missing"),
        (&[("SMTP_SERVER", "mail.example.org:587")], "SMTP_SERVER must be a host name like"),
        (&[("SMTP_SERVER", "smtp://hidden-password@mail")], "SMTP_SERVER must be a host name like"),
        (&[("SMTP_SERVER", "[::1]")], "SMTP_SERVER must be a host name like"),
        (&[("SMTP_SERVER", "a\nb")], "SMTP_SERVER must be one host name"),
        (&[("REDIS_URL", "http://user:hidden-password@host")], "--redis-url is not a Redis URL"),
    ] {
        let error = failing(
            &["dev", &path, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
            variables,
        )
        .await;
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("thirty-one") && !error.contains("hidden-password"), "{error}");
    }
    let long_enough = "a key of thirty-two bytes or more";
    let sidecar =
        SidecarProcess::builder().args(["dev", &path]).env("SECRET_KEY", long_enough).start().await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
}

#[tokio::test]
async fn a_file_with_ca_certificates_that_cannot_be_used_is_named_with_the_reason() {
    let (folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let authority = Authority::new("an authority");
    let (good, server) = (authority.pem(), authority.server(&["localhost"]).certificate);
    let file = folder.path().join("ca.pem");
    let file = file.to_str().unwrap();
    for (content, reason) in [
        (format!("\u{feff}{good}").into_bytes(), "begins with a byte order mark"),
        (good.trim_end().trim_end_matches('-').as_bytes().to_vec(), "is not complete"),
        (server.into_bytes(), "contains a certificate that is not an authority's"),
        (good.encode_utf16().flat_map(u16::to_le_bytes).collect(), "contains no certificate"),
        (b"\xff\xfe-\0-\0".to_vec(), "must be certificates in PEM, which is text"),
    ] {
        fs::write(file, content).unwrap();
        for variable in ["SMTP_CA_FILE", "TWILIO_CA_FILE", "WEBHOOK_CA_FILE"] {
            let arguments = ["dev", &path, "--listen", "127.0.0.1:0"];
            let error = failing(&arguments, &[(variable, file)]).await;
            assert!(error.contains(&format!("{variable} {file} {reason}")), "{error}");
        }
    }
    fs::write(file, good.trim_end().trim_end_matches('-')).unwrap();
    let arguments =
        ["dev", &path, "--listen", "127.0.0.1:0", "--redis-url", "rediss://127.0.0.1:1"];
    let error = failing(&arguments, &[("REDIS_CA_FILE", file)]).await;
    assert!(error.contains("--redis-ca-file is not complete"), "{error}");
}

#[tokio::test]
async fn a_dotenv_file_sets_what_the_environment_does_not() {
    let (folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let binary = tools::project_binary("twofactor-sidecar");
    let run_in = |folder: &Path| {
        Launch::new("/usr/bin/env").isolated().arg("--chdir").arg(folder).arg(&binary).args([
            "dev",
            &path,
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
    };
    fs::write(folder.path().join(".env"), "SMTP_PORT=587\nSECRET_KEY=too-short\n").unwrap();
    let process = run_in(folder.path()).start();
    assert!(!process.wait_exit(BOUND).await.success());
    assert!(process.stderr().contains("SECRET_KEY has 9 bytes"), "{}", process.stderr());
    let unquoted = "SMTP_SERVER=m\nSMTP_FROM_EMAIL=Very <otp@example.org>\n";
    for (content, said) in [
        (unquoted, ".env, line 2: SMTP_FROM_EMAIL needs quotes around its value"),
        ("A=1\nSMTP_PASSWORD=very\nSMTP_PASSWORD=secret\n", ".env, line 3: SMTP_PASSWORD is set a"),
        ("SMTP_PASSWORD=very$ecret\n", ".env, line 1: SMTP_PASSWORD needs single quotes"),
    ] {
        fs::write(folder.path().join(".env"), content).unwrap();
        let process = run_in(folder.path()).start();
        assert!(!process.wait_exit(BOUND).await.success());
        let stderr = process.stderr();
        assert!(stderr.contains(said) && !stderr.contains("ery"), "{stderr}");
    }
    fs::write(folder.path().join(".env"), "SECRET_KEY='very secret\n").unwrap();
    let process = run_in(folder.path()).start();
    assert!(!process.wait_exit(BOUND).await.success());
    assert!(
        process.stderr().contains(".env, line 1: SECRET_KEY needs a closing quote")
            && !process.stderr().contains("very"),
        "{}",
        process.stderr()
    );
}

#[tokio::test]
async fn serve_reads_no_dotenv_file() {
    let folder = scratch::folder("dotenv");
    let missing = folder.path().join("named-by-dotenv").to_str().unwrap().to_owned();
    let content = format!("TWOFACTOR_CREDENTIALS={missing}\nSECRET_KEY='broken\n");
    fs::write(folder.path().join(".env"), content).unwrap();
    let process = Launch::new("/usr/bin/env")
        .isolated()
        .arg("--chdir")
        .arg(folder.path())
        .arg(tools::project_binary("twofactor-sidecar"))
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .start();
    assert!(!process.wait_exit(BOUND).await.success());
    let stderr = process.stderr();
    assert!(stderr.contains("/var/run/secrets/twofactor"), "{stderr}");
    assert!(!stderr.contains("dotenv") && !stderr.contains(".env"), "{stderr}");
}

#[tokio::test]
async fn help_explains_every_flag_with_its_variable() {
    let help = twofactor_tests::process::run(
        tools::project_binary("twofactor-sidecar"),
        &["dev", "--help"],
    );
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, variable) in [
        ("--listen", "TWOFACTOR_LISTEN"),
        ("--admin-listen", "TWOFACTOR_ADMIN_LISTEN"),
        ("--redis-url", "REDIS_URL"),
        ("--master-key-file", "TWOFACTOR_MASTER_KEY_FILE"),
        ("--otp-expiration-minutes", "OTP_EXPIRATION_MINUTES"),
        ("--otp-generate-interval-seconds", "OTP_GENERATE_INTERVAL_SECONDS"),
        ("--otp-generates-per-hour", "OTP_GENERATES_PER_HOUR"),
        ("--otp-deliveries-per-hour", "OTP_DELIVERIES_PER_HOUR"),
        ("--otp-failures-per-day", "OTP_FAILURES_PER_DAY"),
        ("--audit-retention-days", "AUDIT_RETENTION_DAYS"),
        ("--audit-entries", "AUDIT_ENTRIES"),
        ("--audit-origin", "AUDIT_ORIGIN"),
        ("--smtp-server", "SMTP_SERVER"),
        ("--smtp-port", "SMTP_PORT"),
        ("--smtp-username", "SMTP_USERNAME"),
        ("--smtp-from-email", "SMTP_FROM_EMAIL"),
        ("--algorithm", "ALGORITHM"),
        ("--expose-codes", "EXPOSE_CODES"),
    ] {
        let env = format!("[env: {variable}");
        assert!(
            help.contains(flag) && help.contains(&env),
            "{flag} or {env} is missing in: {help}"
        );
    }
    assert!(help.contains("SMTP_PASSWORD") && help.contains("SECRET_KEY"), "{help}");
}

/// The code that a reply exposes.
fn code(reply: &twofactor_tests::http::Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["otp_code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn with_redis_two_processes_share_users_and_codes() {
    let redis = RedisServer::start().await;
    let (folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let key = folder.path().join("master-key").to_str().unwrap().to_owned();
    let start = || {
        SidecarProcess::builder()
            .args(["dev", &path, "--master-key-file", &key])
            .env("REDIS_URL", &redis.url())
            .start()
    };
    let (one, two) = (start().await, start().await);
    let asked = code(&one.api().generate("alice").await);
    assert_eq!(two.api().verify("alice", &asked).await.status, 200);
    assert_eq!(one.api().verify("alice", &asked).await.status, 400);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn after_a_flush_and_the_refill_a_used_code_is_refused() {
    let redis = RedisServer::start().await;
    let (folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let key = folder.path().join("master-key").to_str().unwrap().to_owned();
    let sidecar = SidecarProcess::builder()
        .args(["dev", &path, "--master-key-file", &key])
        .env("REDIS_URL", &redis.url())
        .start()
        .await;
    let used = code(&sidecar.api().generate("alice").await);
    assert_eq!(sidecar.api().verify("alice", &used).await.status, 200);
    redis.flush_all().await;
    // The answer is 503 until the refill, never 404; after it the code is refused in any step.
    eventually(BOUND, "the refill", async || {
        let reply = sidecar.api().verify("alice", &used).await;
        match reply.status {
            503 => Err("still 503"),
            400 | 401 => Ok(()),
            status => panic!("{status}: {}", reply.body),
        }
    })
    .await;
    // The code of the same step is not issued again; the next one is issued from the same seed.
    let next = eventually(Duration::from_secs(45), "the next step", async || {
        let reply = sidecar.api().generate("alice").await;
        match reply.status {
            429 => Err("not yet".to_owned()),
            _ => Ok(code(&reply)),
        }
    })
    .await;
    assert_ne!(next, used);
    assert_eq!(sidecar.api().verify("alice", &next).await.status, 200);
}

#[tokio::test]
async fn dev_starts_and_waits_while_redis_is_unavailable() {
    let redis = RedisServer::start().await;
    redis.kill();
    let (folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let key = folder.path().join("master-key").to_str().unwrap().to_owned();
    let sidecar = SidecarProcess::builder()
        .args(["dev", &path, "--master-key-file", &key])
        .env("REDIS_URL", &redis.url())
        .start()
        .await;
    assert_eq!(sidecar.api().get("/").await.status, 200);
    assert_eq!(sidecar.api().generate("alice").await.status, 503);
    redis.restart().await;
    eventually(BOUND, "recovery", async || sidecar.api().generate("alice").await.status == 200)
        .await;
}

#[tokio::test]
async fn a_realm_of_another_master_key_is_not_changed() {
    let redis = RedisServer::start().await;
    let (folder, path) = manifests(&[("a.yaml", &user("alice", "email: a@example.org"))]);
    let key = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let owner = SidecarProcess::builder()
        .args(["dev", &path, "--master-key-file", &key("one")])
        .env("REDIS_URL", &redis.url())
        .env("OTP_GENERATE_INTERVAL_SECONDS", "0")
        .start()
        .await;
    assert_eq!(owner.api().generate("alice").await.status, 200);
    let without_key = [
        "dev",
        &path,
        "--master-key-file",
        &key("two"),
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ];
    let error = failing(&without_key, &[("REDIS_URL", &redis.url())]).await;
    assert!(error.contains("--master-key-file") && error.contains("--realm"), "{error}");
    assert_eq!(owner.api().generate("alice").await.status, 200);
    let other_realm = [&without_key[..4], &["--realm", "another"]].concat();
    let other =
        SidecarProcess::builder().args(other_realm).env("REDIS_URL", &redis.url()).start().await;
    assert_eq!(other.api().generate("alice").await.status, 200);
    assert_eq!(owner.api().generate("alice").await.status, 200);
}

#[tokio::test]
async fn a_manifest_with_a_typing_error_loses_no_seed() {
    let redis = RedisServer::start().await;
    let (folder, path) = manifests(&[("a.yaml", &user("carol", "deliveryMethod: app"))]);
    let key = folder.path().join("master-key").to_str().unwrap().to_owned();
    let start = || {
        let arguments = ["dev", &path, "--master-key-file", &key];
        SidecarProcess::builder().args(arguments).env("REDIS_URL", &redis.url()).start()
    };
    let first = start().await;
    let line = first.process().wait_for_line("otpauth://", BOUND).await;
    let seed =
        line.split("secret=").nth(1).and_then(|rest| rest.split('&').next()).unwrap().to_owned();
    drop(first);
    fs::write(folder.path().join("a.yaml"), user("carol", "deliveryMethod: appp")).unwrap();
    let second = start().await;
    assert!(second.process().stderr().contains("spec.deliveryMethod"));
    drop(second);
    fs::write(folder.path().join("a.yaml"), user("carol", "deliveryMethod: app")).unwrap();
    let third = start().await;
    let code =
        twofactor_tests::process::run(tools::find("oathtool"), &["--totp", "--base32", &seed]);
    assert_eq!(third.api().verify("carol", code.trim()).await.status, 200);
    assert!(!third.process().stdout().contains("otpauth://"), "{}", third.process().stdout());
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: people}\n";

#[tokio::test]
async fn a_removed_user_is_gone_although_a_document_of_another_kind_is_there() {
    let both = format!(
        "{}---\n{}",
        user("alice", "email: alice@example.org"),
        user("mallory", "email: mallory@example.org")
    );
    let (folder, path) = manifests(&[("namespace.yaml", NAMESPACE), ("users.yaml", &both)]);
    let sidecar = dev(&path).await;
    assert_eq!(sidecar.api().generate("mallory").await.status, 200);
    let one = user("alice", "email: alice@example.org");
    fs::write(folder.path().join("users.yaml"), one).unwrap();
    eventually(BOUND, "mallory to be unknown", async || {
        sidecar.api().verify("mallory", "000000").await.status == 404
    })
    .await;
    let log = sidecar.process().stderr();
    assert!(
        log.contains("document of another kind left out") && log.contains("kind=\"Namespace\""),
        "{log}"
    );
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn a_user_who_is_kept_because_a_manifest_cannot_be_read_is_named() {
    let both = [user("alice", "email: a@example.org"), user("mallory", "email: m@example.org")];
    let (folder, path) = manifests(&[("users.yaml", &both.join("---\n"))]);
    let sidecar = dev(&path).await;
    assert_eq!(sidecar.api().generate("mallory").await.status, 200);
    let broken = format!("{}---\nkind: [\n", user("alice", "email: a@example.org"));
    fs::write(folder.path().join("users.yaml"), broken).unwrap();
    let line = sidecar.process().wait_for_line("users kept without a manifest", BOUND).await;
    assert!(line.contains("users=1") && line.contains("names=\"mallory\""), "{line}");
    assert_eq!(sidecar.api().verify("mallory", "000000").await.status, 401);
    // With every manifest readable again, the user is removed.
    fs::write(folder.path().join("users.yaml"), user("alice", "email: a@example.org")).unwrap();
    eventually(BOUND, "mallory to be unknown", async || {
        sidecar.api().verify("mallory", "000000").await.status == 404
    })
    .await;
    let log = sidecar.process().stderr();
    assert_eq!(log.matches("users kept without a manifest").count(), 1, "{log}");
}

#[tokio::test]
async fn files_of_a_folder_whose_names_begin_with_a_dot_are_not_read() {
    let (_folder, path) = manifests(&[
        (".hidden.yaml", &user("hidden", "email: h@example.org")),
        (".#users.yaml", "kind: ["),
        ("._users.yaml", "\0\0"),
        ("..yml", "kind: ["),
        ("users.yaml", &user("alice", "email: a@example.org")),
    ]);
    let sidecar = dev(&path).await;
    assert_eq!(sidecar.api().generate("alice").await.status, 200);
    assert_eq!(sidecar.api().generate("hidden").await.status, 404);
    assert!(!sidecar.process().stderr().contains("ERROR"), "{}", sidecar.process().stderr());
    // A file that is named is read.
    let sidecar = dev(&format!("{path}/.hidden.yaml")).await;
    assert_eq!(sidecar.api().generate("hidden").await.status, 200);
}

/// Returns the code that `oathtool` shows for a seed.
fn shown_by_oathtool(base32: &str) -> String {
    let arguments = ["--totp", "--base32", base32];
    twofactor_tests::process::run(tools::find("oathtool"), &arguments).trim().to_owned()
}

#[tokio::test]
async fn seeds_are_imported_in_every_form_that_apps_export() {
    let seed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
    let odd = "X".repeat(52);
    // An export of Google Authenticator with the accounts `bob` (another seed) and `export`.
    let export = "otpauth-migration://offline?data=ChsKFGFiY2RlZmdoaWprbG1ub3BxcnN0EgNib2IKHgoUMTIz\
                  NDU2Nzg5MDEyMzQ1Njc4OTASBmV4cG9ydBABGAEgAA%3D%3D";
    let forms = [
        ("unused-bits", odd.as_str(), odd.clone()),
        ("groups", seed, "gezd gnbv gy3t qojq gezd gnbv gy3t qojq".to_owned()),
        ("uri", seed, format!("otpauth://totp/Other:who?secret={seed}&issuer=Other")),
        ("export", seed, export.to_owned()),
    ];
    let mut documents = Vec::new();
    let importing = |name: &str, spec: &str| user(name, &format!("deliveryMethod: app\n  {spec}"));
    for (name, _, value) in &forms {
        documents.push(format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{secret: '{value}'}}\n"
        ));
        documents.push(importing(name, &format!("secretRef: {{name: {name}}}")));
    }
    // A Secret as the operator writes it, with a picture.
    documents.push(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: old}\ntype: Opaque\ndata:\n  qr.png: \
         iVBORw0KGgoAAAANSUhEUv/+\n  secret: R0VaREdOQlZHWTNUUU9KUUdFWkRHTkJWR1kzVFFPSlE=\n"
            .to_owned(),
    );
    documents.push(importing("dora", "secretRef: {name: old}"));
    documents.push(importing("picture", "secretRef: {name: old, key: qr.png}"));
    documents.push(importing("eight", "totp: {digits: 8}\n  secretRef: {name: uri}"));
    let (_folder, path) = manifests(&[("users.yaml", &documents.join("---\n"))]);
    let sidecar = dev(&path).await;
    let readable = forms.iter().map(|(name, seed, _)| (*name, *seed)).chain([("dora", seed)]);
    for (name, seed) in readable {
        // Codes of before the start are refused, because they may have been used elsewhere.
        eventually(Duration::from_secs(100), format_args!("a code of {name}"), async || {
            let reply = sidecar.api().verify(name, &shown_by_oathtool(seed)).await;
            match reply.status {
                200 => Ok(()),
                400 => Err(reply.body),
                _ => panic!("{name}: {}", reply.body),
            }
        })
        .await;
    }
    for name in ["picture", "eight"] {
        assert_eq!(sidecar.api().generate(name).await.status, 400, "{name}");
    }
    let log = sidecar.process().stderr();
    for expected in [
        "the key \"qr.png\" of the Secret \"old\" is not text",
        "the key \"secret\" of the Secret \"uri\" says digits 6, but the user's totp.digits is 8",
    ] {
        assert!(log.contains(expected), "{expected} is missing in:\n{log}");
    }
    assert!(!log.contains("GEZDG") && !log.contains("otpauth"), "{log}");
}

#[tokio::test]
async fn lists_and_several_json_documents_are_read_as_kubectl_writes_them() {
    let user = |name: &str| {
        format!(
            r#"{{"apiVersion": "twofactor.fountainai.io/v1alpha1", "kind": "TwoFactorUser", "metadata": {{"name": "{name}"}}, "spec": {{"email": "{name}@example.org"}}}}"#
        )
    };
    let list = format!(
        r#"{{"apiVersion": "v1", "items": [{}], "kind": "List", "metadata": {{"resourceVersion": ""}}}}"#,
        user("listed")
    );
    let typed = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUserList\nitems:\n- metadata: \
                 {name: typed}\n  spec: {email: typed@example.org}\n";
    let (_folder, path) = manifests(&[
        ("a.json", &format!("{}\n{}\n", user("first"), user("second"))),
        ("b.json", &list),
        ("c.yaml", typed),
    ]);
    let sidecar = dev(&path).await;
    for name in ["first", "second", "listed", "typed"] {
        assert_eq!(sidecar.api().generate(name).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn addresses_that_no_mail_server_takes_are_named_with_their_line() {
    let label = "a".repeat(64);
    let text = [
        user("hyphen", "email: user@-bad.example"),
        user("long", &format!("email: user@{label}.example")),
        user("underscore", "email: user@_dmarc.example"),
        user("international", &format!("email: user@{}.example", "ü".repeat(60))),
        user("app", "email: user@-bad.example\n  deliveryMethod: app"),
    ];
    let (_folder, path) = manifests(&[("users.yaml", &text.join("---\n"))]);
    let sidecar = dev(&path).await;
    let log = sidecar.process().stderr();
    for (number, name) in ["hyphen", "long", "underscore", "international"].iter().enumerate() {
        let line = number * 7 + 6;
        let expected =
            format!("users.yaml:{line}: spec.email: is an address that no mail server takes");
        assert!(log.contains(&expected), "{expected} is missing in:\n{log}");
        assert_eq!(sidecar.api().generate(name).await.status, 404, "{name}");
    }
    // The address of a user who gets no mail does not matter.
    assert_eq!(sidecar.api().verify("app", "000000").await.status, 401);
}
