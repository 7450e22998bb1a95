//! Sends lines to a mail server and reads its replies, one at a time.

use std::io;

use futures_util::FutureExt;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::reply::{self, NoReply, Reply};

/// Number of bytes that are read at a time.
const CHUNK: usize = 1024;

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The connection to a mail server, and what was read of it but is no reply yet.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
}

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection is closed or broken.
    Lost(io::Error),
    /// The server sent something other than a reply.
    Invalid,
    /// The server sent something before it was asked.
    Unasked,
}

impl Wire {
    pub(super) fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), unread: Vec::new() }
    }

    /// Sends `bytes` and reads the reply. What the server has sent before cannot be the reply.
    pub(super) async fn ask(&mut self, bytes: &[u8]) -> Result<Reply, Fault> {
        self.expect_silence()?;
        self.stream.write_all(bytes).await.map_err(Fault::Lost)?;
        self.stream.flush().await.map_err(Fault::Lost)?;
        self.reply().await
    }

    /// Reads a reply.
    pub(super) async fn reply(&mut self) -> Result<Reply, Fault> {
        loop {
            match reply::take(&mut self.unread) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(NoReply) => return Err(Fault::Invalid),
            }
            self.unread.reserve(CHUNK);
            if self.stream.read_buf(&mut self.unread).await.map_err(Fault::Lost)? == 0 {
                return Err(Fault::Lost(closed()));
            }
        }
    }

    /// Fails if there are unread bytes, or if the server has closed the connection.
    pub(super) fn expect_silence(&mut self) -> Result<(), Fault> {
        if !self.unread.is_empty() {
            return Err(Fault::Unasked);
        }
        match self.stream.read(&mut [0; 1]).now_or_never() {
            None => Ok(()),
            Some(Ok(0)) => Err(Fault::Lost(closed())),
            Some(Ok(_)) => Err(Fault::Unasked),
            Some(Err(error)) => Err(Fault::Lost(error)),
        }
    }

    /// Begins TLS. If that fails, the connection is closed.
    pub(super) async fn encrypt(
        &mut self,
        connector: &TlsConnector,
        name: ServerName<'static>,
    ) -> io::Result<()> {
        let stream = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        self.stream = Box::new(connector.connect(name, stream).await?);
        Ok(())
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")
}
