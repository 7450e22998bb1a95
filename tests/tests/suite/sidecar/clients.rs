//! Tests the sidecar with clients that misbehave, a clock that jumps, and a shutdown under load.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use twofactor_core::user::DeliveryMethod::App;
use twofactor_tests::http::ApiClient;
use twofactor_tests::process::Signal;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::eventually;
use twofactor_tests::{scratch, tools};

use crate::support::sidecar::{Served, serve, shown};
use crate::support::world::{Person, World};

const BOUND: Duration = Duration::from_secs(10);
/// Maximum resident memory of a sidecar under any client, in KiB, as `proc` shows it for a debug
/// build.
const MEMORY: u64 = 100 * 1024;

async fn served() -> (World, Served) {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let sidecar = Served::start(&world, "kms").await;
    (world, sidecar)
}

fn address(api: &ApiClient) -> String {
    api.base_url().strip_prefix("http://").unwrap().to_owned()
}

fn memory(sidecar: &SidecarProcess) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.process().id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn ten_thousand_idle_connections_leave_memory_and_service_intact() {
    const CONNECTIONS: usize = 10_000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let (world, sidecar) = served().await;
    let person = world.person("carol", App).await;
    // An earlier client keeps its connection.
    let (api, admin) = (sidecar.api(), sidecar.admin());
    assert_eq!(api.verify("carol", "000000").await.status, 401);
    let mut attempts = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let address = address(&api);
        // Connections beyond the limit and the backlog are not accepted; they time out.
        attempts.spawn(async move {
            tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(address))
                .await
                .ok()?
                .ok()
        });
    }
    let (mut idle, mut asked) = (Vec::new(), false);
    while let Some(connected) = attempts.join_next().await {
        idle.extend(connected.unwrap());
        if idle.len() == 1500 && !std::mem::replace(&mut asked, true) {
            assert_eq!(admin.get("/livez").await.status, 200, "probes have a port of their own");
            assert_eq!(
                api.verify("carol", &shown(&person)).await.status,
                200,
                "who is connected is served"
            );
        }
    }
    assert!(idle.len() >= 1500, "{} connections", idle.len());
    assert!(memory(&sidecar) < MEMORY, "{} KiB", memory(&sidecar));
    // Silent clients are disconnected and waiting clients are accepted, while all of them keep
    // waiting.
    let new = sidecar.api();
    eventually(Duration::from_secs(90), "a new client to be served", async || {
        let request = new.try_raw("GET", "/", &[], "");
        matches!(tokio::time::timeout(Duration::from_secs(20), request).await, Ok(Ok(reply)) if reply.status == 200)
    })
    .await;
    drop(idle);
    sidecar.process().assert_running();
}

