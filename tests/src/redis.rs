//! Starts a real Redis server, which a test can flush, stop, kill, pause and restart, and whose
//! wall clock it can move. [`cluster`] and [`sentinel`] combine several servers.

pub mod cluster;
pub mod sentinel;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisError, TlsCertificates};
use tempfile::TempDir;

use crate::certificates::{Authority, Leaf};
use crate::process::{Launch, Process, run as run_program};
use crate::wait::eventually;
use crate::{ports, scratch, tools};

const START: Duration = Duration::from_secs(20);
/// Timeout for an answer. It is long for Redis, because a machine that compiles at the same time is
/// slow.
const RESPONSE: Duration = Duration::from_secs(10);

/// Content of the clock file while the clock shows the real time.
const REAL_TIME: &str = "+0";

/// When Redis flushes its append-only file to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendFsync {
    /// Before it answers.
    Always,
    /// Once a second, so up to a second of writes can be lost.
    EverySec,
}

/// Options for a server that is about to start.
#[derive(Debug, Default)]
pub struct RedisBuilder {
    append_only: Option<AppendFsync>,
    password: Option<String>,
    /// Content of the clock file at the start, for a server with a movable clock.
    clock: Option<String>,
    tls: Option<Tls>,
    port: Option<u16>,
    files: Vec<(&'static str, String)>,
    args: Vec<String>,
    /// Time that a flush to the disk takes.
    flush: Option<Duration>,
}

/// A certificate that is served, and the authority that clients check it against.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate with its key.
    pub leaf: Leaf,
    /// The authority, in PEM.
    pub authority: String,
}

impl Tls {
    /// A certificate for 127.0.0.1 by its own authority.
    #[must_use]
    pub fn new() -> Self {
        Self::of(&Authority::new("an authority of a test's own"))
    }

    /// A certificate for 127.0.0.1 by this authority.
    #[must_use]
    pub fn of(authority: &Authority) -> Self {
        Self { leaf: authority.peer(&["127.0.0.1", "localhost"]), authority: authority.pem() }
    }

    /// The options of `redis-server`, whose files are put into `folder`.
    fn args(&self, folder: &Path, port: u16) -> Vec<String> {
        let file = |name: &str, content: &str| {
            let path = folder.join(name);
            fs::write(&path, content).expect("to write a certificate for Redis");
            path.display().to_string()
        };
        let files = [
            ("--tls-cert-file", file("tls.crt", &self.leaf.certificate)),
            ("--tls-key-file", file("tls.key", &self.leaf.key)),
            ("--tls-ca-cert-file", file("ca.crt", &self.authority)),
        ];
        let mut args: Vec<String> =
            ["--port", "0", "--tls-auth-clients", "no", "--tls-port"].map(str::to_owned).into();
        args.push(port.to_string());
        args.extend(files.into_iter().flat_map(|(option, path)| [option.to_owned(), path]));
        args
    }

    /// A client that trusts the authority.
    fn client(&self, url: &str) -> Result<Client, RedisError> {
        let root_cert = Some(self.authority.clone().into_bytes());
        Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert })
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self::new()
    }
}

impl RedisBuilder {
    /// Keeps writes in an append-only file, so that they survive a restart.
    #[must_use]
    pub fn append_only(mut self, fsync: AppendFsync) -> Self {
        self.append_only = Some(fsync);
        self
    }

    /// The password of the default user, letters and digits only, because it is not escaped in the
    /// URL.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Additional arguments of `redis-server`, such as `["--maxmemory", "1mb"]`.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// Makes each flush to the disk take this long, as on a slow disk.
    #[must_use]
    pub fn slow_flushes(mut self, flush: Duration) -> Self {
        self.flush = Some(flush);
        self
    }

    /// Makes [`RedisServer::clock`] usable. The clock runs like the real one until it is set.
    #[must_use]
    pub fn with_movable_clock(mut self) -> Self {
        self.clock = Some(REAL_TIME.to_owned());
        self
    }

    /// As [`RedisBuilder::with_movable_clock`], for a clock that stands at a moment from the start.
    #[must_use]
    pub fn with_clock_at(mut self, millis: u64) -> Self {
        self.clock = Some(RedisClock::standing_at(millis));
        self
    }

    /// Listens on this port instead of any free one.
    #[must_use]
    fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// A file that the server finds in its folder when it starts.
    #[must_use]
    fn file(mut self, name: &'static str, content: String) -> Self {
        self.files.push((name, content));
        self
    }

