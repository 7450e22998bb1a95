//! Runs a mail server whose every answer a test can choose, and records the conversations.
//!
//! [`MailServer`](crate::mail::MailServer) is a real server, and answers as one. This one answers
//! what real servers, relays and firewalls have been seen to answer, and anything else.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Authority;
use crate::mail::MailTls;
use crate::scratch;

/// A line of a conversation.
#[derive(Clone, PartialEq, Eq)]
pub enum Said {
    /// A command of the client, without the end of the line.
    Client(String),
    /// A mail of the client, without its end.
    Mail(String),
    /// What the server sent.
    Server(Vec<u8>),
    /// TLS began.
    Tls,
}

/// What the server has to answer.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The number of the connection, from 0.
    pub connection: usize,
    /// The command in capital letters, `CONNECT` for the greeting, `LOGIN` for a further line of a
    /// login, or `TEXT` for a mail.
    pub verb: &'a str,
    /// The line of the command, or the mail.
    pub line: &'a str,
    /// Whether the connection is encrypted.
    pub is_encrypted: bool,
    /// Number of mails over this connection before this command.
    pub mails: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// What a well-behaved server says.
    Usual,
    /// These bytes, in one piece.
    Say(Vec<u8>),
    /// These bytes, after which the connection is closed.
    SayAndClose(Vec<u8>),
    /// Nothing; the connection stays open.
    Silence,
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self::Say(text.as_bytes().to_vec())
    }
}

type Rules = dyn Fn(&Asked<'_>) -> Answer + Send + Sync;
type Conversations = Arc<Mutex<Vec<Vec<Said>>>>;

/// A mail server on a loopback port; it ends when it is dropped.
pub struct ScriptedMail {
    port: u16,
    folder: TempDir,
    conversations: Conversations,
    task: AbortHandle,
}

/// The certificate for `localhost` and 127.0.0.1 that all these servers have, and its authority.
struct Identity {
    authority: String,
    config: Arc<ServerConfig>,
}

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let authority = Authority::new("authority of the mail servers");
    let leaf = authority.server(&["localhost", "127.0.0.1"]);
    let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_no_client_auth()
        .with_single_cert(chain.collect::<Result<_, _>>().expect("a certificate"), key)
        .expect("a key that fits");
    Identity { authority: authority.pem(), config: Arc::new(config) }
});

impl ScriptedMail {
    /// Starts a server that answers as `rules` say.
    pub async fn start(
        tls: MailTls,
        rules: impl Fn(&Asked<'_>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let folder = scratch::folder("mail");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let conversations = Conversations::default();
        let (shared, rules): (_, Arc<Rules>) = (conversations.clone(), Arc::new(rules));
        let serving = tokio::spawn(async move {
            let mut open = JoinSet::new();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                lock(&shared).push(Vec::new());
                let session = Session {
                    stream: BufReader::new(Box::new(stream)),
                    rules: rules.clone(),
                    all: shared.clone(),
                    number,
                    is_encrypted: false,
                    mails: 0,
                };
                open.spawn(session.serve(tls));
                while open.try_join_next().is_some() {}
            }
        });
        Self { port, folder, conversations, task: serving.abort_handle() }
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate authority to trust, as PEM.
    #[must_use]
    pub fn authority(&self) -> &str {
        &IDENTITY.authority
    }

    /// The certificate authority to trust, as a file.
    #[must_use]
    pub fn ca_path(&self) -> PathBuf {
        let path = self.folder.path().join("ca.pem");
        fs::write(&path, &IDENTITY.authority).expect("to write a certificate");
        path
    }

    /// Every conversation so far, one for each connection.
    #[must_use]
    pub fn conversations(&self) -> Vec<Vec<Said>> {
        lock(&self.conversations).clone()
    }

    /// Every command that begins with `start`, in all conversations.
    #[must_use]
    pub fn commands(&self, start: &str) -> Vec<String> {
        let all = self.conversations().into_iter().flatten();
        let commands = all.filter_map(|said| match said {
            Said::Client(line) if line.starts_with(start) => Some(line),
            _ => None,
        });
        commands.collect()
    }

    /// Every mail, whether or not it was taken.
    #[must_use]
    pub fn mails(&self) -> Vec<String> {
        let all = self.conversations().into_iter().flatten();
        let mails = all.filter_map(|said| match said {
            Said::Mail(text) => Some(text),
            _ => None,
        });
        mails.collect()
    }
}

impl Drop for ScriptedMail {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(conversations: &Conversations) -> MutexGuard<'_, Vec<Vec<Said>>> {
    conversations.lock().unwrap_or_else(PoisonError::into_inner)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One connection.
struct Session {
    stream: BufReader<Box<dyn Stream>>,
    rules: Arc<Rules>,
    all: Conversations,
    number: usize,
    is_encrypted: bool,
    mails: usize,
}

impl Session {
    /// Answers until the connection is closed.
    async fn serve(mut self, tls: MailTls) -> Option<()> {
        if tls == MailTls::Implicit {
            self = self.encrypt().await?;
        }
        self.answer("CONNECT", "", "220 mail.example.org ESMTP\r\n").await?;
        let mut of_login = 0;
        loop {
            let line = self.line().await?;
            self.note(Said::Client(line.clone()));
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            if of_login > 0 {
                let usual = if of_login == 1 { "334 UGFzc3dvcmQ6\r\n" } else { "235 ok\r\n" };
                let said = self.answer("LOGIN", &line, usual).await?;
                of_login = if said.starts_with(b"334") { of_login + 1 } else { 0 };
                continue;
            }
            let usual = match verb.as_str() {
                "EHLO" => self.offers(tls),
                "STARTTLS" => "220 go\r\n".to_owned(),
                "AUTH" if line.contains("LOGIN") => "334 VXNlcm5hbWU6\r\n".to_owned(),
                "AUTH" => "235 ok\r\n".to_owned(),
                "HELO" | "MAIL" | "RCPT" | "RSET" | "NOOP" => "250 ok\r\n".to_owned(),
                "DATA" => "354 go\r\n".to_owned(),
                "QUIT" => "221 bye\r\n".to_owned(),
                _ => "500 unknown\r\n".to_owned(),
            };
            let said = self.answer(&verb, &line, &usual).await?;
            match verb.as_str() {
                "STARTTLS" if said.starts_with(b"220") => self = self.encrypt().await?,
                "AUTH" if said.starts_with(b"334") => of_login = 1,
                "DATA" if said.starts_with(b"354") => {
                    let text = self.text().await?;
                    self.note(Said::Mail(text.clone()));
                    self.answer("TEXT", &text, "250 queued\r\n").await?;
                    self.mails += 1;
                }
                "QUIT" => return None,
                _ => {}
            }
        }
    }

