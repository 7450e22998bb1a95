//! A real browser without a network, and a sidecar beside it that it can reach. Enters: arguments
//! for the sidecar, pages and expressions in JavaScript. Leaves: what the expressions come to, and
//! all that the browser asked for.
//!
//! Both run in a network namespace of their own in which there is nothing but the loopback
//! interface. The browser is spoken to in the `DevTools` protocol of Chrome over two named pipes,
//! which reach it there.

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

/// For one command, and for a condition on the page.
const BOUND: Duration = Duration::from_secs(30);
/// Where the sidecar listens; in its namespace, every port is free.
const SIDECAR: &str = "127.0.0.1:8004";

/// The first process of the namespaces; all end with it. The browser has no use for its sandbox
/// here, and as root it has none.
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
    /// What was told without having been asked for.
    told: Vec<Value>,
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
            // The first process in a namespace of processes takes everybody along.
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
            told: Vec::new(),
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

    /// Opens a page of the sidecar, once that listens.
    pub fn open(&mut self, path: &str) {
        let url = json!({ "url": format!("http://{SIDECAR}{path}") });
        eventually_blocking(BOUND, "the sidecar's page", || {
            // What fails while nobody listens is no fault of the page.
            self.told.clear();
            self.call("Page.navigate", &url).get("errorText").is_none()
        });
    }

    /// What an expression comes to on the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", &asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression comes to something that counts as true, and hands it on. One that
    /// cannot be evaluated yet is tried again.
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

    /// The URLs of everything that the browser has asked for since it opened the page, and whatever
    /// went wrong with them or in a script.
    pub fn asked_for(&mut self) -> (Vec<String>, Vec<Value>) {
        // Whatever was told before this is answered has been read then.
        self.evaluate("1");
        let method = |message: &Value| message["method"].as_str().unwrap_or_default().to_owned();
        let urls =
            self.told.iter().filter(|message| method(message) == "Network.requestWillBeSent");
        let urls = urls
            .filter_map(|message| message["params"]["request"]["url"].as_str().map(str::to_owned));
        let wrong = ["Network.loadingFailed", "Runtime.exceptionThrown"];
        let wrong = self.told.iter().filter(|message| wrong.contains(&method(message).as_str()));
        (urls.collect(), wrong.cloned().collect())
    }

    /// A command of the protocol, and its result.
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
            self.told.push(message);
        }
    }
}

/// Opens a named pipe without waiting for the other end.
fn open(pipe: &Path) -> File {
    File::options().read(true).write(true).open(pipe).expect("a named pipe")
}

/// Messages as they come, each ended by a zero byte.
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
