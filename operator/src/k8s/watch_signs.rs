//! Records when each watch showed a sign of life last: an answer, an event or a bookmark.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Uri};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};
use twofactor_server::metrics::{Kind, Metric, Registrar};

/// Time in seconds after which the API server ends a watch, which then begins again where it was.
pub const WATCH_TIMEOUT: u32 = 25;
/// Time without any result of a watch, be it an error, after which the process counts as stuck.
const STUCK: Duration = Duration::from_mins(3);

/// The watches of a client. Copies share the same watches.
#[derive(Clone, Debug, Default)]
pub struct WatchSigns(Arc<Mutex<HashMap<WatchKey, Times>>>);

/// A watch: its path, and its selectors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WatchKey {
    path: String,
    selector: String,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    /// When the API server sent something.
    sign: Instant,
    /// When a request began or ended, or the API server sent something.
    attempt: Instant,
}

/// Records the signs of life of one watch.
#[derive(Clone, Debug)]
pub struct Sign {
    signs: WatchSigns,
    key: WatchKey,
}

impl Sign {
    /// Records that the API server has sent something, or that the request has failed.
    pub fn answered(&self, success: bool) {
        self.signs.record(&self.key, success, Instant::now());
    }
}

impl WatchSigns {
    /// Returns what records the signs of life of a request, if it is a watch. The list with which a
    /// watch begins again belongs to the watch.
    pub fn of(&self, method: &Method, uri: &Uri) -> Option<Sign> {
        if method != Method::GET {
            return None;
        }
        let query = uri.query().unwrap_or_default();
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let selectors =
            ["labelSelector", "fieldSelector"].map(|name| value(name).unwrap_or_default());
        let selector = selectors.concat();
        let key = WatchKey { path: uri.path().to_owned(), selector };
        let is_watch = value("watch") == Some("true");
        if !is_watch && !self.watches().contains_key(&key) {
            return None;
        }
        self.record(&key, false, Instant::now());
        Some(Sign { signs: self.clone(), key })
    }

    fn record(&self, key: &WatchKey, is_sign: bool, now: Instant) {
        let mut watches = self.watches();
        let new = Times { sign: now, attempt: now };
        if let Some(times) = watches.get_mut(key) {
            *times = if is_sign { new } else { Times { attempt: now, ..*times } };
        } else {
            watches.insert(key.clone(), new);
        }
    }

    /// Returns the resources of watches that have neither a sign of life nor an error for minutes.
    pub fn stuck(&self, now: Instant) -> Vec<String> {
        let watches = self.watches();
        let is_stuck = |times: &Times| now.saturating_duration_since(times.attempt) > STUCK;
        let stuck = watches.iter().filter(|(_, times)| is_stuck(times));
        stuck.map(|(key, _)| resource(key).to_owned()).collect()
    }

    /// Returns the resources that are watched, each with the longest time since a sign of life.
    fn ages(&self, now: Instant) -> HashMap<String, Duration> {
        let mut ages: HashMap<String, Duration> = HashMap::new();
        for (key, times) in self.watches().iter() {
            let age = ages.entry(resource(key).to_owned()).or_default();
            *age = (*age).max(now.saturating_duration_since(times.sign));
        }
        ages
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<WatchKey, Times>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The resource that is watched, such as `secrets`.
fn resource(key: &WatchKey) -> &str {
    key.path.rsplit('/').next().unwrap_or_default()
}

/// Shows the ages of the last signs of life, when Prometheus asks.
pub struct SignAges {
    signs: WatchSigns,
    gauge: GaugeVec,
}

impl SignAges {
    const METRIC: Metric = Metric {
        name: "twofactor_watch_sign_age_seconds",
        kind: Kind::Gauge,
        labels: &["resource"],
        help: "Time since the API server sent something to a watch, the longest of the resource; about 25 s at most, if the connection lives.",
    };

    /// Shows the watches of `signs`.
    pub fn register(registrar: &mut Registrar, signs: WatchSigns) -> prometheus::Result<()> {
        let Metric { name, labels, help, .. } = Self::METRIC;
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        registrar.collector(Self::METRIC, Self { signs, gauge })
    }
}

impl Collector for SignAges {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (resource, age) in self.signs.ages(Instant::now()) {
            self.gauge.with_label_values(&[resource.as_str()]).set(age.as_secs_f64());
        }
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(signs: &WatchSigns, uri: &str) -> Option<Sign> {
        signs.of(&Method::GET, &uri.parse().unwrap())
    }

    #[test]
    fn only_watches_and_their_lists_are_recorded() {
        let signs = WatchSigns::default();
        let watch = "/api/v1/secrets?&watch=true&labelSelector=a%3Db&resourceVersion=1";
        let list = "/api/v1/secrets?&limit=50&labelSelector=a%3Db";
        assert!(sign(&signs, list).is_none() && sign(&signs, "/api/v1/secrets/x").is_none());
        assert!(sign(&signs, watch).is_some());
        assert!(sign(&signs, list).is_some());
        assert!(sign(&signs, "/api/v1/secrets?&limit=50").is_none());
        assert!(signs.of(&Method::PUT, &watch.parse().unwrap()).is_none());
    }

    #[test]
    fn the_age_is_that_of_the_last_sign_and_errors_show_that_a_watch_is_not_stuck() {
        let signs = WatchSigns::default();
        let key = |selector: &str| WatchKey {
            path: "/api/v1/secrets".to_owned(),
            selector: selector.to_owned(),
        };
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        signs.record(&key("a"), true, begin);
        signs.record(&key("b"), true, begin);
        signs.record(&key("a"), true, after(20));
        assert_eq!(signs.ages(after(30))["secrets"], Duration::from_secs(30));
        signs.record(&key("b"), true, after(25));
        assert_eq!(signs.ages(after(30))["secrets"], Duration::from_secs(10));
        signs.record(&key("a"), false, after(150));
        signs.record(&key("b"), false, after(150));
        assert_eq!(signs.ages(after(160))["secrets"], Duration::from_secs(140));
        assert!(signs.stuck(after(300)).is_empty());
        assert_eq!(signs.stuck(after(400)), ["secrets", "secrets"]);
    }
}
