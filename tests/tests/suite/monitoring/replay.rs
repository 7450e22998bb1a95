//! Plays series that a real Prometheus has recorded to `promtool`, with the rules as they are, to
//! show what fires after minutes, hours and days that no test waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::slice;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::{scratch, tools};

use super::rules::{rules, series, words};
use super::stated::duration;

/// Time for which the series are as before the cause: longer than any expression looks back.
const BEFORE: Duration = Duration::from_mins(65);
/// Interval between two scrapes and between two evaluations, as many installations have it.
const INTERVAL: Duration = Duration::from_secs(15);
/// The same for alerts that wait for longer than an hour, so that they do not take long to play.
const LONG_INTERVAL: Duration = Duration::from_mins(5);
/// How often the same events are counted again while a cause lasts.
const AGAIN: Duration = Duration::from_mins(1);
/// An hour, and the longest time that an expression looks back.
const QUIET: Duration = Duration::from_mins(125);

/// The values of all series of some metrics at one moment, by name and labels.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// The moment, as a Unix time in seconds.
    pub(super) time: f64,
    /// The values.
    pub(super) values: BTreeMap<String, f64>,
}

impl Snapshot {
    /// Reads the results of a query.
    pub(super) fn new(time: f64, results: &[Value]) -> Self {
        let value = |result: &Value| result["value"][1].as_str().unwrap().parse().unwrap();
        let values = results.iter().map(|result| (identity(result), value(result))).collect();
        Self { time, values }
    }
}

/// Name and labels of a series, as `promtool` reads them.
fn identity(result: &Value) -> String {
    let labels = result["metric"].as_object().unwrap();
    let others = labels.iter().filter(|(label, _)| *label != "__name__");
    let pairs: Vec<_> = others.map(|(label, value)| format!("{label}={value}")).collect();
    format!("{}{{{}}}", labels["__name__"].as_str().unwrap(), pairs.join(","))
}

/// A query for all series of the metrics that an expression names.
pub(super) fn all_of(expression: &str) -> String {
    let known = series();
    let names: Vec<_> = words(expression).into_iter().filter(|it| known.contains_key(it)).collect();
    assert!(!names.is_empty(), "no metric in {expression}");
    format!("{{__name__=~\"{}\"}}", names.join("|"))
}

/// An alert that its cause has made fire.
#[derive(Debug)]
pub(super) struct Fired {
    pub(super) alert: String,
    /// The series before the cause.
    pub(super) before: Snapshot,
    /// The series when the alert's expression held.
    pub(super) after: Snapshot,
    /// Time within which the alert is to fire.
    pub(super) within: Duration,
    /// Whether passes no longer end.
    pub(super) stalls: bool,
}

/// Fails if an alert fires before its cause, or does not within its time.
pub(super) fn assert_fire_in_time(fired: &[Fired]) {
    let folder = scratch::folder("replay");
    let mut files = Vec::new();
    for case in fired {
        let rule = rules().into_iter().find(|rule| rule["alert"] == *case.alert).unwrap();
        let rules = write_rules(folder.path(), &case.alert, slice::from_ref(&rule));
        let wait = duration(rule["for"].as_str().unwrap_or("0s"));
        let interval = if wait > BEFORE { LONG_INTERVAL } else { INTERVAL };
        let played = case.played(rule["expr"].as_str().unwrap(), interval);
        let cause = steps(BEFORE, interval) * interval.as_secs();
        let is_firing =
            format!("count(ALERTS{{alertname=\"{}\",alertstate=\"firing\"}})", case.alert);
        let check = |at: u64, expected: u8| {
            json!({ "expr": format!("{is_firing} > bool 0 or vector(0)"), "eval_time": format!("{at}s"),
                "exp_samples": [{ "labels": "{}", "value": expected }] })
        };
        let checks =
            [check(cause - interval.as_secs(), 0), check(cause + case.within.as_secs(), 1)];
        files.push(write_test(folder.path(), &case.alert, &rules, interval, &played, &checks));
    }
    test_rules(&files);
}

impl Fired {
    /// The series: as before for more than an hour, and then as after the cause.
    fn played(&self, expression: &str, interval: Duration) -> Vec<Value> {
        let before = steps(BEFORE, interval);
        let after = steps(self.within, interval) + 2;
        let goes_on = expression.contains("rate(") || expression.contains("increase(");
        let names = self.before.values.keys().chain(self.after.values.keys());
        let names: BTreeSet<&String> = names.collect();
        let cause = seconds(interval) * f64::from(u32::try_from(before).unwrap());
        names
            .into_iter()
            .map(|name| {
                let kind = Kind::of(name);
                let mut values = String::new();
                let old = self.before.values.get(name).copied();
                let new = self.after.values.get(name).copied();
                match old.map(|value| kind.moved(value, self.before.time, cause)) {
                    // Passes end all the time.
                    Some(value) if kind == Kind::Pass => {
                        let (first, interval) = (value - cause, seconds(interval));
                        write!(values, "{first}+{interval}x{} ", before - 1).unwrap();
                    }
                    Some(value) => write!(values, "{value}x{} ", before - 1).unwrap(),
                    // Without a value, the number is that of the scrapes.
                    None => write!(values, "_x{before} ").unwrap(),
                }
                match (new, kind) {
                    // Prometheus notices that a series has ended.
                    (None, _) => write!(values, "stale _x{after}").unwrap(),
                    (Some(_), Kind::Age) => {
                        let begin = old.unwrap_or(0.0);
                        write!(values, "{begin}+{}x{after}", seconds(interval)).unwrap();
                    }
                    (Some(value), Kind::Counter) if goes_on => {
                        let events = value - old.unwrap_or(0.0);
                        let each = events * seconds(interval) / seconds(AGAIN);
                        write!(values, "{value}+{each}x{after}").unwrap();
                    }
                    (Some(value), _) => {
                        let value = kind.moved(value, self.after.time, cause);
                        let goes_on = kind == Kind::Pass && !self.stalls;
                        let step = if goes_on { seconds(interval) } else { 0.0 };
                        write!(values, "{value}+{step}x{after}").unwrap();
                    }
                }
                json!({ "series": name, "values": values })
            })
            .collect()
    }
}

