//! Sends requests over kept connections, bounded in number and time, and returns figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// The requests of a run, which its connections share.
struct Requests {
    /// What is sent, and the beginning of the answer.
    texts: Vec<(String, String)>,
    next: AtomicUsize,
    /// The moment until which the requests are repeated. Without it, each is sent once.
    repeated_until: Option<Instant>,
}

impl Requests {
    fn next(&self) -> Option<&(String, String)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        match self.repeated_until {
            None => self.texts.get(number),
            Some(until) if Instant::now() < until => self.texts.get(number % self.texts.len()),
            Some(_) => None,
        }
    }
}

/// Repeats a request on `connections` connections for `duration`.
pub(crate) async fn repeat(
    base_url: &str,
    asked: &Asked,
    connections: usize,
    duration: Duration,
) -> Figures {
    let until = Instant::now() + duration;
    run(base_url, std::slice::from_ref(asked), Some(until), connections).await
}

/// Sends each request once, on `connections` connections.
pub(crate) async fn each(base_url: &str, asked: &[Asked], connections: usize) -> Figures {
    run(base_url, asked, None, connections).await
}

async fn run(
    base_url: &str,
    asked: &[Asked],
    repeated_until: Option<Instant>,
    connections: usize,
) -> Figures {
    let address = base_url.strip_prefix("http://").expect("a base URL").to_owned();
    let texts = asked.iter().map(|asked| texts(&address, asked)).collect();
    let requests = Arc::new(Requests { texts, next: AtomicUsize::new(0), repeated_until });
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(connection(address.clone(), requests.clone()));
    }
    let latencies = tasks.join_all().await.into_iter().flatten().collect();
    Figures::new(latencies, began.elapsed())
}

fn texts(address: &str, Asked { method, path, body, status }: &Asked) -> (String, String) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    (request, format!("HTTP/1.1 {status}"))
}

async fn connection(address: String, requests: Arc<Requests>) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let mut latencies = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Some((request, expected)) = requests.next() {
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
