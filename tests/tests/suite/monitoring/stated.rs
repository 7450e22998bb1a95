//! Reads what `docs/operations/alerts.md` states of each alert: the cause that the tests bring
//! about, and the time within which the alert fires.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::rules::project;

/// What the page states of an alert.
pub(super) struct Stated {
    /// The cause, in words.
    pub(super) cause: String,
    /// Time from the cause to the alert; nothing if no test brings the cause about.
    pub(super) within: Option<Duration>,
    /// The link to the page with what to do.
    pub(super) runbook: String,
}

/// The rows of the table of causes, by the names of the alerts.
pub(super) fn stated() -> BTreeMap<String, Stated> {
    let page = fs::read_to_string(project("docs/operations/alerts.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| TwoFactor"));
    rows.map(|row| {
        let [name, cause, within, runbook] =
            row.split('|').map(str::trim).collect::<Vec<_>>()[..4].try_into().unwrap();
        let within = (within != "-").then(|| duration(within));
        let stated = Stated { cause: cause.to_owned(), within, runbook: runbook.to_owned() };
        (format!("TwoFactor{name}"), stated)
    })
    .collect()
}

/// A duration as Prometheus writes it, such as `2m 30s` or `7d`.
pub(super) fn duration(text: &str) -> Duration {
    let part = |part: &str| {
        let (number, unit) = part.split_at(part.len() - 1);
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => panic!("{text} is not a duration"),
        };
        number.parse::<u64>().unwrap() * seconds
    };
    Duration::from_secs(text.split(' ').map(part).sum())
}