    /// Speaks TLS and nothing else.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Starts the server, and returns when it answers.
    pub async fn start(self) -> RedisServer {
        let folder = scratch::folder("redis");
        for (name, content) in &self.files {
            fs::write(folder.path().join(name), content).expect("to write a file for Redis");
        }
        let port = self.port.unwrap_or_else(ports::free_port);
        let clock = self.clock.as_ref().map(|time| RedisClock::in_folder(folder.path(), time));
        let process = Mutex::new(Arc::new(launch(&self, port, &folder, clock.as_ref()).start()));
        let server = RedisServer { process, port, clock, options: self, folder };
        server.wait_until_ready().await;
        server
    }
}

fn launch(
    options: &RedisBuilder,
    port: u16,
    folder: &TempDir,
    clock: Option<&RedisClock>,
) -> Launch {
    let program = tools::find("redis-server");
    let launch = match clock {
        None => Launch::new(program),
        Some(clock) => clock.launch(&program),
    };
    let append_only = match options.append_only {
        None => ["--appendonly", "no", "--appendfsync", "everysec"],
        Some(AppendFsync::Always) => ["--appendonly", "yes", "--appendfsync", "always"],
        Some(AppendFsync::EverySec) => ["--appendonly", "yes", "--appendfsync", "everysec"],
    };
    let ports = match &options.tls {
        None => vec!["--port".to_owned(), port.to_string()],
        Some(tls) => tls.args(folder.path(), port),
    };
    let mut launch = launch
        .args(["--bind", "127.0.0.1", "--save", ""])
        .args(ports)
        .args(append_only)
        .arg("--dir")
        .arg(folder.path());
    if let Some(flush) = options.flush {
        launch = launch.env("LD_PRELOAD", slow_flushes(folder.path(), flush));
    }
    if let Some(password) = &options.password {
        launch = launch.args(["--requirepass", password]);
    }
    launch.args(&options.args)
}

/// Builds a library in whose presence each flush to the disk takes this long.
fn slow_flushes(folder: &Path, flush: Duration) -> PathBuf {
    let (source, library) = (folder.join("flush.c"), folder.join("flush.so"));
    let pause = flush.as_micros();
    let code = format!(
        "#include <unistd.h>\nint fdatasync(int file) {{ usleep({pause}); return 0; }}\n\
         int fsync(int file) {{ usleep({pause}); return 0; }}\n"
    );
    fs::write(&source, code).expect("to write the source of a library");
    let [source, output] = [&source, &library].map(|path| path.display().to_string());
    let _ = run_program("cc", &["-shared", "-fPIC", "-O1", "-o", &output, &source]);
    library
}

/// A Redis server on a loopback port.
#[derive(Debug)]
pub struct RedisServer {
    // Before the folder: fields are dropped in order, and the server writes there until it ends.
    process: Mutex<Arc<Process>>,
    port: u16,
    clock: Option<RedisClock>,
    options: RedisBuilder,
    folder: TempDir,
}

impl RedisServer {
    /// A server without persistence and without a password.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with options.
    #[must_use]
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// `redis://…`, with the password.
    #[must_use]
    pub fn url(&self) -> String {
        let login = self
            .options
            .password
            .as_ref()
            .map(|password| format!(":{password}@"))
            .unwrap_or_default();
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://{login}127.0.0.1:{}/0", self.port)
    }

    /// A client for the server, with or without TLS.
    fn client(&self) -> Result<Client, RedisError> {
        match &self.options.tls {
            Some(tls) => tls.client(&self.url()),
            None => Client::open(self.url()),
        }
    }

    /// The port, which stays the same after a restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The current process.
    #[must_use]
    pub fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new connection.
    pub async fn connect(&self) -> MultiplexedConnection {
        self.try_connect().await.unwrap_or_else(|error| panic!("cannot connect to Redis: {error}"))
    }

    async fn try_connect(&self) -> Result<MultiplexedConnection, RedisError> {
        connect(&self.client()?).await
    }

