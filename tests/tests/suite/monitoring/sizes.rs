//! Shows that the alerts about shares of requests fit three sidecars as well as hundreds.

use std::time::Duration;

use serde_json::{Value, json};
use twofactor_tests::scratch;

use super::replay::{test_rules, write_rules, write_test};
use super::rules::rules;

/// Sidecars of the large namespace: as many as `promtool` can play, which reads at most 10,000
/// samples for an expression.
const MANY: usize = 300;
/// Interval between two scrapes, and their number.
const INTERVAL: Duration = Duration::from_mins(5);
const SCRAPES: u32 = 9;
const SHARES: [&str; 4] = [
    "TwoFactorDecisionsUnavailable",
    "TwoFactorDeliveriesFail",
    "TwoFactorManyWrongCodes",
    "TwoFactorUsersThrottled",
];

/// A counter of a sidecar that counts so much in each interval.
fn counter(namespace: &str, pod: usize, metric: &str, labels: &str, each: usize) -> Value {
    let series = format!("{metric}{{namespace=\"{namespace}\",pod=\"{pod}\",{labels}}}");
    json!({ "series": series, "values": format!("0+{each}x{SCRAPES}") })
}

/// The decisions and deliveries of a sidecar: how many go well in each interval, and how
/// many of each kind of failure.
fn sidecar(namespace: &str, pod: usize, good: usize, bad: [usize; 4]) -> [Value; 6] {
    let [unavailable, refused, wrong, throttled] = bad;
    let verify = |outcome: &str, each| {
        let labels = format!("operation=\"verify\",outcome=\"{outcome}\"");
        counter(namespace, pod, "twofactor_decisions_total", &labels, each)
    };
    let delivery = |outcome: &str, each| {
        let labels = format!("channel=\"email\",outcome=\"{outcome}\"");
        counter(namespace, pod, "twofactor_deliveries_total", &labels, each)
    };
    [
        verify("accepted", good),
        verify("store-unavailable", unavailable),
        verify("invalid-code", wrong),
        verify("throttled", throttled),
        delivery("sent", good),
        delivery("refused", refused),
    ]
}

#[test]
fn alerts_about_shares_fire_for_one_of_three_sidecars_and_not_for_a_few_failures_of_hundreds() {
    let mut played = Vec::new();
    for pod in 0..MANY {
        // One in a hundred has a failure in each interval, and one in ten a wrong code.
        let few = usize::from(pod % 100 == 0);
        let bad = [few, few, usize::from(pod % 10 == 0), few];
        played.extend(sidecar("large", pod, 50, bad));
    }
    for pod in 0..3 {
        let bad = if pod == 0 { [10, 10, 100, 10] } else { [0; 4] };
        played.extend(sidecar("small", pod, 10, bad));
    }
    let rules: Vec<Value> = rules()
        .into_iter()
        .filter(|rule| SHARES.iter().any(|name| rule["alert"] == *name))
        .collect();
    let folder = scratch::folder("sizes");
    let file = write_rules(folder.path(), "sizes", &rules);
    let firing = |namespace: &str| {
        let alerts = format!("ALERTS{{alertstate=\"firing\",namespace=\"{namespace}\"}}");
        let labels = |name: &&str| format!("{{alertname=\"{name}\"}}");
        let expected: Vec<Value> = SHARES
            .iter()
            .filter(|_| namespace == "small")
            .map(|name| json!({ "labels": labels(name), "value": 1 }))
            .collect();
        json!({ "expr": format!("count by (alertname) ({alerts})"),
            "eval_time": format!("{}s", (INTERVAL * SCRAPES).as_secs()), "exp_samples": expected })
    };
    let checks = [firing("small"), firing("large")];
    test_rules(&[write_test(folder.path(), "sizes", &file, INTERVAL, &played, &checks)]);
}
