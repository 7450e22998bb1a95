//! Starts a real browser that can reach one sidecar and no network. Opens pages, evaluates
//! JavaScript on them, and lists the requests of the browser.
//!
//! Both run in their own network namespace, which has only the loopback interface. The harness
//! speaks Chrome's `DevTools` protocol over two named pipes, which work across network namespaces.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{self, Launch, Process};
use crate::wait::eventually_blocking;
use crate::{scratch, tools};

/// Timeout for one command, and for a condition on the page.
const BOUND: Duration = Duration::from_secs(30);
/// Address of the sidecar; in its network namespace every port is free.
const SIDECAR: &str = "127.0.0.1:8004";

/// The first process of the namespaces; all others end with it. The browser runs without its
/// sandbox, because it has none as root.
const SCRIPT: &str = r#"
ip link set lo up
"$SIDECAR" "$@" --listen "$ADDRESS" &
exec "$BROWSER" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions \
  --user-data-dir="$HOME/browser" --remote-debugging-pipe about:blank 3<"$TO_BROWSER" 4>"$FROM_BROWSER"
"#;

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    to: File,
    from: Receiver<Value>,
    last_id: u64,
    session: Option<String>,
    /// Events that the browser sent.
    events: Vec<Value>,
    _pipes: TempDir,
}

impl Browser {
    /// Starts a sidecar with these arguments, and a browser that can reach it and nothing else.
    #[must_use]
    pub fn start(sidecar: &[&str]) -> Self {
        let pipes = scratch::folder("pipes");
        let [to, from] = ["to", "from"].map(|name| pipes.path().join(name));
        for pipe in [&to, &from] {
            let _ = process::run("mkfifo", &[pipe.to_str().expect("a path in UTF-8")]);
        }
        let process = Launch::new(tools::find("unshare"))
            .named("browser")
            .isolated()
            // All processes of a process namespace end with the first one.
            .patience(Duration::ZERO)
            .args([
                "--map-root-user",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "/bin/sh",
                "-c",
                SCRIPT,
                "sh",
            ])
            .args(sidecar.iter().copied())
            .env("SIDECAR", tools::project_binary("twofactor-sidecar"))
            .env("BROWSER", tools::find("chromium"))
            .env("ADDRESS", SIDECAR)
            .env("TO_BROWSER", &to)
            .env("FROM_BROWSER", &from)
            .start();
        let mut browser = Self {
            process,
            to: open(&to),
            from: messages(open(&from)),
            last_id: 0,
            session: None,
            events: Vec::new(),
            _pipes: pipes,
        };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", &attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Network.enable", "Runtime.enable", "Page.enable"] {
            browser.call(domain, &json!({}));
        }
        browser
    }

    /// Opens a page of the sidecar as soon as the sidecar listens.
    pub fn open(&mut self, path: &str) {
        let url = json!({ "url": format!("http://{SIDECAR}{path}") });
        eventually_blocking(BOUND, "the sidecar's page", || {
            // A request that fails before the sidecar listens is not an error of the page.
            self.events.clear();
            self.call("Page.navigate", &url).get("errorText").is_none()
        });
    }

    /// Evaluates an expression on the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", &asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression has a truthy value, and returns the value. An expression that
    /// fails is evaluated again.
    pub fn wait_for(&mut self, expression: &str) -> Value {
        let patient = format!(
            "(() => {{ try {{ return {expression} }} catch (error) {{ return null }} }})()"
        );
        eventually_blocking(BOUND, format_args!("{expression} on the page"), || {
            let value = self.evaluate(&patient);
            let nothing = [Value::Null, json!(false), json!(0), json!("")].contains(&value);
            if nothing { Err(format!("it is {value}")) } else { Ok(value) }
        })
    }

    /// The URLs of all requests since the browser opened the page, and every error of a request or
    /// script.
    pub fn asked_for(&mut self) -> (Vec<String>, Vec<Value>) {
        // All events before this answer have been read then.
        self.evaluate("1");
        let method = |message: &Value| message["method"].as_str().unwrap_or_default().to_owned();
        let urls =
            self.events.iter().filter(|message| method(message) == "Network.requestWillBeSent");
        let urls = urls
            .filter_map(|message| message["params"]["request"]["url"].as_str().map(str::to_owned));
        let wrong = ["Network.loadingFailed", "Runtime.exceptionThrown"];
        let wrong = self.events.iter().filter(|message| wrong.contains(&method(message).as_str()));
        (urls.collect(), wrong.cloned().collect())
    }

    /// Sends a command of the protocol, and returns its result.
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("to write to the browser");
        loop {
            let mut message = self.from.recv_timeout(BOUND).unwrap_or_else(|error| {
                panic!("no answer of the browser to {method} ({error}): {}", self.process.output())
            });
            if message["id"] == self.last_id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }
}

/// Opens a named pipe without waiting for the other end.
fn open(pipe: &Path) -> File {
    File::options().read(true).write(true).open(pipe).expect("a named pipe")
}

/// Reads messages, each of which ends with a zero byte.
fn messages(mut pipe: File) -> Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut waiting, mut part) = (Vec::new(), vec![0; 64 * 1024]);
        while let Ok(read) = pipe.read(&mut part) {
            waiting.extend_from_slice(&part[..read]);
            while let Some(end) = waiting.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = waiting.drain(..=end).collect();
                let message = serde_json::from_slice(&message[..end]).expect("a message in JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}