    /// The answer to a command.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_ask(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The answer to a command of a server whose connections may be closed at any moment.
    ///
    /// # Errors
    /// If Redis does not answer, or answers with an error.
    pub async fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> Result<T, RedisError> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.try_connect().await?).await
    }

    /// How often each command was called since the server started, in scripts too.
    pub async fn commands(&self) -> HashMap<String, u64> {
        let statistics: String = self.ask(&["INFO", "commandstats"]).await;
        let line = |line: &str| {
            let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), numbers.split(',').next()?.parse().ok()?))
        };
        statistics.lines().filter_map(line).collect()
    }

    /// Waits until this replica has everything that its master has written until now. A link that
    /// is up is not enough: the last writes may still be on their way.
    pub async fn wait_in_sync(&self, master: &Self) {
        let number = |state: &str, name: &str| -> Option<u64> {
            state.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        let state: String = master.ask(&["INFO", "replication"]).await;
        let written = number(&state, "master_repl_offset:").expect("an offset");
        eventually(START, "the replica to have what its master has", async || {
            // Sentinels close the connections of a server that becomes a replica.
            let state: String =
                self.try_ask(&["INFO", "replication"]).await.map_err(|error| error.to_string())?;
            let applied = number(&state, "slave_repl_offset:");
            let up = state.contains("role:slave") && state.contains("master_link_status:up");
            if up && applied >= Some(written) { Ok(()) } else { Err(format!("{written}: {state}")) }
        })
        .await;
    }

    /// Opens another port, with TLS, beside that of a server without. Returns it, and the authority
    /// in PEM.
    pub async fn open_tls_port(&self) -> (u16, String) {
        let (tls, port) = (Tls::new(), ports::free_port());
        let args = tls.args(self.folder.path(), port);
        // Without the one that closes the other port.
        let settings = args.iter().skip(2).map(|word| word.trim_start_matches("--"));
        let command: Vec<&str> = ["CONFIG", "SET"].into_iter().chain(settings).collect();
        let () = self.ask(&command).await;
        (port, tls.authority)
    }

    /// Removes all keys with `FLUSHALL`.
    pub async fn flush_all(&self) {
        let mut connection = self.connect().await;
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("FLUSHALL");
    }

    /// Kills the server, as a power cut would.
    pub fn kill(&self) -> ExitStatus {
        let status = self.process().kill();
        self.forget_shared_memory();
        status
    }

    /// Stops the server with SIGTERM.
    pub fn stop(&self) -> ExitStatus {
        let status = self.process().stop();
        self.forget_shared_memory();
        status
    }

    /// Copies the append-only files as they are, for
    /// [`RedisServer::put_append_only_files_back`].
    pub fn keep_append_only_files(&self) {
        copy_files(&self.folder.path().join("appendonlydir"), &self.folder.path().join("kept"));
    }

    /// Replaces the append-only files of a server that is down with those that were kept, as if the
    /// later writes had been lost.
    pub fn put_append_only_files_back(&self) {
        copy_files(&self.folder.path().join("kept"), &self.folder.path().join("appendonlydir"));
    }

    /// Starts the server again with the same port, folder and clock, and stops it first if it still
    /// runs.
    pub async fn restart(&self) {
        self.stop();
        let process =
            Arc::new(launch(&self.options, self.port, &self.folder, self.clock.as_ref()).start());
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        self.wait_until_ready().await;
    }

    /// Pauses the server: connections stay open and no request is answered.
    pub async fn pause(&self) {
        self.process().pause().await;
    }

    /// Resumes a paused server.
    pub fn resume(&self) {
        self.process().resume();
    }

    /// Control of the server's wall clock. Panics unless it was started with
    /// [`RedisBuilder::with_movable_clock`].
    #[must_use]
    pub fn clock(&self) -> ClockHand<'_> {
        let clock =
            self.clock.as_ref().expect("a Redis server started with `with_movable_clock()`");
        ClockHand { server: self, clock }
    }

    async fn wait_until_ready(&self) {
        let process = self.process();
        eventually(START, "Redis to answer", async || {
            process.assert_running();
            let mut connection = self.try_connect().await?;
            redis::cmd("PING").exec_async(&mut connection).await
        })
        .await;
    }

    fn forget_shared_memory(&self) {
        if self.clock.is_some() {
            RedisClock::forget_shared_memory(self.process().id());
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // With an ordinary server, the process' own drop is enough.
        if self.clock.is_some() {
            if !std::thread::panicking() {
                self.stop();
            }
            self.forget_shared_memory();
        }
    }
}

fn copy_files(from: &Path, to: &Path) {
    fs::remove_dir_all(to).ok();
    fs::create_dir(to).expect("to create a folder");
    for file in fs::read_dir(from).expect("the files of Redis").flatten() {
        fs::copy(file.path(), to.join(file.file_name())).expect("to copy a file of Redis");
    }
}

