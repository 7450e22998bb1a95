//! Runs an HTTP proxy that opens tunnels (`CONNECT`), and can ask for a login, refuse or say
//! nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How the proxy answers.
#[derive(Clone, Debug)]
pub enum Manner {
    /// It opens every tunnel.
    Open,
    /// It opens tunnels for this value of `Proxy-Authorization`, and answers 407 to others.
    Login(String),
    /// It refuses with this status.
    Refuse(u16),
    /// It reads the request and never answers.
    Silent,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    asked: Vec<String>,
}

/// A proxy on a loopback port; it ends when it is dropped.
#[derive(Debug)]
pub struct ConnectProxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl ConnectProxy {
    /// A proxy that answers in this manner.
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State { manner, asked: Vec::new() }));
        let (shared, stop) = (state.clone(), CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move {
            while let Some(Ok((client, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let (state, stopped) = (shared.clone(), stopped.clone());
                // A broken connection is what some tests want.
                tokio::spawn(async move {
                    stopped.run_until_cancelled(answer(client, &state)).await;
                });
            }
        });
        Self { address, state, _stop: stop.drop_guard() }
    }

    /// Its host and port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers in this manner from now on.
    pub fn set(&self, manner: Manner) {
        lock(&self.state).manner = manner;
    }

    /// The first line of each request so far.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.state).asked.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(mut client: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let manner = {
        let mut state = lock(state);
        state.asked.push(line.clone());
        state.manner.clone()
    };
    let refusal = match manner {
        Manner::Open => None,
        Manner::Login(expected) => {
            let header = format!("\r\nproxy-authorization: {expected}\r\n");
            let is_right = head.to_lowercase().contains(&header.to_lowercase());
            (!is_right).then_some(407)
        }
        Manner::Refuse(status) => Some(status),
        Manner::Silent => std::future::pending().await,
    };
    if let Some(status) = refusal {
        let answer = format!("HTTP/1.1 {status} Refused\r\ncontent-length: 0\r\n\r\n");
        return client.write_all(answer.as_bytes()).await;
    }
    let target = line.split(' ').nth(1).unwrap_or_default();
    let mut server = TcpStream::connect(target).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
