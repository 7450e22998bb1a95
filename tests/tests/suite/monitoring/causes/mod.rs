//! Brings about what alerts are about, and shows that each fires within its stated time.

mod controller;
mod redis;
mod services;
mod sidecar;

use std::collections::BTreeSet;
use std::fs;

use super::rules::{project, rules};
use super::stated::{duration, stated};

const FOLDER: &str = "tests/tests/suite/monitoring/causes";

/// The names of alerts between quotes.
fn named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('"').skip(1).step_by(2);
    quoted.filter(|text| text.starts_with("TwoFactor")).map(ToOwned::to_owned).collect()
}

#[test]
fn the_page_states_for_each_alert_its_cause_its_time_and_its_runbook() {
    let (stated, mut brought_about) = (stated(), BTreeSet::new());
    for file in fs::read_dir(project(FOLDER)).unwrap() {
        let path = file.unwrap().path();
        if !path.ends_with("mod.rs") {
            brought_about.append(&mut named(&fs::read_to_string(path).unwrap()));
        }
    }
    let rules = rules();
    assert_eq!(stated.len(), rules.len(), "docs/operations/alerts.md has a row for each alert");
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        let row = stated.get(name).unwrap_or_else(|| panic!("docs/operations/alerts.md: {name}"));
        assert!(!row.cause.is_empty(), "{name}");
        assert_eq!(row.runbook, format!("[runbook](runbooks/{name}.md)"));
        assert_eq!(row.within.is_some(), brought_about.contains(name), "{name}");
        let delay = duration(rule["for"].as_str().unwrap_or("0s"));
        assert!(row.within.is_none_or(|within| within > delay), "{name}: {:?}", row.within);
    }
}
