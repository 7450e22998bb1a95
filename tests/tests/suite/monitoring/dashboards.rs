//! Runs every query of the dashboards against a real Prometheus that scrapes the running system.

use std::fs;

use serde_json::{Value, json};
use twofactor_tests::wait::eventually;

use super::observed::Observed;
use super::rules::{assert_known, project};
use crate::support::cluster::{BOUND, user};

/// A Unix time before Prometheus was started.
const LONG_AGO: f64 = 1_000_000_000.0;
const FOLDER: &str = "charts/fountainai-2fa/files/dashboards";

pub(super) fn dashboards() -> Vec<(String, Value)> {
    let entries = fs::read_dir(project(FOLDER)).unwrap();
    let read = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
    };
    entries.map(|entry| read(entry.unwrap().path())).collect()
}

/// Title and expression of every query of a dashboard.
pub(super) fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(|target| (panel["title"].clone(), target["expr"].clone()))
    });
    let text = |value: Value| value.as_str().unwrap().to_owned();
    targets.map(|(title, expression)| (text(title), text(expression))).collect()
}

/// An expression with the variables that Grafana replaces.
pub(super) fn filled(expression: &str, namespace: &str) -> String {
    expression.replace("$__rate_interval", "30s").replace("$namespace", namespace)
}

/// Whether a result is the 0 that a panel of one number shows in place of nothing.
fn is_zero(result: &Value) -> bool {
    result["metric"] == json!({}) && result["value"][1] == "0"
}

#[test]
fn each_dashboard_can_be_imported_and_names_metrics_that_exist() {
    let dashboards = dashboards();
    assert_eq!(dashboards.len(), 3);
    for (name, dashboard) in dashboards {
        assert_eq!(dashboard["uid"], *name);
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let names: Vec<&str> = variables.iter().filter_map(|it| it["name"].as_str()).collect();
        assert_eq!(names, ["datasource", "namespace"], "{name}");
        let mut places = Vec::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let place = &panel["gridPos"];
            let number = |key: &str| place[key].as_u64().unwrap();
            assert!(number("x") + number("w") <= 24, "{name}: {panel}");
            places.push((number("x"), number("y")));
        }
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), all, "{name}: panels on top of each other");
        for (_, expression) in queries(&dashboard) {
            assert_known(&expression);
        }
    }
}

/// Makes every kind of request whose outcome a panel shows, and a user that is never ready.
async fn use_the_system(system: &Observed) {
    system.cluster.apply(&user("erin", "deliveryMethod: app\n  secretRef: {name: missing}"));
    for sidecar in [&system.kms, &system.shop] {
        let api = &sidecar.api;
        for _ in 0..7 {
            let _ = api.verify("dora", "000000").await;
        }
        assert_eq!(api.verify("unknown", "000000").await.status, 404);
        assert_eq!(api.raw("POST", "/auth/verify", &[], "{").await.status, 422);
    }
    let seed = system.cluster.seed("carol");
    system.kms.wait_accepted("carol", &seed).await;
    assert_eq!(system.kms.api.generate("alice-0").await.status, 200);
    assert_eq!(system.kms.api.generate("alice-0").await.status, 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_a_dashboard_gives_data_of_a_running_system_and_none_of_nothing() {
    let system = Observed::start().await;
    use_the_system(&system).await;
    for (name, dashboard) in dashboards() {
        for (title, expression) in queries(&dashboard) {
            let query = filled(&expression, ".*");
            let what = format!("data of {name}, {title}: {query}");
            eventually(BOUND, what, async || {
                let results = system.alarms.prometheus.query(&query).await?;
                if results.is_empty() { Err("none".to_owned()) } else { Ok(()) }
            })
            .await;
            let nowhere = filled(&expression, "nowhere");
            let _ = system.alarms.prometheus.query(&nowhere).await.unwrap();
            // A Prometheus that has scraped nothing has no data, and no error either.
            let before = system.alarms.prometheus.query_at(&query, LONG_AGO).await.unwrap();
            assert!(before.iter().all(is_zero), "{name}, {title}: {query}: {before:?}");
        }
    }
}
