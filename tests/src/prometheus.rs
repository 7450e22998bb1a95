//! Starts a Prometheus that scrapes given addresses every second, and asks it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use reqwest::Url;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::ApiClient;
use crate::process::{Launch, Process};
use crate::{ports, scratch, tools};

const START: Duration = Duration::from_secs(30);

/// What Prometheus scrapes: a port on loopback, with the labels that the chart's monitors give.
#[derive(Clone, Debug)]
pub struct Target {
    /// The namespace of the pod.
    pub namespace: String,
    /// The name of the pod.
    pub pod: String,
    /// The port with `/metrics`.
    pub port: u16,
}

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    api: ApiClient,
    _process: Process,
    folder: TempDir,
}

impl Prometheus {
    /// Starts Prometheus with rules (the text of a rule file).
    pub async fn start(targets: &[Target], rules: &str) -> Self {
        let (folder, port) = (scratch::folder("prometheus"), ports::free_port());
        let at = |name: &str| folder.path().join(name);
        fs::write(at("alerts.yaml"), rules).expect("a file");
        write_targets(folder.path(), targets);
        let configuration = json!({
            "global": {
                "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s",
            },
            "rule_files": ["alerts.yaml"],
            "scrape_configs": [{
                "job_name": "twofactor",
                "file_sd_configs": [{ "files": ["targets.json"], "refresh_interval": "1s" }],
            }],
        });
        // Every JSON document is a YAML document.
        fs::write(at("prometheus.yml"), configuration.to_string()).expect("a file");
        let process = Launch::new(tools::find("prometheus"))
            .isolated()
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .start();
        let api = ApiClient::new(format!("http://127.0.0.1:{port}"));
        api.wait_until_ok("/-/ready", &process, START).await;
        Self { api, _process: process, folder }
    }

    /// Scrapes these targets from now on, and no others.
    pub fn scrape(&self, targets: &[Target]) {
        write_targets(self.folder.path(), targets);
    }

    /// The results of a query for this moment.
    ///
    /// # Errors
    /// If Prometheus refuses the query: its words.
    pub async fn query(&self, text: &str) -> Result<Vec<Value>, String> {
        self.ask("query", &[("query", text)]).await
    }

    /// The results of a query for a moment, a Unix time in seconds.
    ///
    /// # Errors
    /// If Prometheus refuses the query: its words.
    pub async fn query_at(&self, text: &str, time: f64) -> Result<Vec<Value>, String> {
        self.ask("query", &[("query", text), ("time", &time.to_string())]).await
    }

    /// The series of a query over time. `start` and `end` are Unix times in seconds.
    ///
    /// # Errors
    /// If Prometheus refuses the query: its words.
    pub async fn range(&self, text: &str, start: u64, end: u64) -> Result<Vec<Value>, String> {
        let (start, end) = (start.to_string(), end.to_string());
        let query = [("query", text), ("start", &start), ("end", &end), ("step", "1")];
        self.ask("query_range", &query).await
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Result<Vec<Value>, String> {
        let url = Url::parse_with_params("http://any/", query).expect("a URL");
        let path = format!("/api/v1/{path}?{}", url.query().unwrap_or_default());
        let reply = self.api.get(&path).await;
        let answer = reply.json();
        answer["data"]["result"].as_array().cloned().ok_or_else(|| answer.to_string())
    }

    /// The names of the alerts that fire.
    pub async fn firing(&self) -> BTreeSet<String> {
        let answer = self.api.get("/api/v1/alerts").await.json();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.filter_map(|it| it["labels"]["alertname"].as_str().map(ToOwned::to_owned)).collect()
    }
}

/// Replaces the file in one step, because Prometheus may read it at any moment.
fn write_targets(folder: &Path, targets: &[Target]) {
    let list: Vec<Value> = targets
        .iter()
        .map(|Target { namespace, pod, port }| {
            let labels = json!({ "namespace": namespace, "pod": pod });
            json!({ "targets": [format!("127.0.0.1:{port}")], "labels": labels })
        })
        .collect();
    fs::write(folder.join("new"), Value::from(list).to_string()).expect("a file");
    fs::rename(folder.join("new"), folder.join("targets.json")).expect("a renamed file");
}
