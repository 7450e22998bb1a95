//! Runs a proxy that carries what clients send as slowly as a bad network does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Number of bytes that arrive at once.
const PART: usize = 16 * 1024;
/// Interval between two of these parts.
const INTERVAL: Duration = Duration::from_millis(350);

/// A slow proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct SlowNetwork {
    address: SocketAddr,
    _stop: DropGuard,
}

impl SlowNetwork {
    /// A proxy in front of a server.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            while let Some(Ok((client, _))) = stopped.run_until_cancelled(listener.accept()).await {
                // The client sees that its connection ends if the server does not answer.
                let Ok(server) = TcpStream::connect(target).await else { continue };
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.into_split();
                let stopped = stopped.clone();
                tokio::spawn(async move {
                    let both = async {
                        let back = copy(&mut from_server, &mut to_client);
                        tokio::join!(carry(from_client, to_server), back)
                    };
                    stopped.run_until_cancelled(both).await;
                });
            }
        });
        Self { address, _stop: stop.drop_guard() }
    }

    /// The address of the proxy.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Carries the first part at once, so that a handshake takes no time.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (mut buffer, mut ticks) = (vec![0; PART], tokio::time::interval(INTERVAL));
    let mut carried = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        carried += count;
        if carried > PART {
            let _ = ticks.tick().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
