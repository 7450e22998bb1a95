//! Registers metrics for Prometheus, and lists them with kind, labels and meaning, so that their
//! documentation is made from the code.
//!
//! Every value of a label is a constant of the code, so the number of time series is limited.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows only, and begins with 0 at the start of the process.
    Counter,
    /// Grows and shrinks.
    Gauge,
    /// Counts durations in buckets.
    Histogram,
}

impl Kind {
    /// The name of the kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The description of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The meaning, one sentence or more.
    pub help: &'static str,
}

/// Registers metrics, and remembers their descriptions.
///
/// Every method fails if the name or a label is invalid, or registered already. Both are defects.
#[derive(Debug, Default)]
pub struct Registrar {
    registry: Registry,
    metrics: Vec<Metric>,
}

type Labels = &'static [&'static str];
type Name = &'static str;

impl Registrar {
    /// Registers `twofactor_build_info` of this version.
    ///
    /// # Errors
    /// As all methods.
    pub fn of_version(version: &str) -> prometheus::Result<Self> {
        let mut registrar = Self::default();
        let build = registrar.gauges(
            "twofactor_build_info",
            &["version"],
            "Always 1; the label is the version of the program.",
        )?;
        build.with_label_values(&[version]).set(1);
        Ok(registrar)
    }

    /// Registers a counter.
    ///
    /// # Errors
    /// As all methods.
    pub fn counter(&mut self, name: Name, help: Name) -> prometheus::Result<IntCounter> {
        self.add(
            Metric { name, kind: Kind::Counter, labels: &[], help },
            IntCounter::new(name, help),
        )
    }

    /// Registers a counter with labels.
    ///
    /// # Errors
    /// As all methods.
    pub fn counters(
        &mut self,
        name: Name,
        labels: Labels,
        help: Name,
    ) -> prometheus::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels);
        self.add(Metric { name, kind: Kind::Counter, labels, help }, counters)
    }

    /// Registers a gauge.
    ///
    /// # Errors
    /// As all methods.
    pub fn gauge(&mut self, name: Name, help: Name) -> prometheus::Result<IntGauge> {
        self.add(Metric { name, kind: Kind::Gauge, labels: &[], help }, IntGauge::new(name, help))
    }

    /// Registers a gauge with fractions and labels.
    ///
    /// # Errors
    /// As all methods.
    pub fn fractions(
        &mut self,
        name: Name,
        labels: Labels,
        help: Name,
    ) -> prometheus::Result<GaugeVec> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels);
        self.add(Metric { name, kind: Kind::Gauge, labels, help }, gauges)
    }

    /// Registers a gauge with labels. A gauge whose value may be unknown is one without labels,
    /// because it is shown only after a value was set.
    ///
    /// # Errors
    /// As all methods.
    pub fn gauges(
        &mut self,
        name: Name,
        labels: Labels,
        help: Name,
    ) -> prometheus::Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels);
        self.add(Metric { name, kind: Kind::Gauge, labels, help }, gauges)
    }

    /// Registers a histogram. `buckets` are upper bounds in seconds.
    ///
    /// # Errors
    /// As all methods.
    pub fn histograms(
        &mut self,
        name: Name,
        labels: Labels,
        buckets: &[f64],
        help: Name,
    ) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histograms = HistogramVec::new(options, labels);
        self.add(Metric { name, kind: Kind::Histogram, labels, help }, histograms)
    }

    /// Registers a collector that makes its values when Prometheus asks.
    ///
    /// # Errors
    /// As all methods.
    pub fn collector(
        &mut self,
        metric: Metric,
        collector: impl Collector + 'static,
    ) -> prometheus::Result<()> {
        self.metrics.push(metric);
        self.registry.register(Box::new(collector))
    }

    fn add<C: Collector + Clone + 'static>(
        &mut self,
        metric: Metric,
        collector: prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let collector = collector?;
        self.collector(metric, collector.clone())?;
        Ok(collector)
    }

    /// The registry with everything that was registered until now, and later.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// The descriptions, in the order of registration.
    #[must_use]
    pub fn into_metrics(self) -> Vec<Metric> {
        self.metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_registered_is_listed_and_shown() {
        let mut registrar = Registrar::of_version("1.2.3").unwrap();
        registrar.counter("runs_total", "Runs.").unwrap().inc();
        assert!(registrar.counter("runs_total", "Twice.").is_err());
        let shown: Vec<_> =
            registrar.registry().gather().iter().map(|it| it.name().to_owned()).collect();
        assert_eq!(shown, ["runs_total", "twofactor_build_info"]);
    }
}