/// Alerts about slow answers, which a machine that runs other tests at the same time may give.
const OF_SPEED: [&str; 2] = ["TwoFactorAdmissionSlow", "TwoFactorVerifiesSlow"];

/// Fails if any alert fires in an hour in which the system goes on as in these snapshots, which
/// were taken at equal intervals: gauges take their values again and again, and counters count the
/// same again.
pub(super) fn assert_quiet(snapshots: &[Snapshot]) {
    let folder = scratch::folder("quiet");
    let is_of_speed = |rule: &Value| OF_SPEED.iter().any(|name| rule["alert"] == *name);
    let rules: Vec<Value> = rules().into_iter().filter(|rule| !is_of_speed(rule)).collect();
    let rules = write_rules(folder.path(), "quiet", &rules);
    // Every second scrape is enough for rules whose shortest time is a minute.
    let interval = INTERVAL * 2;
    let (first, last) = (&snapshots[0], &snapshots[snapshots.len() - 1]);
    let played: Vec<Value> = last
        .values
        .keys()
        .map(|name| {
            let kind = Kind::of(name);
            let observed: Vec<(f64, f64)> = snapshots
                .iter()
                .filter_map(|snapshot| Some((snapshot.time, *snapshot.values.get(name)?)))
                .collect();
            let events = last.values[name] - first.values.get(name).copied().unwrap_or(0.0);
            let rate = events / (last.time - first.time);
            let value = |step: usize| {
                let at = seconds(interval) * f64::from(u32::try_from(step).unwrap());
                let (time, value) = observed[step % observed.len()];
                match kind {
                    Kind::Counter => last.values[name] + (rate * at).floor(),
                    Kind::Moment | Kind::Pass => kind.moved(value, time, at),
                    Kind::Age | Kind::Gauge => value,
                }
            };
            let count = usize::try_from(steps(QUIET, interval)).unwrap();
            let values: Vec<String> = (0..count).map(|step| value(step).to_string()).collect();
            json!({ "series": name, "values": values.join(" ") })
        })
        .collect();
    let fired = format!(
        "count by (alertname) (count_over_time(ALERTS{{alertstate=\"firing\"}}[{}s]))",
        QUIET.as_secs()
    );
    let check =
        json!({ "expr": fired, "eval_time": format!("{}s", QUIET.as_secs()), "exp_samples": [] });
    let file = write_test(folder.path(), "quiet", &rules, interval, &played, &[check]);
    test_rules(&[file]);
}

/// How a series goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A count of events.
    Counter,
    /// A Unix time.
    Moment,
    /// The Unix time of the last pass.
    Pass,
    /// A time since something.
    Age,
    Gauge,
}

impl Kind {
    fn of(series: &str) -> Self {
        let name = series.split('{').next().unwrap();
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        if ends(&["_last_pass_timestamp_seconds"]) {
            Self::Pass
        } else if ends(&["_timestamp_seconds"]) {
            Self::Moment
        } else if ends(&["_age_seconds"]) {
            Self::Age
        } else if ends(&["_total", "_bucket", "_count", "_sum"]) {
            Self::Counter
        } else {
            Self::Gauge
        }
    }

    /// A value that was read at `time`, if that moment is `at`.
    fn moved(self, value: f64, time: f64, at: f64) -> f64 {
        if matches!(self, Self::Moment | Self::Pass) { value - time + at } else { value }
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn steps(duration: Duration, interval: Duration) -> u64 {
    duration.as_secs().div_ceil(interval.as_secs())
}

/// Writes a rule file without annotations, and returns its name.
pub(super) fn write_rules(folder: &Path, name: &str, rules: &[Value]) -> String {
    let mut rules = rules.to_vec();
    for rule in &mut rules {
        rule.as_object_mut().unwrap().remove("annotations");
    }
    let file = format!("{name}.rules.yaml");
    // Every JSON document is a YAML document.
    let text = json!({ "groups": [{ "name": "replay", "rules": rules }] }).to_string();
    fs::write(folder.join(&file), text).unwrap();
    file
}

/// Writes a file of one test with these series and checks, and returns its path.
pub(super) fn write_test(
    folder: &Path,
    name: &str,
    rules: &str,
    interval: Duration,
    played: &[Value],
    checks: &[Value],
) -> String {
    let interval = format!("{}s", interval.as_secs());
    let test = json!({ "name": name, "interval": interval, "input_series": played, "promql_expr_test": checks });
    let file = json!({ "rule_files": [rules], "evaluation_interval": interval, "tests": [test] });
    let path = folder.join(format!("{name}.test.yaml"));
    fs::write(&path, file.to_string()).unwrap();
    path.display().to_string()
}

/// Fails if a check of these files does.
pub(super) fn test_rules(files: &[String]) {
    let args = [&["test".to_owned(), "rules".to_owned()], files].concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = twofactor_tests::process::run(tools::find("promtool"), &args);
    assert!(said.contains("SUCCESS") && !said.contains("FAILED"), "{said}");
}
