//! Gives the alerts of the installed release and the queries of its dashboards to Prometheus, and
//! shows that it evaluates all of them, and that no alert lasts in a healthy release.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::kubernetes::helm;
use twofactor_tests::scratch;
use twofactor_tests::wait::eventually_blocking;

use crate::release::{BOUND, NAME, NAMESPACE, checkout};

/// Time after which a condition that lasts is an alert here. A release needs less to settle.
const LASTS: u64 = 15;
/// Timeout for Prometheus to evaluate all rules for this time.
const EVALUATED: Duration = Duration::from_secs(90);
/// Alerts about what other tests do at the same time, or about the speed of a machine that runs
/// them.
const OF_OTHER_TESTS: [&str; 8] = [
    "TwoFactorAdmissionSlow",
    "TwoFactorManyUsersNotReady",
    "TwoFactorPodsNotInjected",
    "TwoFactorPodsRefused",
    "TwoFactorPodsWaiting",
    "TwoFactorRealmsNotReady",
    "TwoFactorUsersNotReady",
    "TwoFactorVerifiesSlow",
];
/// Metrics whose first series comes with an event that a healthy release need not have.
const OF_EVENTS: [&str; 8] = [
    "twofactor_codes_exposed",
    "twofactor_credentials_changes_total",
    "twofactor_deliveries_total",
    "twofactor_delivery_duration_seconds_bucket",
    "twofactor_realms_not_ready",
    "twofactor_records_refused_total",
    "twofactor_users_not_ready",
    "twofactor_watches_forbidden",
];

/// A file of rules for Prometheus: the alerts of the release, with short delays, and a rule for
/// each query of a dashboard.
pub(crate) fn rules() -> Value {
    let rendered = rendered();
    let of_kind = |kind: &'static str| rendered.iter().filter(move |it| it["kind"] == kind);
    let mut groups: Vec<Value> = of_kind("PrometheusRule")
        .flat_map(|it| it["spec"]["groups"].as_array().expect("groups").clone())
        .collect();
    for rule in groups.iter_mut().flat_map(|group| group["rules"].as_array_mut().expect("rules")) {
        if rule.get("for").is_some() {
            rule["for"] = json!(format!("{LASTS}s"));
        }
    }
    assert!(!groups.is_empty(), "no PrometheusRule: {rendered:?}");
    let dashboards: Vec<Value> = of_kind("ConfigMap").map(queries).collect();
    assert_eq!(dashboards.len(), 3, "{rendered:?}");
    groups.extend(dashboards);
    json!({ "groups": groups })
}

/// What the chart would add to the release with alerts and dashboards. The cluster has no
/// Prometheus operator that would read it.
fn rendered() -> Vec<Value> {
    let said = helm(BOUND, &["get", "values", NAME, "--namespace", NAMESPACE, "--output", "json"]);
    let values = said.into_result().unwrap_or_else(|error| panic!("helm get values: {error}"));
    let folder = scratch::folder("values");
    let file = folder.path().join("values.json");
    fs::write(&file, values).expect("a file");
    let chart = checkout().join("charts/fountainai-2fa");
    let args = [
        "template",
        NAME,
        chart.to_str().expect("a path in UTF-8"),
        "--namespace",
        NAMESPACE,
        "--values",
        file.to_str().expect("a path in UTF-8"),
        "--set",
        "metrics.rules.enabled=true,metrics.dashboards.enabled=true",
        "--show-only",
        "templates/monitors.yaml",
        "--show-only",
        "templates/dashboards.yaml",
    ];
    let said = helm(BOUND, &args);
    let text = said.into_result().unwrap_or_else(|error| panic!("helm template: {error}"));
    let documents = text.split("\n---\n").map(|it| serde_saphyr::from_str(it).expect("YAML"));
    documents.filter(|document: &Value| document.is_object()).collect()
}

/// A group with a rule for each query of a dashboard, which Prometheus evaluates like alerts.
fn queries(config_map: &Value) -> Value {
    let (file, text) = config_map["data"].as_object().expect("data").iter().next().expect("a file");
    let dashboard: Value = serde_json::from_str(text.as_str().expect("a text")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let rule = |(number, target): (usize, &Value)| {
        let expression = target["expr"].as_str().expect("an expression");
        let expression = expression.replace("$__rate_interval", "10s").replace("$namespace", ".*");
        json!({ "record": format!("dashboard_query_{number}"), "expr": expression })
    };
    json!({ "name": file, "rules": targets.enumerate().map(rule).collect::<Vec<_>>() })
}

/// Waits until every rule has been evaluated for longer than a condition has to last, and fails if
/// one cannot be evaluated or reads a metric that does not exist, or if an alert fires about the
/// release or about `namespace`. `ask` gets the data that Prometheus answers to a path.
pub(crate) fn assert_silent(namespace: &str, ask: impl Fn(&str) -> Result<Value, String>) {
    let begun = std::time::Instant::now();
    let rules = eventually_blocking(EVALUATED, "all rules to be evaluated", || {
        let rules = all_rules(&ask("rules")?);
        let failed: Vec<&Value> = rules.iter().filter(|rule| rule["health"] == "err").collect();
        assert!(failed.is_empty(), "Prometheus cannot evaluate {failed:?}");
        let unknown = rules.iter().filter(|rule| rule["health"] != "ok").count();
        let left = (LASTS + 5).saturating_sub(begun.elapsed().as_secs());
        if unknown == 0 && left == 0 { Ok(rules) } else { Err(format!("{unknown}, {left} s left")) }
    });
    let names = ask("label/__name__/values").expect("names of metrics");
    let exist: BTreeSet<&str> =
        names.as_array().expect("names").iter().filter_map(Value::as_str).collect();
    let read: BTreeSet<&str> =
        rules.iter().flat_map(|rule| metrics(rule["query"].as_str().expect("a query"))).collect();
    let missing: Vec<&str> = read.difference(&exist).copied().collect();
    assert!(missing.iter().all(|it| OF_EVENTS.contains(it)), "no series of {missing:?}");

    let alerts: Vec<&Value> =
        rules.iter().filter_map(|rule| rule["alerts"].as_array()).flatten().collect();
    let is_of_others = |alert: &Value| {
        let labels = &alert["labels"];
        let of = labels["namespace"].as_str().unwrap_or(NAMESPACE);
        let name = labels["alertname"].as_str().expect("a name");
        ![NAMESPACE, namespace].contains(&of) || OF_OTHER_TESTS.contains(&name)
    };
    let firing: Vec<&&Value> =
        alerts.iter().filter(|it| it["state"] == "firing" && !is_of_others(it)).collect();
    assert!(firing.is_empty(), "alerts fire in a healthy release: {firing:?}");
}

fn all_rules(answer: &Value) -> Vec<Value> {
    let groups = answer["groups"].as_array().cloned().unwrap_or_default();
    groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect()
}

/// The metrics that an expression reads.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let prefixes = ["twofactor_", "controller_runtime_", "workqueue_"];
    expression
        .split(move |c| !is_word(c))
        .filter(move |word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
}
