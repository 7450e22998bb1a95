//! Starts Sentinels for a master and its replicas.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use redis::{Client, RedisError};
use tempfile::TempDir;

use super::RedisServer;
use crate::process::{Launch, Process};
use crate::wait::eventually;
use crate::{ports, scratch, tools};

const START: Duration = Duration::from_secs(30);
/// Name of the master.
const NAME: &str = "main";

/// Sentinels on loopback ports that monitor one master.
#[derive(Debug)]
pub struct RedisSentinels {
    sentinels: Vec<(Arc<Process>, u16)>,
    login: String,
    // Dropped after the processes, which write to the folders.
    _folders: Vec<TempDir>,
}

impl RedisSentinels {
    /// Starts `count` Sentinels, and returns when they agree that they could fail over.
    /// `down_after` is how long the master may be silent.
    pub async fn start(master: &RedisServer, count: usize, down_after: Duration) -> Self {
        let (mut sentinels, mut folders) = (Vec::new(), Vec::new());
        let password = master.options.password.clone();
        for _ in 0..count {
            let (folder, port) = (scratch::folder("sentinel"), ports::free_port());
            let file = folder.path().join("sentinel.conf");
            let mut lines = vec![
                format!("port {port}"),
                "bind 127.0.0.1".to_owned(),
                format!("dir {}", folder.path().display()),
                format!("sentinel monitor {NAME} 127.0.0.1 {} {}", master.port(), count / 2 + 1),
                format!("sentinel down-after-milliseconds {NAME} {}", down_after.as_millis()),
                format!("sentinel failover-timeout {NAME} 3000"),
            ];
            lines.extend(
                password.as_ref().map(|password| format!("sentinel auth-pass {NAME} {password}")),
            );
            fs::write(&file, lines.join("\n") + "\n").expect("the configuration of a Sentinel");
            let process = Launch::new(tools::find("redis-server"))
                .named("redis-sentinel")
                .arg(file)
                .arg("--sentinel")
                .start();
            sentinels.push((Arc::new(process), port));
            folders.push(folder);
        }
        let login = password.map(|password| format!(":{password}@")).unwrap_or_default();
        let sentinels = Self { sentinels, login, _folders: folders };
        for (process, port) in &sentinels.sentinels {
            eventually(START, "the Sentinels to agree", async || {
                process.assert_running();
                ask::<String>(*port, &["SENTINEL", "CKQUORUM", NAME]).await
            })
            .await;
        }
        sentinels
    }

    /// `redis+sentinel://…`, with the login of the master.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.sentinels.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}{}/{NAME}", self.login, hosts.join(","))
    }

    /// The port of the master, as reported by most of the Sentinels.
    pub async fn master(&self) -> u16 {
        let mut named = Vec::new();
        for (_, port) in &self.sentinels {
            let answer =
                ask::<(String, u16)>(*port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).await;
            named.extend(answer.map(|(_, port)| port));
        }
        let votes = |port: u16| named.iter().filter(|named| **named == port).count();
        named.iter().copied().max_by_key(|port| votes(*port)).expect("a Sentinel that answers")
    }

    /// Waits until the Sentinels know a replica that can be promoted.
    pub async fn wait_for_a_replica(&self) {
        for (_, port) in &self.sentinels {
            eventually(START, "the Sentinels to know the replica", async || {
                let replicas: Vec<Vec<String>> = ask(*port, &["SENTINEL", "REPLICAS", NAME])
                    .await
                    .map_err(|error| error.to_string())?;
                if replicas.is_empty() { Err("none yet".to_owned()) } else { Ok(()) }
            })
            .await;
        }
    }

    /// The processes.
    pub fn processes(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.sentinels.iter().map(|(process, _)| process)
    }
}

async fn ask<T: redis::FromRedisValue>(port: u16, words: &[&str]) -> Result<T, RedisError> {
    let client = Client::open(format!("redis://127.0.0.1:{port}"))?;
    let mut connection = super::connect(&client).await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut connection).await
}
