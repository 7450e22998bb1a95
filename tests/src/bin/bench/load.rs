//! Sends one request repeatedly over kept connections, bounded in number and time, and returns
//! figures.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Figures;

/// A request and its expected answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: String,
    pub(crate) status: u16,
}

/// A request that the server answers without Redis, to measure HTTP and the client alone.
pub(crate) const HEALTH: Asked =
    Asked { method: "GET", path: "/", body: String::new(), status: 200 };

/// Repeats a request on `connections` connections for `duration`.
pub(crate) async fn run(
    base_url: &str,
    asked: &Asked,
    connections: usize,
    duration: Duration,
) -> Figures {
    let address = base_url.strip_prefix("http://").expect("a base URL").to_owned();
    let Asked { method, path, body, status } = asked;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = format!("HTTP/1.1 {status}");
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(connection(address.clone(), request.clone(), answer.clone(), began + duration));
    }
    let mut latencies: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    let took = began.elapsed();
    latencies.sort_unstable();
    let at = |hundredth: usize| latencies[(latencies.len() - 1) * hundredth / 100];
    #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
    let per_second = latencies.len() as f64 / took.as_secs_f64();
    Figures { count: latencies.len(), per_second, median: at(50), p99: at(99) }
}

async fn connection(
    address: String,
    request: String,
    expected: String,
    until: Instant,
) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let mut latencies = Vec::new();
    let mut buffer = vec![0; 4096];
    while Instant::now() < until {
        let began = Instant::now();
        stream.write_all(request.as_bytes()).await.expect("to send");
        let mut filled = 0;
        while !is_complete(&buffer[..filled]) {
            let read = stream.read(&mut buffer[filled..]).await.expect("to receive");
            assert!(read > 0, "the server closed a kept connection");
            filled += read;
        }
        assert!(
            buffer.starts_with(expected.as_bytes()),
            "{}",
            String::from_utf8_lossy(&buffer[..filled])
        );
        latencies.push(began.elapsed());
    }
    latencies
}

/// Whether the answer is complete; its body is JSON, which ends with a brace.
fn is_complete(answer: &[u8]) -> bool {
    answer.last() == Some(&b'}') && answer.windows(4).any(|window| window == b"\r\n\r\n")
}

/// Memory of a process now, in MiB.
pub(crate) fn resident_mebibytes(pid: i32) -> u64 {
    memory(pid, "VmRSS:")
}

/// Maximum memory of a process so far, in MiB.
pub(crate) fn peak_mebibytes(pid: i32) -> u64 {
    memory(pid, "VmHWM:")
}

fn memory(pid: i32, field: &str) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process' status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("its memory");
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
        / 1024
}
