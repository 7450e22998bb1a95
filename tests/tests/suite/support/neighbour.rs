//! Plays a neighbour: another address that opens connections to a port and sends nothing.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use twofactor_tests::process::Launch;
use twofactor_tests::tools;

/// The address of the neighbour. All of 127.0.0.0/8 is this machine, but only 127.0.0.1 counts as
/// its own.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The address of a well-behaved client, such as an API server or a scraper.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
/// Duration of the siege: more than twice the time after which a silent connection is closed.
const SIEGE: Duration = Duration::from_secs(8);
/// Numbers of silent connections.
pub(crate) const SIEGES: [usize; 2] = [600, 1500];

/// Silent connections to one port, which are opened again when they are closed.
pub(crate) struct Neighbour {
    target: SocketAddr,
    connections: Vec<TcpStream>,
    count: usize,
    began: Instant,
}

impl Neighbour {
    pub(crate) fn new(port: u16, count: usize) -> Self {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { target, connections: Vec::new(), count, began: Instant::now() }
    }

    /// Opens the connections that are missing, and returns whether the siege goes on.
    pub(crate) async fn besieges(&mut self) -> bool {
        self.connections.retain(|stream| {
            let read = stream.try_read(&mut [0]);
            read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        while self.connections.len() < self.count {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((ADDRESS, 0))).unwrap();
            let connect = tokio::time::timeout(Duration::from_secs(1), socket.connect(self.target));
            // The backlog is full for a moment: the siege is as intended.
            let Ok(Ok(stream)) = connect.await else { break };
            self.connections.push(stream);
        }
        self.began.elapsed() < SIEGE
    }
}

/// Runs the `exec` probe of a program, as a kubelet does, and returns how long it took.
pub(crate) async fn probe(program: &str, admin: &str, check: &str) -> Duration {
    let began = Instant::now();
    let launch = Launch::new(tools::project_binary(program)).isolated().args(["probe", check]);
    let process = launch.env("TWOFACTOR_ADMIN_LISTEN", admin).start();
    let status = process.wait_exit(Duration::from_secs(10)).await;
    assert!(status.success(), "{program} {check}: {}", process.output());
    began.elapsed()
}