async fn send_slowly(api: &ApiClient, text: &str) -> (String, Duration) {
    let mut stream = TcpStream::connect(address(api)).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let began = Instant::now();
    let write = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        for byte in text.bytes() {
            ticks.tick().await;
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = String::new();
    tokio::select! {
        () = write => {}
        _ = tokio::time::timeout(Duration::from_secs(25), reader.read_to_string(&mut answer)) => {}
    }
    (answer, began.elapsed())
}

#[tokio::test]
async fn a_client_that_sends_a_byte_a_second_is_disconnected() {
    let (_world, sidecar) = served().await;
    let api = sidecar.api();
    let head =
        "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
    let (_, took) = send_slowly(&api, head).await;
    assert!(
        took < Duration::from_secs(20),
        "within the time for a head, not when the client is done: {took:?}"
    );

    let mut stream = TcpStream::connect(address(&api)).await.unwrap();
    stream.write_all(format!("{head}Content-Length: 60\r\n\r\n").as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            if writer.write_all(b"{").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = vec![0; 4096];
    let began = Instant::now();
    let read = tokio::select! {
        () = drip => unreachable!("it goes on"),
        read = tokio::time::timeout(BOUND, reader.read(&mut answer)) => read.unwrap().unwrap(),
    };
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused_before_it_is_there() {
    let (_world, sidecar) = served().await;
    let api = sidecar.api();
    for framing in ["Content-Length: 10485760", "Transfer-Encoding: chunked"] {
        let mut stream = TcpStream::connect(address(&api)).await.unwrap();
        let head = format!(
            "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let chunk = if framing.starts_with('C') {
            " ".repeat(65_536)
        } else {
            format!("10000\r\n{}\r\n", " ".repeat(65_536))
        };
        let send = async {
            for _ in 0..160 {
                if writer.write_all(chunk.as_bytes()).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let mut answer = vec![0; 4096];
        let read = tokio::select! {
            () = send => unreachable!("it goes on"),
            read = tokio::time::timeout(BOUND, reader.read(&mut answer)) => read.unwrap().unwrap(),
        };
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 413"), "{framing}: {answer}");
    }
    assert!(memory(&sidecar) < MEMORY, "{} KiB", memory(&sidecar));
    assert_eq!(api.get("/").await.status, 200);
}

#[tokio::test]
async fn sigterm_under_load_loses_nothing_that_was_accepted() {
    const PEOPLE: usize = 400;
    let (world, sidecar) = served().await;
    let mut people = Vec::new();
    for number in 0..PEOPLE {
        people.push(world.person(&format!("user{number}"), App).await);
    }
    let mut requests = JoinSet::new();
    let api = sidecar.api();
    let turns = std::sync::Arc::new(tokio::sync::Semaphore::new(32));
    for person in people {
        let (api, turns) = (api.clone(), turns.clone());
        requests.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let name = person.record.definition.username.to_string();
            let code = shown(&person);
            let body = json!({ "username": name, "otp_code": code }).to_string();
            let reply = api
                .try_raw("POST", "/auth/verify", &[("content-type", "application/json")], body)
                .await;
            (person, code, reply.ok().map(|reply| reply.status))
        });
    }
    let mut ended: Vec<(Person, String, Option<u16>)> = Vec::new();
    while let Some(one) = requests.join_next().await {
        ended.push(one.unwrap());
        if ended.len() == PEOPLE / 4 {
            sidecar.process().signal(Signal::Term);
        }
    }
    assert!(sidecar.process().wait_exit(Duration::from_secs(20)).await.success());
    let answered = ended.iter().filter(|(_, _, status)| status.is_some()).count();
    assert!((PEOPLE / 4..PEOPLE).contains(&answered), "in the middle of the load: {answered}");
    let next = serve(sidecar.credentials.path()).await;
    for (person, code, status) in &ended {
        let again =
            next.api().verify(person.record.definition.username.as_str(), code).await.status;
        match status {
            // An accepted code is used, and an unanswered request was not carried out.
            Some(200) => assert_eq!(again, 400, "accepted twice"),
            None => assert!(
                again == 200 || *code != shown(person),
                "used up without an answer: {again}"
            ),
            Some(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_sidecar_whose_clock_jumps_decides_by_the_clock_of_redis() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let credentials = world.credentials("kms");
    let folder = scratch::folder("clock");
    let file = folder.path().join("clock");
    let set = |offset: &str| {
        let draft = folder.path().join("draft");
        fs::write(&draft, offset).and_then(|()| fs::rename(&draft, &file)).unwrap();
    };
    set("+0");
    let sidecar = SidecarProcess::builder()
        .args(["serve", "--credentials", credentials.path().to_str().unwrap()])
        .env("LD_PRELOAD", tools::libfaketime().to_str().unwrap())
        .env("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start()
        .await;
    let api = sidecar.api();
    for (number, offset) in ["+0", "+30", "-30", "+3600", "-3600", "+0"].into_iter().enumerate() {
        set(offset);
        let name = format!("user{number}");
        let person = world.person(&name, App).await;
        let code = shown(&person);
        assert_eq!(api.verify(&name, &code).await.status, 200, "{offset}");
        assert_eq!(api.verify(&name, &code).await.status, 400, "{offset}");
        // A code of the time that the sidecar's clock shows is not accepted.
        let elsewhere = person.code_at(twofactor_store::clock::Clock::System.now(), 120);
        assert_ne!(api.verify(&name, elsewhere.expose_secret()).await.status, 200, "{offset}");
    }
}
