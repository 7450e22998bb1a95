//! Runs the programs of `examples/clients` on a sidecar, and checks that they accept only a right
//! code.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use twofactor_tests::process::run;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::{ports, scratch, tools};

const BOUND: Duration = Duration::from_secs(30);
const LANGUAGES: [&str; 3] = ["sh", "py", "go"];

/// The three programs; the one in Go is compiled once.
struct Programs {
    folder: TempDir,
}

impl Programs {
    fn prepare() -> Self {
        let folder = scratch::folder("clients");
        let output = folder.path().join("ask");
        let source = example("ask.go");
        let arguments = ["build", "-o", output.to_str().unwrap(), source.to_str().unwrap()];
        let _ = run(tools::find("go"), &arguments);
        Self { folder }
    }

    fn start(&self, language: &str, username: &str, url: &str, timeout: &str) -> Child {
        let mut command = match language {
            "sh" => Command::new(example("ask.sh")),
            "py" => {
                let mut command = Command::new(tools::find("tools-python"));
                command.arg(example("ask.py"));
                command
            }
            _ => Command::new(self.folder.path().join("ask")),
        };
        command
            .arg(username)
            .env("TWOFACTOR_URL", url)
            .env("TWOFACTOR_TIMEOUT", timeout)
            // No program may use it for a loopback address.
            .env("http_proxy", format!("http://127.0.0.1:{}", ports::free_port()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/clients").join(name)
}

/// Types a line and waits for the end. A program that has ended already reads nothing.
async fn finish(mut program: Child, line: &str) -> Output {
    let _ = program.stdin.take().unwrap().write_all(format!("{line}\n").as_bytes());
    tokio::task::spawn_blocking(|| program.wait_with_output()).await.unwrap().unwrap()
}

#[track_caller]
fn assert_yes(language: &str, output: &Output) {
    assert!(output.status.success(), "{language}: {output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("here is your key"), "{language}");
}

#[track_caller]
fn assert_no(language: &str, output: &Output) {
    assert!(!output.status.success(), "{language}: {output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("here is"), "{language}");
}

/// The code that `dev` prints instead of mailing it.
async fn shown_code(sidecar: &SidecarProcess, username: &str) -> String {
    let start = format!("[email to \"{username}\"]");
    let line = sidecar.process().wait_for_line(&start, BOUND).await;
    let (_, rest) = line.split_once("OTP: ").unwrap_or_else(|| panic!("{line}"));
    rest[..6].to_owned()
}

async fn sidecar_with_users() -> (SidecarProcess, String, TempDir) {
    let folder = scratch::folder("manifests");
    let users = LANGUAGES.iter().flat_map(|language| {
        ["right", "wrong"].map(|what| {
            format!(
                "---\napiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\n\
                 metadata: {{ name: {what}-{language} }}\nspec: {{ email: a@example.org }}\n"
            )
        })
    });
    fs::write(folder.path().join("users.yaml"), users.collect::<String>()).unwrap();
    let sidecar =
        SidecarProcess::builder().args(["dev", folder.path().to_str().unwrap()]).start().await;
    let url = sidecar.api().base_url().to_owned();
    (sidecar, url, folder)
}

#[tokio::test]
async fn each_client_reveals_the_key_for_the_right_code_only() {
    let programs = Programs::prepare();
    let (sidecar, url, _folder) = sidecar_with_users().await;
    for language in LANGUAGES {
        let user = format!("right-{language}");
        let program = programs.start(language, &user, &url, "15");
        let code = shown_code(&sidecar, &user).await;
        assert_yes(language, &finish(program, &code).await);

        let user = format!("wrong-{language}");
        let program = programs.start(language, &user, &url, "15");
        let code: u32 = shown_code(&sidecar, &user).await.parse().unwrap();
        let wrong = format!("{:06}", (code + 500_000) % 1_000_000);
        assert_no(language, &finish(program, &wrong).await);
    }
}

#[tokio::test]
async fn each_client_refuses_without_a_sidecar_and_after_a_timeout() {
    let programs = Programs::prepare();
    let nothing = format!("http://127.0.0.1:{}", ports::free_port());
    let hanging = hanging_verify();
    for language in LANGUAGES {
        let program = programs.start(language, "alice", &nothing, "15");
        assert_no(language, &finish(program, "123456").await);
        let program = programs.start(language, "alice", &hanging, "1");
        assert_no(language, &finish(program, "123456").await);
    }
}

/// Starts a server that answers `/auth/generate` and never answers `/auth/verify`.
fn hanging_verify() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut hanging = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            if read_request(&stream).starts_with("POST /auth/generate ") {
                let _ = (&stream).write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                      Content-Length: 2\r\nConnection: close\r\n\r\n{}",
                );
            } else {
                hanging.push(stream);
            }
        }
    });
    url
}

/// Reads a whole request, because closing a connection with unread bytes resets it.
fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut head, mut body) = (String::new(), 0);
    while reader.read_line(&mut head).unwrap_or(0) > 0 && !head.ends_with("\r\n\r\n") {
        let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
        if let Some(length) = line.strip_prefix("content-length:") {
            body = length.trim().parse().unwrap();
        }
    }
    let _ = reader.read_exact(&mut vec![0; body]);
    head
}