async fn connect(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(RESPONSE))
        .set_response_timeout(Some(RESPONSE));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// The file from which libfaketime reads the time each time that Redis reads the clock.
#[derive(Debug)]
struct RedisClock {
    file: PathBuf,
}

impl RedisClock {
    fn in_folder(folder: &Path, time: &str) -> Self {
        let clock = Self { file: folder.join("clock") };
        clock.write(time);
        clock
    }

    /// The content of the file for a clock that stands.
    fn standing_at(millis: u64) -> String {
        // libfaketime reads the fraction as a double and truncates it, so half a microsecond more
        // makes it the right millisecond.
        format!("{}.{:03}0005", millis / 1000, millis % 1000)
    }

    fn launch(&self, redis: &Path) -> Launch {
        // Preloads the C library for its malloc. Otherwise libfaketime, which allocates at its
        // first call, and jemalloc, which reads the clock while it initializes, wait for each other
        // forever.
        let preload = format!("{}:libc.so.6", tools::libfaketime().display());
        Launch::new("/usr/bin/env")
            .named("redis-server")
            .arg(format!("LD_PRELOAD={preload}"))
            .arg(redis)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            // Redis' timers and event loop keep running while the wall clock stands.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            // Seconds since the epoch, which do not depend on a time zone.
            .env("FAKETIME_FMT", "%s")
            .env("TZ", "UTC")
    }

    /// Renames a new file, so that libfaketime never reads an incomplete time.
    fn write(&self, time: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, time)
            .and_then(|()| fs::rename(&new, &self.file))
            .expect("to write the time for Redis");
    }

    /// Removes the shared memory that libfaketime leaves behind if its process is killed.
    fn forget_shared_memory(pid: i32) {
        for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
            fs::remove_file(Path::new("/dev/shm").join(name)).ok();
        }
    }
}

/// Moves a Redis server's wall clock.
///
/// A clock that was set stands still until it is moved or released. Redis' timeouts by the wall
/// clock stop with it: BLPOP and WAIT do not time out, replication and Sentinel notice no silence,
/// and `everysec` flushes nothing to disk.
#[derive(Clone, Copy, Debug)]
pub struct ClockHand<'a> {
    server: &'a RedisServer,
    clock: &'a RedisClock,
}

impl ClockHand<'_> {
    /// Stops the clock at a moment, in milliseconds since the epoch, and returns when Redis shows
    /// it. If the server is down, the clock stands there at the next start.
    pub async fn set_unix_millis(self, millis: u64) {
        self.clock.write(&RedisClock::standing_at(millis));
        self.wait_until_shown(|shown| shown == millis, millis).await;
    }

    /// Moves the clock forward from the time that it shows, and stops it there.
    pub async fn advance(self, by: Duration) {
        let by = u64::try_from(by.as_millis()).expect("a reasonable step");
        self.set_unix_millis(self.unix_millis().await + by).await;
    }

    /// Returns the clock to the real time.
    pub async fn release(self) {
        let before = self.clock_file();
        self.clock.write(REAL_TIME);
        self.wait_until_shown(|shown| before != Some(shown), "the real time").await;
    }

    /// The time that Redis shows.
    pub async fn unix_millis(self) -> u64 {
        time_of(&mut self.server.connect().await).await.expect("TIME")
    }

    async fn wait_until_shown(self, is_right: impl Fn(u64) -> bool, what: impl std::fmt::Display) {
        if self.server.process().try_exit().is_some() {
            return;
        }
        let mut connection = self.server.connect().await;
        eventually(RESPONSE, format_args!("Redis to show {what} as its time"), async || {
            let shown = time_of(&mut connection).await.map_err(|error| error.to_string())?;
            if is_right(shown) { Ok(()) } else { Err(format!("it shows {shown}")) }
        })
        .await;
    }

    fn clock_file(self) -> Option<u64> {
        let written = fs::read_to_string(&self.clock.file).ok()?;
        let (seconds, fraction) = written.split_once('.')?;
        Some(seconds.parse::<u64>().ok()? * 1000 + fraction.get(..3)?.parse::<u64>().ok()?)
    }
}

async fn time_of(connection: &mut MultiplexedConnection) -> Result<u64, RedisError> {
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
    Ok(seconds * 1000 + micros / 1000)
}
