//! Asks replicas for their metrics, and a sidecar to verify, over plain HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// Timeout for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of an answer in bytes.
const LARGEST: u64 = 1024 * 1024;

/// All replicas of a program, by a name that has the address of each.
pub(super) struct Replicas(String);

impl Replicas {
    pub(super) fn new(host_and_port: &str) -> Self {
        Self(host_and_port.to_owned())
    }

    /// The number of replicas whose metric has this value, and that of all replicas.
    pub(super) async fn count(&self, metric: &str, value: u32) -> Result<(usize, usize), String> {
        let all = self.metrics().await?;
        let value = value.to_string();
        let has = |text: &&String| series(text, metric).any(|(_, found)| found == value);
        Ok((all.iter().filter(has).count(), all.len()))
    }

    /// Labels and value of every series of a metric, of all replicas.
    pub(super) async fn values(&self, metric: &str) -> Result<Vec<(String, String)>, String> {
        let all = self.metrics().await?;
        let found = all.iter().flat_map(|text| series(text, metric));
        Ok(found.map(|(labels, value)| (labels.to_owned(), value.to_owned())).collect())
    }

    async fn metrics(&self) -> Result<Vec<String>, String> {
        let found = lookup_host(&self.0).await.map_err(|error| format!("{}: {error}", self.0))?;
        let mut texts = Vec::new();
        for address in found {
            let request =
                format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.0);
            let (status, body) = ask(address, &request).await?;
            if status != 200 {
                return Err(format!("{address}: status {status}"));
            }
            texts.push(body);
        }
        Ok(texts)
    }
}

/// Labels and value of the series of a metric in the text that Prometheus reads.
fn series<'a>(text: &'a str, metric: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then_some((labels, value))
    })
}

/// Sends a request with `Connection: close`, and returns the status and the body.
pub(super) async fn ask(address: SocketAddr, request: &str) -> Result<(u16, String), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LARGEST).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(TIMEOUT, exchange).await.map_err(|_| format!("{address}: no answer"))?;
    let answer = answer.map_err(|error| format!("{address}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an incomplete answer")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or("an answer without a status")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_the_whole_name_of_their_metric() {
        let text = "# HELP a\na 1\nab 2\na{b=\"c\"} 3\n";
        assert_eq!(series(text, "a").collect::<Vec<_>>(), [("", "1"), ("{b=\"c\"}", "3")]);
    }
}
