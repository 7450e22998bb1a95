//! Measures a sidecar: time until its first answer, memory over a million verifies, and size on
//! disk.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twofactor_tests::process::Launch;
use twofactor_tests::{ports, tools};

use crate::load;
use crate::realm::{self, Realm};
use crate::serve;

const VERIFIES: usize = 1_000_000;
const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(5);
const STARTS: usize = 9;
/// Timeout for a sidecar's first answer.
const START: Duration = Duration::from_secs(20);

/// Measures and prints.
pub(crate) async fn run(realm: &Realm, credentials: &Path) {
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
    let (pid, mut done, mut shown) = (sidecar.process().id(), 0, Vec::new());
    while done < VERIFIES {
        let code = realm.use_up_the_current_code(&sidecar.api()).await;
        let figures =
            load::run(sidecar.api().base_url(), &realm::used_up(&code), CONNECTIONS, ROUND).await;
        done += figures.count;
        shown.push(format!("{} MiB after {} thousand", load::resident_mebibytes(pid), done / 1000));
    }
    println!("memory over a million verifies (goal: under 25 MiB and flat): {}", shown.join(", "));
    println!("the most that it ever had: {} MiB", load::peak_mebibytes(pid));
}

/// Time from the start of the process to an answer that needed Redis.
async fn time_to_first_answer(program: &Path, credentials: &Path) -> Duration {
    let (api, admin) = (ports::free_port(), ports::free_port());
    let launch = Launch::new(program)
        .isolated()
        .args(["serve", "--log", "warn", "--credentials"])
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
