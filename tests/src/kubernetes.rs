//! Runs `kubectl`, `helm` and scripts on the cluster that `KUBECONFIG` names, each with a timeout.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::tools;
use crate::wait::try_blocking;

/// Timeout for a single request.
const BOUND: Duration = Duration::from_mins(1);
/// Added to the timeout of `kubectl wait`, so that its own message comes first.
const GRACE: Duration = Duration::from_secs(15);

/// Result and output of a program.
#[derive(Clone, Debug)]
pub struct Said {
    /// Whether it succeeded within its timeout.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error, which includes warnings of the API server.
    pub stderr: String,
}

impl Said {
    /// The standard output of a success.
    ///
    /// # Errors
    /// The complete output, if it failed.
    pub fn into_result(self) -> Result<String, String> {
        if self.success { Ok(self.stdout) } else { Err(self.to_string()) }
    }
}

impl Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.stdout, self.stderr)
    }
}

/// Runs a program to its end. After `bound` it is killed together with all processes that it
/// started.
#[must_use]
pub fn finish(command: Command, input: &str, bound: Duration) -> Said {
    finish_unless(command, input, bound, || false)
}

/// [`finish`], but kills the program as soon as `stop` returns `true`.
fn finish_unless(
    mut command: Command,
    input: &str,
    bound: Duration,
    mut stop: impl FnMut() -> bool,
) -> Said {
    let program = command.get_program().to_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", Path::new(&program).display()));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            // A write fails if the program has exited or does not read its input.
            stdin.expect("a pipe").write_all(input.as_bytes()).ok();
        });
        let stdout = scope.spawn(move || all_of(stdout.expect("a pipe")));
        let stderr = scope.spawn(move || all_of(stderr.expect("a pipe")));
        let ended = try_blocking(bound, || {
            let ended = child.try_wait().expect("the state of a child process");
            ended.map(Ok).or_else(|| stop().then_some(Err("it was to be interrupted")))
        });
        let ended = ended.unwrap_or(Err("it took too long"));
        if ended.is_err() {
            end_group(&mut child);
        }
        let mut stderr = stderr.join().expect("the error output");
        if let Err(why) = ended {
            stderr = format!("{stderr}\n(killed: {why})");
        }
        let success = ended.is_ok_and(|status| status.success());
        Said { success, stdout: stdout.join().expect("the output"), stderr }
    })
}

fn all_of(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Its children are killed too, because they would keep the pipes open.
fn end_group(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process_group(group, Signal::KILL).ok();
    }
    child.wait().ok();
}

/// `kubectl` for the cluster that `KUBECONFIG` names.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
}

impl Kubectl {
    /// The `kubectl` that `make tools` installs. Returns `None` without `KUBECONFIG`, so that the
    /// tests never use a developer's default cluster.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        std::env::var_os("KUBECONFIG")
            .filter(|path| !path.is_empty())
            .map(|_| Self { program: tools::find_kubernetes("kubectl") })
    }

    /// The folder of the program.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.program.parent().unwrap_or(Path::new("/"))
    }

    /// Runs `kubectl` with an input, and returns its result and output.
    #[must_use]
    pub fn say(&self, args: &[&str], input: &str) -> Said {
        self.say_within(BOUND, args, input)
    }

    /// [`Kubectl::say`] with another timeout.
    #[must_use]
    pub fn say_within(&self, bound: Duration, args: &[&str], input: &str) -> Said {
        finish(command(&self.program, args), input, bound)
    }

    /// Runs `kubectl` and returns its standard output.
    ///
    /// # Errors
    /// The complete output, if it failed.
    pub fn try_run(&self, args: &[&str]) -> Result<String, String> {
        self.say(args, "").into_result()
    }

    /// Runs `kubectl` and returns its standard output; panics if it fails.
    #[track_caller]
    #[allow(
        clippy::must_use_candidate,
        reason = "what is done often says more than what is printed"
    )]
    pub fn run(&self, args: &[&str]) -> String {
        self.try_run(args)
            .unwrap_or_else(|error| panic!("kubectl {} failed: {error}", args.join(" ")))
    }

    /// An object or a list, as `get` shows it.
    ///
    /// # Errors
    /// The complete output, if it failed.
    pub fn try_get(&self, args: &[&str]) -> Result<Value, String> {
        let text = self.try_run(&[&["get", "--output=json"], args].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("not JSON ({error}): {text}"))
    }

    /// An object or a list, as `get` shows it; panics if it does not exist.
    #[must_use]
    #[track_caller]
    pub fn get(&self, args: &[&str]) -> Value {
        self.try_get(args)
            .unwrap_or_else(|error| panic!("kubectl get {} failed: {error}", args.join(" ")))
    }

    /// The answer to `GET path` of the API server.
    ///
    /// # Errors
    /// The complete output, if it failed.
    pub fn try_raw(&self, path: &str) -> Result<String, String> {
        self.try_run(&["get", "--raw", path])
    }

    /// Applies a manifest; panics if it is refused.
    #[track_caller]
    pub fn apply(&self, manifest: &Value) {
        let said = self.say(&["apply", "--filename=-"], &manifest.to_string());
        assert!(said.success, "kubectl apply failed: {said}");
    }

    /// Creates an object, and returns the result.
    #[must_use]
    pub fn create(&self, manifest: &Value) -> Said {
        self.say(&["create", "--filename=-"], &manifest.to_string())
    }

    /// Creates an object as a dry run of the API server, admission included.
    #[must_use]
    pub fn create_dry(&self, manifest: &Value) -> Said {
        self.say(&["create", "--dry-run=server", "--filename=-"], &manifest.to_string())
    }

    /// Runs `kubectl wait`, for example with `--for=condition=Ready`; panics after the timeout.
    #[track_caller]
    pub fn wait(&self, bound: Duration, args: &[&str]) {
        let timeout = format!("--timeout={}s", bound.as_secs());
        let said =
            self.say_within(bound + GRACE, &[&["wait", timeout.as_str()], args].concat(), "");
        assert!(said.success, "waited {bound:?} for {}: {said}", args.join(" "));
    }

    /// Waits for a Deployment or `StatefulSet` to be rolled out; panics after the timeout.
    #[track_caller]
    pub fn wait_for_rollout(&self, bound: Duration, namespace: &str, what: &str) {
        let timeout = format!("--timeout={}s", bound.as_secs());
        let said = self.say_within(
            bound + GRACE,
            &["rollout", "status", "--namespace", namespace, what, timeout.as_str()],
            "",
        );
        assert!(said.success, "waited {bound:?} for the rollout of {what} in {namespace}: {said}");
    }
}

/// Runs `helm` on the cluster of `KUBECONFIG`, and returns its result and output.
#[must_use]
pub fn helm(bound: Duration, args: &[&str]) -> Said {
    finish(command(tools::find("helm"), args), "", bound)
}

/// [`helm`], but kills it as soon as `stop` returns `true`.
#[must_use]
pub fn helm_unless(bound: Duration, args: &[&str], stop: impl FnMut() -> bool) -> Said {
    finish_unless(command(tools::find("helm"), args), "", bound, stop)
}

fn command(program: impl AsRef<OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}
