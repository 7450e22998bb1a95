//! Checks that every test named in `docs/development/known-flaws.md` exists. The page lists flaws
//! that similar systems have shipped; those without a test in another suite are tested here.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use twofactor_core::decision::Verdict;
use twofactor_core::user::DeliveryMethod::{App, Email};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;

use crate::support::sidecar::Served;
use crate::support::world::{START, STEP, World, record};

const BOUND: Duration = Duration::from_secs(10);
const LIFETIME: Duration = Duration::from_mins(5);
/// Number of rows.
const FLAWS: usize = 16;

fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Appends all Rust source below a folder to one text.
fn source(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            source(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_known_flaw_names_an_existing_test() {
    let page = fs::read_to_string(checkout().join("docs/development/known-flaws.md")).unwrap();
    let mut code = String::new();
    source(checkout(), &mut code);
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let numbers: Vec<usize> = rows.iter().map(|row| row[1].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=FLAWS).collect::<Vec<_>>());
    for row in rows {
        let tests: Vec<&str> = row[3].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row:?} names no test");
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "there is no test {test}");
        }
    }
}

#[tokio::test]
async fn a_code_used_by_one_user_stays_valid_for_another() {
    let world = World::in_redis().await;
    let (one, mut other) = (record("one", App), record("other", App));
    // Even if both have the same seed.
    other.seed.clone_from(&one.seed);
    let (one, other) = (world.publish(one, true).await, world.publish(other, true).await);
    let code = one.code_at(world.now(), 0);
    assert_eq!(world.verify(&one, "kms", &code).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&other, "kms", &code).await.unwrap(), Verdict::Accepted);
    assert_eq!(world.verify(&one, "kms", &code).await.unwrap(), Verdict::Used);
}

#[tokio::test]
async fn a_guess_of_a_future_code_does_not_consume_it() {
    let world = World::in_redis().await;
    let person = world.person("carol", App).await;
    let future = person.code_at(world.now(), 3);
    assert_eq!(world.verify(&person, "kms", &future).await.unwrap(), Verdict::Wrong);
    world.set_time(START + 3 * STEP).await;
    assert_eq!(world.verify(&person, "kms", &future).await.unwrap(), Verdict::Accepted);
}

#[tokio::test]
async fn a_used_code_stays_used_after_another_one() {
    let world = World::in_redis().await;
    let (app, mail) = (world.person("carol", App).await, world.person("alice", Email).await);
    let (first, second) = (app.code_at(world.now(), 0), app.code_at(world.now(), 1));
    for (code, verdict) in
        [(&first, Verdict::Accepted), (&second, Verdict::Accepted), (&first, Verdict::Used)]
    {
        assert_eq!(world.verify(&app, "kms", code).await.unwrap(), verdict);
    }

    let first = mail.code_at(world.now(), 0);
    world.issue(&mail, "kms", LIFETIME).await.unwrap();
    assert_eq!(world.verify(&mail, "kms", &first).await.unwrap(), Verdict::Accepted);
    world.set_time(START + 2 * STEP).await;
    let second = mail.code_at(world.now(), 0);
    world.issue(&mail, "kms", LIFETIME).await.unwrap();
    assert_eq!(world.verify(&mail, "kms", &second).await.unwrap(), Verdict::Accepted);
    for code in [&first, &second] {
        assert_eq!(world.verify(&mail, "kms", code).await.unwrap(), Verdict::Used);
    }
}

#[tokio::test]
async fn the_first_failure_after_a_block_counts() {
    let world = World::in_redis().await;
    let person = world.person("carol", App).await;
    let mut now = START;
    for _ in 0..5 {
        let wrong = person.wrong_code(world.now());
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    }
    for seconds in [30, 60, 120] {
        let wrong = person.wrong_code(world.now());
        let blocked = Verdict::Blocked { retry_after: Duration::from_secs(seconds) };
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), blocked);
        now += seconds * 1000;
        world.set_time(now).await;
        // One guess after each block, not five.
        let wrong = person.wrong_code(world.now());
        assert_eq!(world.verify(&person, "kms", &wrong).await.unwrap(), Verdict::Wrong);
    }
}

#[tokio::test]
async fn a_failure_counts_even_if_the_client_hangs_up() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let sidecar = Served::start(&world, "kms").await;
    world.person("carol", App).await;
    let address = sidecar.api().base_url().trim_start_matches("http://").to_owned();
    let body = r#"{"username":"carol","otp_code":"0000000"}"#;
    for number in 1..=5 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "POST /auth/verify HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        // No client waits for the answer, so the decision is read from the log.
        eventually(BOUND, "the decision", async || {
            sidecar.process().output().matches("invalid-code").count() == number
        })
        .await;
        drop(stream);
    }
    assert_eq!(sidecar.api().verify("carol", "0000000").await.status, 429);
}

#[tokio::test]
async fn only_verify_accepts_a_code() {
    let folder = twofactor_tests::scratch::folder("manifests");
    let path = folder.path().to_str().unwrap().to_owned();
    let sidecar = SidecarProcess::builder().args(["dev", &path]).start().await;
    let description = sidecar.api().get("/openapi.json").await.json();
    let takers: Vec<&String> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, path)| path.to_string().contains("VerifyRequest"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(takers, ["/auth/verify"]);
    // No other schema has a field for a submitted code.
    for (name, schema) in description["components"]["schemas"].as_object().unwrap() {
        let has_code = schema["properties"].get("otp_code").is_some();
        assert_eq!(has_code, ["VerifyRequest", "GenerateReply"].contains(&name.as_str()), "{name}");
    }
}