    fn offers(&self, tls: MailTls) -> String {
        let starttls = tls == MailTls::StartTls && !self.is_encrypted;
        let first = if starttls { "250-STARTTLS\r\n" } else { "" };
        let login = if self.is_encrypted { "250-AUTH PLAIN LOGIN\r\n" } else { "" };
        format!("250-mail.example.org\r\n{first}{login}250-8BITMIME\r\n250 SIZE 10240000\r\n")
    }

    /// Answers by the rules, and returns what was sent.
    async fn answer(&mut self, verb: &str, line: &str, usual: &str) -> Option<Vec<u8>> {
        let asked = Asked {
            connection: self.number,
            verb,
            line,
            is_encrypted: self.is_encrypted,
            mails: self.mails,
        };
        let (said, closes) = match (self.rules)(&asked) {
            Answer::Usual => (usual.as_bytes().to_vec(), false),
            Answer::Say(bytes) => (bytes, false),
            Answer::SayAndClose(bytes) => (bytes, true),
            Answer::Silence => (Vec::new(), false),
        };
        self.note(Said::Server(said.clone()));
        self.stream.write_all(&said).await.ok()?;
        self.stream.flush().await.ok()?;
        if closes {
            let _ = self.stream.shutdown().await;
            return None;
        }
        Some(said)
    }

    async fn encrypt(mut self) -> Option<Self> {
        let acceptor = TlsAcceptor::from(IDENTITY.config.clone());
        let stream = acceptor.accept(self.stream.into_inner()).await.ok()?;
        self.stream = BufReader::new(Box::new(stream));
        self.is_encrypted = true;
        self.note(Said::Tls);
        Some(self)
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line).await.ok()?;
        (read > 0).then(|| String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Reads a mail up to the line with the dot.
    async fn text(&mut self) -> Option<String> {
        let mut text = Vec::new();
        loop {
            let begin = text.len();
            if self.stream.read_until(b'\n', &mut text).await.ok()? == 0 {
                return None;
            }
            if &text[begin..] == b".\r\n" {
                text.truncate(begin);
                return Some(String::from_utf8_lossy(&text).into_owned());
            }
        }
    }

    fn note(&self, said: Said) {
        lock(&self.all)[self.number].push(said);
    }
}

impl fmt::Debug for ScriptedMail {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.conversations()).finish()
    }
}

impl fmt::Debug for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(line) => write!(formatter, "C {line:?}"),
            Self::Mail(text) => write!(formatter, "C mail {text:?}"),
            Self::Server(bytes) => write!(formatter, "S {:?}", String::from_utf8_lossy(bytes)),
            Self::Tls => formatter.write_str("TLS"),
        }
    }
}
