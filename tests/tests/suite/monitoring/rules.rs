//! Tests the file of alerts with `promtool`: it is valid, each alert fires in its case and in no
//! other, names metrics and labels that exist, and has a page of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use twofactor_operator::testing::{admission_metrics, controller_metrics};
use twofactor_server::metrics::Kind;
use twofactor_sidecar::testing::metrics as sidecar_metrics;
use twofactor_tests::process::run;
use twofactor_tests::{scratch, tools};

/// Labels that Prometheus or the monitors add.
const LABELS_OF_TARGETS: [&str; 3] = ["namespace", "pod", "le"];
const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];
/// Files of cases. Those of the second take days, and are evaluated each hour.
const CASES: [&str; 2] = ["cases.yaml", "slow.yaml"];
const RUNBOOKS: &str = "docs/operations/runbooks";

pub(super) fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The text of the rule file.
pub(super) fn alerts() -> String {
    fs::read_to_string(project("charts/fountainai-2fa/files/alerts.yaml")).unwrap()
}

/// The rule file without some keys of its alerts: `annotations`, whose texts a case would repeat,
/// or `for`.
pub(super) fn without(rules: &str, key: &str) -> String {
    let (own, deeper) = (format!("        {key}:"), "         ");
    let mut is_inside = false;
    let mut text = String::new();
    for line in rules.lines() {
        is_inside = line.starts_with(&own) || (is_inside && line.starts_with(deeper));
        if !is_inside {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// All rules.
pub(super) fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&alerts()).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
}

fn cases(name: &str) -> String {
    fs::read_to_string(project("tests/alerts").join(name)).unwrap()
}

fn promtool(args: &[&str]) -> String {
    run(tools::find("promtool"), args)
}

/// Each metric with its labels, under each name that its series have.
pub(super) fn series() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut series: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for metric in [sidecar_metrics(), controller_metrics(), admission_metrics()].concat() {
        let suffixes: &[&str] =
            if metric.kind == Kind::Histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
        for suffix in suffixes {
            let name = format!("{}{suffix}", metric.name);
            series.entry(name).or_default().extend(metric.labels);
        }
    }
    series
}

/// The words of an expression outside of quotes.
pub(super) fn words(expression: &str) -> BTreeSet<String> {
    let outside = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    outside.split(|c| !is_word(c)).map(ToOwned::to_owned).collect()
}

/// Fails if an expression names a metric that no program has, or filters by a label that none of
/// its metrics has.
pub(super) fn assert_known(expression: &str) {
    let series = series();
    let mut labels: BTreeSet<&str> = LABELS_OF_TARGETS.into();
    for word in words(expression) {
        if let Some(own) = series.get(&word) {
            labels.extend(own);
        } else {
            let prefixes = ["twofactor_", "controller_runtime_", "workqueue_"];
            assert!(!prefixes.iter().any(|it| word.starts_with(it)), "no metric {word}");
        }
    }
    for selector in expression.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        for matcher in selector.split("\",") {
            let label = matcher.split(['=', '!']).next().unwrap().trim_start_matches(',').trim();
            assert!(label.is_empty() || labels.contains(label), "no label {label}: {expression}");
        }
    }
}

#[test]
fn promtool_finds_no_fault_and_each_alert_fires_in_its_case_only() {
    let folder = scratch::folder("alerts");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let original = project("charts/fountainai-2fa/files/alerts.yaml").display().to_string();
    let said = promtool(&["check", "rules", &original]);
    assert!(said.contains(&format!("SUCCESS: {} rules found", rules().len())), "{said}");
    let _ = file("alerts.yaml", &without(&alerts(), "annotations"));
    for name in CASES {
        let said = promtool(&["test", "rules", &file(name, &cases(name))]);
        assert!(said.contains("SUCCESS"), "{said}");
    }
}

#[test]
fn each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let mut found = BTreeSet::new();
    let files = CASES.map(|name| serde_saphyr::from_str::<Value>(&cases(name)).unwrap());
    for case in files.iter().flat_map(|file| file["tests"].as_array().unwrap()) {
        for test in case["alert_rule_test"].as_array().unwrap() {
            let is_firing = !test["exp_alerts"].as_array().unwrap().is_empty();
            found.insert((test["alertname"].as_str().unwrap().to_owned(), is_firing));
        }
    }
    let names = rules().into_iter().map(|rule| rule["alert"].as_str().unwrap().to_owned());
    let expected: BTreeSet<_> =
        names.flat_map(|name| [(name.clone(), true), (name, false)]).collect();
    assert_eq!(found, expected);
}

#[test]
fn each_alert_says_what_breaks_and_has_a_page_with_causes_and_what_to_do() {
    let mut pages = BTreeSet::new();
    let overview = fs::read_to_string(project("docs/operations/alerts.md")).unwrap();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(SEVERITIES.contains(&severity), "{name}: {severity}");
        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap().to_owned();
        let summary = annotation("summary");
        assert!(summary.ends_with('.') && !annotation("description").is_empty(), "{name}");
        assert!(annotation("runbook_url").ends_with(&format!("{RUNBOOKS}/{name}.md")), "{name}");
        let page = fs::read_to_string(project(&format!("{RUNBOOKS}/{name}.md"))).unwrap();
        let sections: Vec<&str> = page.lines().filter(|line| line.starts_with('#')).collect();
        let title = format!("# {name}");
        assert_eq!(sections, [&title, "## Cause", "## What to look at", "## What to do"]);
        let wait = rule["for"].as_str().unwrap_or("at once");
        let row = format!("| [{name}](runbooks/{name}.md) | {severity} | {wait} | {summary} |");
        assert!(overview.contains(&row), "docs/operations/alerts.md lacks: {row}");
        pages.insert(format!("{name}.md"));
        assert_known(rule["expr"].as_str().unwrap());
    }
    let files = fs::read_dir(project(RUNBOOKS)).unwrap();
    let files: BTreeSet<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, pages, "a page without an alert");
}
