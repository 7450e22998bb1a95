//! Brings about the causes of alerts in a running system, which a real Prometheus scrapes, and
//! shows that each alert fires within its stated time.
//!
//! Prometheus evaluates the rules without their `for`, and with lower limits for times since
//! something, because tests do not wait for minutes. What it has recorded is then played to the
//! rules as they are ([`replay`](super::replay)).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use twofactor_store::clock::Clock;
use twofactor_tests::prometheus::{Prometheus, Target};
use twofactor_tests::wait::eventually;

use super::replay::{Fired, Snapshot, all_of, assert_fire_in_time};
use super::rules::{alerts, rules, without};
use super::stated::{Stated, duration, stated};

/// Limits of times since something: in the rules, and here.
const LIMITS: [(&str, &str); 2] = [
    ("(twofactor_watch_sign_age_seconds) > 90", "(twofactor_watch_sign_age_seconds) > 35"),
    (
        "(twofactor_operator_heartbeat_age_seconds) > 60",
        "(twofactor_operator_heartbeat_age_seconds) > 15",
    ),
];

/// A Prometheus that evaluates the alerts, and what has fired.
pub(super) struct Alarms {
    pub(super) prometheus: Prometheus,
    stated: BTreeMap<String, Stated>,
    fired: Mutex<Vec<Fired>>,
}

impl Alarms {
    /// Scrapes each second, and evaluates the rules without delays.
    pub(super) async fn start(targets: &[Target]) -> Self {
        let mut text = without(&alerts(), "for");
        for (limit, here) in LIMITS {
            assert!(text.contains(limit), "{limit}");
            text = text.replace(limit, here);
        }
        Self::with_rules(targets, &text).await
    }

    /// Scrapes each second, and evaluates these rules.
    pub(super) async fn with_rules(targets: &[Target], rules: &str) -> Self {
        let prometheus = Prometheus::start(targets, rules).await;
        eventually(Duration::from_secs(30), "all targets to be scraped", async || {
            let up = prometheus.query("up == 1").await?;
            if up.len() == targets.len() { Ok(()) } else { Err(format!("{up:?}")) }
        })
        .await;
        Self { prometheus, stated: stated(), fired: Mutex::default() }
    }

    /// Brings about a cause, and waits until its alerts fire, each within its stated time.
    pub(super) async fn fire(&self, names: &[&str], cause: impl AsyncFnOnce()) {
        let mut before = Vec::new();
        for name in names {
            // Alerts without a delay may fire while a system starts.
            eventually(Duration::from_mins(1), format_args!("{name} to be silent"), async || {
                !self.prometheus.firing().await.contains(*name)
            })
            .await;
            before.push(self.snapshot(&expression(name)).await);
        }
        let begun = Instant::now();
        cause().await;
        for (name, before) in names.iter().zip(before) {
            let within = self.stated[*name].within.expect("a stated time");
            // The rules have no delay here.
            let delay = wait_of(name);
            eventually(within.saturating_sub(delay), format_args!("{name} to fire"), async || {
                let firing = self.prometheus.firing().await;
                if firing.contains(*name) { Ok(()) } else { Err(format!("{firing:?}")) }
            })
            .await;
            let took = begun.elapsed();
            println!("{name}: {:.1} s and {} s", took.as_secs_f64(), delay.as_secs());
            let after = self.snapshot(&expression(name)).await;
            let alert = (*name).to_owned();
            self.keep(Fired { alert, before, after, within, stalls: false });
        }
    }

    /// Waits until an alert fires for which another cause is played.
    pub(super) async fn wait_firing(&self, name: &str) {
        eventually(Duration::from_secs(30), format_args!("{name} to fire"), async || {
            self.prometheus.firing().await.contains(name)
        })
        .await;
    }

    /// Brings about a cause after which a moment stands still, and waits until `failed` has a
    /// result, which shows that the moment would have moved without the cause. The alert compares
    /// it with a time that no test waits for.
    pub(super) async fn stall(&self, name: &str, failed: &str, cause: impl AsyncFnOnce()) {
        let before = self.snapshot(&expression(name)).await;
        cause().await;
        eventually(Duration::from_secs(30), failed, async || {
            let found = self.prometheus.query(failed).await?;
            if found.is_empty() { Err("none") } else { Ok(()) }.map_err(ToOwned::to_owned)
        })
        .await;
        let after = self.snapshot(&expression(name)).await;
        let within = self.stated[name].within.expect("a stated time");
        self.keep(Fired { alert: name.to_owned(), before, after, within, stalls: true });
    }

    fn keep(&self, fired: Fired) {
        self.fired.lock().unwrap_or_else(PoisonError::into_inner).push(fired);
    }

    /// Fails if an alert fires earlier or later than it should, with its delay.
    pub(super) fn assert_fire_in_time(&self) {
        assert_fire_in_time(&self.fired.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until no alert fires.
    pub(super) async fn wait_silent(&self) {
        eventually(Duration::from_mins(1), "no alert", async || {
            let firing = self.prometheus.firing().await;
            if firing.is_empty() { Ok(()) } else { Err(format!("{firing:?}")) }
        })
        .await;
    }

    /// The series of all metrics of an expression.
    pub(super) async fn snapshot(&self, expression: &str) -> Snapshot {
        let time = now();
        let results = self.prometheus.query_at(&all_of(expression), time).await.unwrap();
        Snapshot::new(time, &results)
    }
}

/// The expression of an alert.
fn expression(name: &str) -> String {
    let rule = rules().into_iter().find(|rule| rule["alert"] == name);
    rule.unwrap_or_else(|| panic!("no alert {name}"))["expr"].as_str().unwrap().to_owned()
}

/// The delay of an alert.
fn wait_of(name: &str) -> Duration {
    let rule = rules().into_iter().find(|rule| rule["alert"] == name).unwrap();
    duration(rule["for"].as_str().unwrap_or("0s"))
}

/// The Unix time in seconds.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a float")]
pub(super) fn now() -> f64 {
    Clock::System.now().millis() as f64 / 1000.0
}
