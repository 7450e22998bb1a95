//! Starts a Redis Cluster of three masters, optionally with replicas, TLS and a movable clock.

use std::time::Duration;

use super::{RedisBuilder, RedisServer, Tls};
use crate::ports;
use crate::wait::eventually;

const START: Duration = Duration::from_secs(30);
const MASTERS: usize = 3;
const SLOTS: usize = 16384;
/// Milliseconds without an answer after which the other nodes replace a master.
const SILENCE: &str = "1000";
/// The same for nodes whose clock the test moves: a jump of the clock must not look like silence.
const NEVER: &str = "1000000000000";
/// Milliseconds by which a movable clock jumps when the nodes have started. A node that starts
/// refuses requests for two seconds, and one that has joined the majority for up to five.
const SETTLING: u64 = 60_000;

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
    /// Gives each master a replica, which replaces it when it fails.
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

    /// Additional arguments of `redis-server`.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// Starts the nodes, and returns when they are a cluster.
    ///
    /// Each node starts with a `nodes.conf` that names all of them, because nodes that are
    /// introduced to each other by `CLUSTER MEET` take seconds to learn of one another.
    pub async fn start(self) -> RedisCluster {
        let count = if self.replicas { 2 * MASTERS } else { MASTERS };
        let seats: Vec<Seat> = (0..count).map(Seat::new).collect();
        let nodes = seats.iter().map(|seat| self.node(seat, configuration(&seats, seat)));
        let mut masters = futures_util::future::join_all(nodes).await;
        let replicas = masters.split_off(MASTERS);
        let cluster = RedisCluster { masters, replicas, tls: self.tls.is_some() };
        if let Some(millis) = self.clock {
            cluster.set_unix_millis(millis).await;
        }
        cluster.wait_until_complete().await;
        cluster
    }

    async fn node(&self, seat: &Seat, configuration: String) -> RedisServer {
        let bus = seat.bus.to_string();
        let silence = if self.clock.is_some() { NEVER } else { SILENCE };
        let mut options = RedisBuilder::default()
            .port(seat.port)
            .file("nodes.conf", configuration)
            .args(["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"])
            .args(["--cluster-port", &bus, "--cluster-node-timeout", silence])
            // A replica that was disconnected from its master may replace it, because the store
            // has to notice lost data itself.
            .args(["--cluster-replica-validity-factor", "0"])
            .args(self.args.iter().map(String::as_str));
        if let Some(millis) = self.clock {
            options = options.with_clock_at(millis - SETTLING);
        }
        if let Some(tls) = &self.tls {
            options = options.tls(tls.clone()).args(["--tls-cluster", "yes"]);
        }
        options.start().await
    }
}

/// The identity and the ports of a node.
#[derive(Debug)]
struct Seat {
    number: usize,
    id: String,
    port: u16,
    bus: u16,
}

impl Seat {
    fn new(number: usize) -> Self {
        let (port, bus) = (ports::free_port(), ports::free_port());
        Self { number, id: format!("{port:040x}"), port, bus }
    }
}

/// The `nodes.conf` of one of the nodes: the first three are masters with equal ranges of slots,
/// and those after them are their replicas, in the same order.
fn configuration(seats: &[Seat], own: &Seat) -> String {
    let lines = seats.iter().map(|seat| {
        let Seat { number, id, port, bus } = seat;
        let myself = if *number == own.number { "myself," } else { "" };
        let (role, master, slots) = if let Some(master) = number.checked_sub(MASTERS) {
            ("slave", seats[master].id.as_str(), String::new())
        } else {
            let share = SLOTS.div_ceil(MASTERS);
            let (from, to) = (number * share, ((number + 1) * share).min(SLOTS) - 1);
            ("master", "-", format!(" {from}-{to}"))
        };
        let epoch = number + 1;
        format!(
            "{id} 127.0.0.1:{port}@{bus} {myself}{role} {master} 0 0 {epoch} connected{slots}\n"
        )
    });
    let vars = format!("vars currentEpoch {} lastVoteEpoch 0\n", seats.len());
    lines.chain([vars]).collect()
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

    /// Waits until every node is connected to every other, and reports a complete cluster.
    async fn wait_until_complete(&self) {
        let count = self.nodes().count();
        for node in self.nodes() {
            eventually(START, "the cluster to be complete", async || {
                let state: String = node.ask(&["CLUSTER", "INFO"]).await;
                let has = |line: String| state.lines().any(|known| known == line);
                let nodes: String = node.ask(&["CLUSTER", "NODES"]).await;
                let replicas = nodes.lines().filter(|line| line.contains("slave ")).count();
                if has("cluster_state:ok".to_owned())
                    && !nodes.contains(" disconnected")
                    && has(format!("cluster_known_nodes:{count}"))
                    && replicas == self.replicas.len()
                {
                    Ok(())
                } else {
                    Err(format!("{state}{nodes}"))
                }
            })
            .await;
        }
        self.wait_in_sync().await;
    }

    /// Waits until the replicas have everything that their masters have written until now.
    pub async fn wait_in_sync(&self) {
        for (master, replica) in self.masters.iter().zip(&self.replicas) {
            replica.wait_in_sync(master).await;
        }
    }
}
