//! Asks the admin port of the same program over loopback, for `exec` probes: a neighbour can
//! neither use up their slots nor get in between, as with a request to the pod's address.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Timeout for an answer. The chart and the webhook give a probe more, so that the reason is shown.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of an answer in bytes.
const LARGEST: u64 = 16 * 1024;

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Whether the process runs.
    Livez,
    /// Whether all required checks pass.
    Readyz,
}

impl Check {
    /// The path on the admin port.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
        }
    }
}

impl FromStr for Check {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "livez" => Ok(Self::Livez),
            "readyz" => Ok(Self::Readyz),
            _ => Err("must be livez or readyz"),
        }
    }
}

/// Returns the addresses at which a program that listens on `address` can be reached from its own
/// pod, the most probable first.
#[must_use]
pub fn own_addresses(address: SocketAddr) -> Vec<SocketAddr> {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let hosts = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![v4],
        // Such a listener usually accepts IPv4 as well, and a machine may have no ::1.
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v6, v4],
        ip => vec![ip],
    };
    hosts.into_iter().map(|host| SocketAddr::new(host, address.port())).collect()
}

/// Sends `GET path` to the first of the addresses that accepts a connection.
///
/// # Errors
/// If none answers within two seconds, or the answer is not 200. The message has the answer's body.
pub fn ask(addresses: &[SocketAddr], path: &str) -> Result<(), String> {
    let end = Instant::now() + TIMEOUT;
    let mut problem = "no address".to_owned();
    for address in addresses {
        let stream = match TcpStream::connect_timeout(address, left(end)) {
            Ok(stream) => stream,
            Err(error) => {
                problem = format!("{address}: {error}");
                continue;
            }
        };
        let answer =
            exchange(stream, path, end).map_err(|error| format!("{address}{path}: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or("no status");
        return if status == "200" { Ok(()) } else { Err(format!("{path}: {status}\n{body}")) };
    }
    Err(problem)
}

fn exchange(mut stream: TcpStream, path: &str, end: Instant) -> std::io::Result<String> {
    stream.set_write_timeout(Some(left(end)))?;
    // In one piece, because a program that answers before the end resets the connection.
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 1024]);
    while (answer.len() as u64) < LARGEST {
        stream.set_read_timeout(Some(left(end)))?;
        match stream.read(&mut part)? {
            0 => break,
            count => answer.extend_from_slice(&part[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The time that is left, at least a millisecond, because zero would mean no timeout.
fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_program_that_listens_everywhere_is_asked_over_loopback() {
        let own = |address: &str| {
            let own = own_addresses(address.parse().unwrap());
            own.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(own("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(own("[::]:1"), "[::1]:1 127.0.0.1:1");
        assert_eq!(own("127.0.0.1:1"), "127.0.0.1:1");
        assert_eq!(own("10.0.0.1:1"), "10.0.0.1:1");
    }

    /// Answers one request with this text.
    fn answering(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]);
            stream.write_all(text.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn only_a_200_is_a_success_and_the_reason_is_shown() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let good = answering("HTTP/1.1 200 OK\r\n\r\nok\n");
        assert_eq!(ask(&[closed, good], "/livez"), Ok(()));
        let bad = answering("HTTP/1.1 503 Service Unavailable\r\n\r\n[-] realms failed\n");
        assert_eq!(ask(&[bad], "/readyz").unwrap_err(), "/readyz: 503\n[-] realms failed\n");
        assert!(ask(&[closed], "/livez").unwrap_err().contains("refused"));
        assert!(ask(&[answering("")], "/livez").is_err());
    }

    #[test]
    fn a_program_that_does_not_answer_fails_the_probe_in_time() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let began = Instant::now();
        assert!(ask(&[silent.local_addr().unwrap()], "/livez").is_err());
        assert!(began.elapsed() < TIMEOUT + Duration::from_secs(1), "{:?}", began.elapsed());
    }
}
