//! Starts a child process, reads its output and sends it signals. The child is stopped and reaped
//! on drop, and killed if the test process dies without dropping it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tempfile::TempDir;

use crate::wait::{eventually, eventually_blocking, try_blocking};
use crate::{scratch, tools};

const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of lines of a child's output that a failing test shows.
const LINES_SHOWN: usize = 40;

/// The signals that tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Asks to end.
    Term,
    /// Ends at once.
    Kill,
    /// Pauses the process.
    Stop,
    /// Resumes a paused process.
    Cont,
}

impl From<Signal> for rustix::process::Signal {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Term => Self::TERM,
            Signal::Kill => Self::KILL,
            Signal::Stop => Self::STOP,
            Signal::Cont => Self::CONT,
        }
    }
}

/// Describes what to start and how to stop it.
#[derive(Debug)]
pub struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    isolated: bool,
    patience: Duration,
}

impl Launch {
    /// A program, named after the last part of its path.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let name =
            program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        Self {
            name,
            program,
            args: Vec::new(),
            env: Vec::new(),
            isolated: false,
            patience: PATIENCE,
        }
    }

    /// Sets the name in messages, if that of the program says too little.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Hides the developer's settings: only indispensable variables of the environment are kept,
    /// and home and working directory are an empty folder without a `.env`.
    #[must_use]
    pub fn isolated(mut self) -> Self {
        self.isolated = true;
        self
    }

    /// Timeout for a requested exit, after which the process is killed. Zero kills it at once.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts the process.
    #[must_use]
    pub fn start(self) -> Process {
        let folder = scratch::folder(&self.name);
        let to = |file: &str| {
            Stdio::from(File::create(folder.path().join(file)).expect("a file for the output"))
        };
        let mut command = self.command(folder.path());
        command.stdin(Stdio::null()).stdout(to(STDOUT)).stderr(to(STDERR));
        let child = spawn(command)
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display()));
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        Process { name: self.name, pid, child: Mutex::new(child), folder, patience: self.patience }
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = match tools::setpriv() {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        if self.isolated {
            let home = folder.join("home");
            fs::create_dir(&home).expect("a home for the process");
            command.env_clear().env("HOME", &home).current_dir(&home);
            for name in ["PATH", "TMPDIR", "LANG"] {
                if let Some(value) = std::env::var_os(name) {
                    command.env(name, value);
                }
            }
        }
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";

/// A running child process, or one that has ended.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    folder: TempDir,
    patience: Duration,
}

impl Process {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.read(STDOUT)
    }

    /// Its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.read(STDERR)
    }

    /// Its output so far: standard output, then standard error.
    #[must_use]
    pub fn output(&self) -> String {
        self.stdout() + &self.stderr()
    }

    /// Waits for a complete line that contains `pattern` on either output, and returns it. Panics
    /// at once if the process exits without such a line.
    pub async fn wait_for_line(&self, pattern: &str, bound: Duration) -> String {
        eventually(bound, format_args!("a line with {pattern:?} from {}", self.name), async || {
            // Checked first, so that the last lines of a process that has just exited are still
            // read.
            let ended = self.try_exit();
            let output = self.output();
            let line = output
                .split_inclusive('\n')
                .find(|line| line.ends_with('\n') && line.contains(pattern));
            if line.is_none() {
                self.assert_not_ended(ended);
            }
            line.map(|line| line.trim_end().to_owned())
        })
        .await
    }

    /// Sends a signal, unless the process has exited.
    pub fn signal(&self, signal: Signal) {
        // The lock keeps other threads from reaping the child, so the process id cannot belong to
        // another process.
        let mut child = self.child();
        if exit_of(&mut child).is_none() {
            kill_process(self.pid, signal.into()).unwrap_or_else(|error| {
                panic!("cannot signal {} with {signal:?}: {error}", self.name)
            });
        }
    }

    /// Pauses the process, and returns when it is stopped.
    pub async fn pause(&self) {
        self.signal(Signal::Stop);
        let stat = format!("/proc/{}/stat", self.id());
        eventually(PATIENCE, format_args!("{} to stand still", self.name), async || {
            // The state cannot be read without /proc.
            fs::read_to_string(&stat).map_or(true, |stat| {
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
            })
        })
        .await;
    }

    /// Resumes a paused process.
    pub fn resume(&self) {
        self.signal(Signal::Cont);
    }

    /// Kills the process and reaps it.
    pub fn kill(&self) -> ExitStatus {
        self.signal(Signal::Kill);
        eventually_blocking(PATIENCE, format_args!("{} to be killed", self.name), || {
            self.try_exit()
        })
    }

    /// Asks the process to exit, kills it after its timeout, and reaps it.
    pub fn stop(&self) -> ExitStatus {
        if !self.patience.is_zero() {
            self.signal(Signal::Term);
            // A paused process would not react.
            self.signal(Signal::Cont);
            if let Ok(status) = try_blocking(self.patience, || self.try_exit()) {
                return status;
            }
        }
        self.kill()
    }

    /// Waits until it exits.
    pub async fn wait_exit(&self, bound: Duration) -> ExitStatus {
        eventually(bound, format_args!("{} to end", self.name), async || self.try_exit()).await
    }

    /// Its exit status, if it has exited.
    #[must_use]
    pub fn try_exit(&self) -> Option<ExitStatus> {
        exit_of(&mut self.child())
    }

    /// Panics with the last lines of output if the process has exited. Call it while waiting for
    /// something that only the running process can cause.
    pub fn assert_running(&self) {
        self.assert_not_ended(self.try_exit());
    }

    fn assert_not_ended(&self, ended: Option<ExitStatus>) {
        if let Some(status) = ended {
            panic!("{} ended ({status})", self.name);
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, file: &str) -> String {
        let bytes = fs::read(self.folder.path().join(file)).expect("the output that was captured");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<_> = output.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            eprintln!("--- the last of {}:\n{}\n---", self.name, shown.join("\n"));
            // A panic during a panic would hide the first one.
            self.child().kill().ok();
            self.child().wait().ok();
        } else {
            self.stop();
        }
    }
}

fn exit_of(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().expect("the state of a child process")
}

type Request = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a child from a thread that lives as long as the process. The kernel regards the starting
/// thread as the parent, and the end of a test's thread would kill a shared server.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in requests {
                    reply.send(command.spawn()).ok();
                }
            })
            .expect("a thread");
        sender
    });
    let (reply, answer) = mpsc::channel();
    SPAWNER.send((command, reply)).expect("the thread that starts processes");
    answer.recv().expect("an answer of the thread that starts processes")
}

/// Runs a program to its end and returns its standard output; panics if it fails.
#[must_use]
#[track_caller]
pub fn run(program: impl AsRef<OsStr>, args: &[&str]) -> String {
    let program = program.as_ref();
    try_run(program, args)
        .unwrap_or_else(|error| panic!("{} {args:?} failed: {error}", program.display()))
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// The exit status and the output, if the program failed.
pub fn try_run(program: impl AsRef<OsStr>, args: &[&str]) -> Result<String, String> {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("({}): {}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}
