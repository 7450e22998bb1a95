//! Runs a proxy in front of a server that keeps every byte of every connection, as a neighbour on
//! the network would see it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

type Streams = Arc<Mutex<Vec<Vec<u8>>>>;

/// A recording proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct Wire {
    port: u16,
    streams: Streams,
    _stop: DropGuard,
}

impl Wire {
    /// A proxy in front of a port of this machine.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (streams, stop) = (Streams::default(), CancellationToken::new());
        let (kept, stopped) = (streams.clone(), stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((client, _))) = stopped.run_until_cancelled(listener.accept()).await {
                // The client sees that its connection ends if the server does not answer.
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                for (from, to) in [(from_client, to_server), (from_server, to_client)] {
                    let (kept, stopped) = (kept.clone(), stopped.clone());
                    tokio::spawn(async move {
                        stopped.run_until_cancelled(forward(from, to, kept)).await;
                    });
                }
            }
        });
        Self { port, streams, _stop: stop.drop_guard() }
    }

    /// The port of the proxy.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What was sent so far, one for each direction of each connection that sent something.
    #[must_use]
    pub fn streams(&self) -> Vec<Vec<u8>> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.iter().filter(|stream| !stream.is_empty()).cloned().collect()
    }

    /// Whether these bytes were sent on any connection.
    #[must_use]
    pub fn shows(&self, bytes: &[u8]) -> bool {
        self.streams().iter().any(|stream| stream.windows(bytes.len()).any(|part| part == bytes))
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, streams: Streams) {
    let locked = || streams.lock().unwrap_or_else(PoisonError::into_inner);
    let number = {
        let mut streams = locked();
        streams.push(Vec::new());
        streams.len() - 1
    };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        locked()[number].extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
