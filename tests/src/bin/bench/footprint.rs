//! Measures a sidecar: time until its first answer, memory over verifies of a million users, and
//! size on disk.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod;
use twofactor_tests::process::Launch;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::{ports, tools};

use crate::load;
use crate::realm::Realm;
use crate::usage::{peak_mebibytes, resident_mebibytes};
use crate::verify::serve;

/// Number of users after each of which the memory is shown. The sidecar knows the first number of
/// them at the same time.
const USERS: [usize; 5] = [20_000, 100_000, 300_000, 600_000, 1_000_000];
const CONNECTIONS: usize = 64;
const STARTS: usize = 9;
/// Timeout for a sidecar's first answer.
const START: Duration = Duration::from_secs(20);

/// Measures and prints.
pub(crate) async fn run() {
    let redis = RedisServer::start().await;
    let users = USERS[USERS.len() - 1];
    let realm = Realm::publish(&redis, &RealmRecord::default(), users, DeliveryMethod::App).await;
    let credentials = realm.credentials(&redis);
    let credentials = credentials.path();
    let program = tools::project_binary("twofactor-sidecar");
    let bytes = fs::metadata(&program).expect("the sidecar's program").len();
    println!("size of the stripped binary (goal: under 15 MB): {:.1} MB", megabytes(bytes));

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(time_to_first_answer(&program, credentials).await);
    }
    starts.sort_unstable();
    println!(
        "start to the first answer that needs Redis (goal: under 50 ms), {STARTS} times: median {:.1} ms, longest {:.1} ms",
        milliseconds(starts[STARTS / 2]),
        milliseconds(starts[STARTS - 1]),
    );

    let sidecar = serve(credentials).await;
    let (pid, mut shown, mut first) = (sidecar.process().id(), Vec::new(), 0);
    for last in USERS {
        let verifies = realm.verifies(first..last);
        let _ = load::each(sidecar.api().base_url(), &verifies, CONNECTIONS).await;
        shown.push(format!("{} MiB after {} thousand", resident_mebibytes(pid), last / 1000));
        first = last;
    }
    println!(
        "memory over accepted verifies, each of another user (goal: under 32 MiB and flat): {}",
        shown.join(", ")
    );
    println!("the most that it ever had: {} MiB", peak_mebibytes(pid));
}

/// Time from the start of the process to an answer that needed Redis.
async fn time_to_first_answer(program: &Path, credentials: &Path) -> Duration {
    let (api, admin) = (ports::free_port(), ports::free_port());
    let launch = Launch::new(program)
        .isolated()
        .args(["serve", "--credentials"])
        .arg(credentials)
        .args(["--listen".to_owned(), format!("127.0.0.1:{api}")])
        .args(["--admin-listen".to_owned(), format!("127.0.0.1:{admin}")]);
    let began = Instant::now();
    let process = launch.start();
    loop {
        if let Some(status) = ask(api).await
            && status != 503
        {
            let took = began.elapsed();
            drop(process);
            return took;
        }
        assert!(began.elapsed() < START, "the sidecar does not answer");
        tokio::task::yield_now().await;
    }
}

/// The status of a verify of an unknown user, which reads Redis, or `None` while the sidecar does
/// not listen.
async fn ask(port: u16) -> Option<u16> {
    let body = r#"{"username":"dave","otp_code":"000000"}"#;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!(
        "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a size to be shown")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
