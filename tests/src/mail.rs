//! Starts a real SMTP server that stores the mail it receives, and can inject faults.
//!
//! The server is `tests/tools/mail/server.py`: aiosmtpd with a REST API.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use crate::certificates::Authority;
use crate::http::ApiClient;
use crate::process::{Launch, Process};
use crate::wait::eventually;
use crate::{scratch, tools};

const START: Duration = Duration::from_secs(20);

/// How a connection is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MailTls {
    /// Not at all.
    #[default]
    Plain,
    /// By STARTTLS; mail without it is refused.
    StartTls,
    /// From the first byte.
    Implicit,
}

/// The stage at which a fault occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailStage {
    /// At the login.
    Auth,
    /// At the sender's address.
    Mail,
    /// At the receiver's address.
    Rcpt,
    /// At the message itself.
    Data,
}

/// A fault in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailTrouble {
    /// No answer, while the connection stays open.
    Hang,
    /// The connection is closed.
    Drop,
}

/// A message that arrived.
#[derive(Clone, Debug, Deserialize)]
pub struct Mail {
    id: u64,
    /// The sender of the envelope.
    pub from: String,
    /// The receivers of the envelope.
    pub to: Vec<String>,
    /// The headers in their order, decoded.
    pub headers: Vec<(String, String)>,
    /// The plain text part.
    pub text: String,
    /// The HTML part, or an empty text.
    pub html: String,
    /// The message as it came.
    pub raw: String,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The login.
    pub user: Option<String>,
}

impl Mail {
    /// The subject, or an empty text.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.header("Subject").unwrap_or_default()
    }

    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Options for a server that is about to start.
#[derive(Debug, Default)]
pub struct MailBuilder {
    tls: MailTls,
    login: Option<(String, String)>,
}

impl MailBuilder {
    /// How connections are protected.
    #[must_use]
    pub fn tls(mut self, tls: MailTls) -> Self {
        self.tls = tls;
        self
    }

    /// The login that is required for mail.
    #[must_use]
    pub fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// Starts the server, and returns when it listens.
    pub async fn start(self) -> MailServer {
        let folder = scratch::folder("mail");
        let path = |name: &str| folder.path().join(name);
        let authority = Authority::new("mail server's CA");
        let leaf = authority.server(&["localhost", "127.0.0.1"]);
        for (name, content) in
            [(CA, authority.pem()), ("cert.pem", leaf.certificate), ("key.pem", leaf.key)]
        {
            fs::write(path(name), content).expect("to write a certificate");
        }

        let tls = match self.tls {
            MailTls::Plain => "none",
            MailTls::StartTls => "starttls",
            MailTls::Implicit => "implicit",
        };
        let mut launch = Launch::new(tools::find("tools-python"))
            .named("mail-server")
            // It has nothing to finish, so it is killed at once.
            .patience(Duration::ZERO)
            .arg(tools::file("mail/server.py"))
            .args(["--tls", tls, "--cert"])
            .args([path("cert.pem"), "--key".into(), path("key.pem")]);
        if let Some((user, password)) = &self.login {
            launch = launch.args(["--auth".to_owned(), format!("{user}:{password}")]);
        }
        let process = launch.start();
        let line = process.wait_for_line("\"smtp\"", START).await;
        let ports: Ports = serde_json::from_str(&line).expect("the ports of the mail server");
        let rest = format!("http://127.0.0.1:{}", ports.http);
        MailServer { process, smtp_port: ports.smtp, rest, folder, handed_out: Mutex::default() }
    }
}

const CA: &str = "ca.pem";

#[derive(Deserialize)]
struct Ports {
    smtp: u16,
    http: u16,
}

/// An SMTP server on a loopback port.
#[derive(Debug)]
pub struct MailServer {
    process: Process,
    smtp_port: u16,
    rest: String,
    folder: TempDir,
    handed_out: Mutex<HashSet<u64>>,
}

impl MailServer {
    /// A server without TLS and without a login.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with options.
    #[must_use]
    pub fn builder() -> MailBuilder {
        MailBuilder::default()
    }

    /// The SMTP port on 127.0.0.1 and, by its certificate, on `localhost`.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.smtp_port
    }

    /// The certificate authority to trust, as a PEM file.
    #[must_use]
    pub fn ca_path(&self) -> PathBuf {
        self.folder.path().join(CA)
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Everything that arrived, oldest first.
    pub async fn messages(&self) -> Vec<Mail> {
        all(&self.rest()).await
    }

    /// Waits for the oldest message to `to` that this function has not returned before.
    pub async fn wait_for_message(&self, to: &str, bound: Duration) -> Mail {
        let rest = self.rest();
        eventually(bound, format_args!("mail to {to}"), async || {
            let messages = all(&rest).await;
            let mut handed_out = self.handed_out.lock().unwrap_or_else(PoisonError::into_inner);
            messages
                .into_iter()
                .find(|mail| mail.to.iter().any(|given| given == to) && handed_out.insert(mail.id))
        })
        .await
    }

    /// The number of mails that clients started to send after TLS and login, accepted or not.
    pub async fn attempts(&self) -> u64 {
        self.ask("GET", "/state", "").await["attempts"].as_u64().expect("a number of attempts")
    }

    /// Answers with `reply`, such as `451 4.3.0 later`, at that stage from now on: `times` times,
    /// or until [`MailServer::heal`].
    pub async fn fail(&self, stage: MailStage, reply: &str, times: Option<u32>) {
        let stage = match stage {
            MailStage::Auth => "auth",
            MailStage::Mail => "mail",
            MailStage::Rcpt => "rcpt",
            MailStage::Data => "data",
        };
        let fault = json!({ "stage": stage, "reply": reply, "times": times });
        self.ask("PUT", "/fault", &fault.to_string()).await;
    }

    /// Gives no answer at that stage from now on, except at the login: `times` times, or until
    /// [`MailServer::heal`].
    pub async fn go_silent(&self, stage: MailStage, trouble: MailTrouble, times: Option<u32>) {
        let word = match trouble {
            MailTrouble::Hang => "hang",
            MailTrouble::Drop => "drop",
        };
        self.fail(stage, word, times).await;
    }

    /// The number of connections so far.
    pub async fn connections(&self) -> u64 {
        self.ask("GET", "/state", "").await["connections"]
            .as_u64()
            .expect("a number of connections")
    }

    /// Closes every connection, as servers do with idle ones.
    pub async fn close_connections(&self) {
        self.ask("DELETE", "/connections", "").await;
    }

    /// Removes the fault.
    pub async fn heal(&self) {
        self.ask("DELETE", "/fault", "").await;
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> serde_json::Value {
        let reply = self.rest().raw(method, path, &[], body).await;
        assert_eq!(reply.status, 200, "{method} {path} of the mail server: {}", reply.body);
        reply.json()
    }

    /// A new client each time, because a connection belongs to the runtime of the test that opened
    /// it.
    fn rest(&self) -> ApiClient {
        ApiClient::new(&self.rest)
    }
}

async fn all(rest: &ApiClient) -> Vec<Mail> {
    let reply = rest.get("/messages").await;
    serde_json::from_str(&reply.body).expect("the list of messages")
}
