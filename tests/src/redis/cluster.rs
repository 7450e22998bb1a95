//! A Redis Cluster. Enters: how many masters, whether each has a replica, and where the clock is to
//! stand. Leaves: its URL and its nodes.

use std::time::Duration;

use super::{RedisBuilder, RedisServer, Tls};
use crate::ports;
use crate::wait::eventually;

const START: Duration = Duration::from_secs(30);
const SLOTS: usize = 16384;
/// How long a node may be silent before the others take it for gone, where they are to do so.
const SILENCE: &str = "1000";
/// With a clock that is moved, nobody is ever silent for too long.
const NEVER: &str = "1000000000000";

/// Options for a cluster that is about to start.
#[derive(Debug, Default)]
pub struct ClusterBuilder {
    replicas: bool,
    clock: Option<u64>,
    tls: Option<Tls>,
    args: Vec<String>,
}

/// A cluster of three masters on loopback ports.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters, in the order of their slots.
    pub masters: Vec<RedisServer>,
    /// A replica for each master, in their order, or none.
    pub replicas: Vec<RedisServer>,
    tls: bool,
}

impl ClusterBuilder {
    /// Each master gets a replica, which takes its place when it is gone.
    #[must_use]
    pub fn with_replicas(mut self) -> Self {
        self.replicas = true;
        self
    }

    /// The clocks of all nodes stand at this moment, in milliseconds since the epoch.
    #[must_use]
    pub fn with_clock_at(mut self, millis: u64) -> Self {
        self.clock = Some(millis);
        self
    }

    /// Nodes speak TLS to clients and to each other, and nothing else.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// More arguments of `redis-server`.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// Starts the nodes, and returns when they are a cluster.
    pub async fn start(self) -> RedisCluster {
        let mut masters = Vec::new();
        let mut replicas = Vec::new();
        for _ in 0..3 {
            masters.push(self.node().await);
            if self.replicas {
                replicas.push(self.node().await);
            }
        }
        let cluster = RedisCluster { masters, replicas, tls: self.tls.is_some() };
        cluster.introduce().await;
        if let Some(millis) = self.clock {
            cluster.set_unix_millis(millis).await;
        }
        cluster.wait_until_complete().await;
        cluster
    }

    async fn node(&self) -> RedisServer {
        let bus = ports::free_port().to_string();
        let silence = if self.clock.is_some() { NEVER } else { SILENCE };
        let mut options = RedisBuilder::default().args([
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--cluster-node-timeout",
            silence,
            // A replica that was cut off takes its master's place all the same: what was lost is
            // ours to notice.
            "--cluster-replica-validity-factor",
            "0",
        ]);
        options = options.args(self.args.iter().map(String::as_str));
        if self.clock.is_some() {
            options = options.with_movable_clock();
        }
        if let Some(tls) = &self.tls {
            options = options.tls(tls.clone()).args(["--tls-cluster", "yes"]);
        }
        options.start().await
    }
}

impl RedisCluster {
    /// Three masters without replicas, with the real time.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A cluster with options.
    #[must_use]
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// `redis+cluster://…`, with two of the masters.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let ports: Vec<u16> = self.masters.iter().map(RedisServer::port).collect();
        format!("{scheme}+cluster://127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1])
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &RedisServer> {
        self.masters.iter().chain(&self.replicas)
    }

    /// Moves the clocks of all nodes.
    pub async fn set_unix_millis(&self, millis: u64) {
        for node in self.nodes() {
            node.clock().set_unix_millis(millis).await;
        }
    }

    /// Removes everything from all masters.
    pub async fn flush_all(&self) {
        for master in &self.masters {
            master.flush_all().await;
        }
    }

    async fn introduce(&self) {
        let first = &self.masters[0];
        let bus_of = async |node: &RedisServer| -> String {
            let configured: Vec<String> = node.ask(&["CONFIG", "GET", "cluster-port"]).await;
            configured[1].clone()
        };
        let (port, bus) = (first.port().to_string(), bus_of(first).await);
        for (number, master) in self.masters.iter().enumerate() {
            let share = SLOTS.div_ceil(self.masters.len());
            let (from, to) = (number * share, ((number + 1) * share).min(SLOTS) - 1);
            let _: () =
                master.ask(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await;
        }
        for (number, node) in self.nodes().enumerate() {
            let _: () = node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
            if number > 0 {
                let _: () = node.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
            }
        }
        for (master, replica) in self.masters.iter().zip(&self.replicas) {
            let id: String = master.ask(&["CLUSTER", "MYID"]).await;
            eventually(START, "the replica to know its master", async || {
                let mut command = redis::cmd("CLUSTER");
                command.arg("REPLICATE").arg(&id);
                command.exec_async(&mut replica.connect().await).await
            })
            .await;
        }
    }

    /// Waits until every node knows of every other, and takes the cluster for complete.
    pub async fn wait_until_complete(&self) {
        let count = self.nodes().count();
        for node in self.nodes() {
            eventually(START, "the cluster to be complete", async || {
                let state: String = node.ask(&["CLUSTER", "INFO"]).await;
                let has = |line: String| state.lines().any(|known| known == line);
                let nodes: String = node.ask(&["CLUSTER", "NODES"]).await;
                let replicas = nodes.lines().filter(|line| line.contains("slave ")).count();
                if has("cluster_state:ok".to_owned())
                    && has(format!("cluster_known_nodes:{count}"))
                    && replicas == self.replicas.len()
                {
                    Ok(())
                } else {
                    Err(state)
                }
            })
            .await;
        }
        for replica in &self.replicas {
            eventually(START, "the replica to follow its master", async || {
                let state: String = replica.ask(&["INFO", "replication"]).await;
                if state.contains("master_link_status:up") { Ok(()) } else { Err(state) }
            })
            .await;
        }
    }
}
