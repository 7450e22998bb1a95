//! Counts the webhook's decisions by reason, measures how long they take, and shows when its
//! certificates end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Histogram, IntCounter, IntGauge, IntGaugeVec};
use twofactor_core::time::UnixMillis;
use twofactor_server::metrics::Registrar;

use super::reason::Reason;
use crate::metrics::number;

/// Histogram buckets in seconds. A decision takes a fraction of a millisecond; the larger buckets
/// are for bodies that arrive slowly.
const BUCKETS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// The webhook's metrics.
#[derive(Clone, Debug)]
pub struct AdmissionMetrics {
    // Looked up once, because the vector that counters come from has a lock.
    counters: HashMap<Reason, IntCounter>,
    seconds: Histogram,
}

impl AdmissionMetrics {
    /// Registers the metrics. Every reason starts with 0.
    ///
    /// # Errors
    /// Fails only if they are registered twice, which would be a defect.
    pub fn new(registrar: &mut Registrar) -> prometheus::Result<Self> {
        let total = registrar.counters(
            "twofactor_admission_total",
            &["decision", "reason"],
            "Admission reviews by decision and reason, dry runs included.",
        )?;
        let seconds = registrar.histograms(
            "twofactor_admission_seconds",
            &[],
            &BUCKETS,
            "Time from the head of a request to its answer, with the arrival of the body.",
        )?;
        let seconds = seconds.with_label_values::<&str>(&[]);
        let counter = |reason: &Reason| {
            (*reason, total.with_label_values(&[reason.verdict().name(), reason.name()]))
        };
        Ok(Self { counters: Reason::ALL.iter().map(counter).collect(), seconds })
    }

    /// Counts an answered request.
    pub fn decided(&self, reason: Reason, took: Duration) {
        if let Some(counter) = self.counters.get(&reason) {
            counter.inc();
        }
        self.seconds.observe(took.as_secs_f64());
    }
}

/// Minimum interval between two log lines about rejected clients, because every pod that reaches
/// the port can cause them.
const REPORT: Duration = Duration::from_mins(1);

/// Counts the connections whose client has no accepted certificate.
#[derive(Clone, Debug)]
pub struct RejectedClients {
    total: IntCounter,
    reported: Arc<Mutex<Option<Instant>>>,
}

impl RejectedClients {
    /// Registers the metric.
    ///
    /// # Errors
    /// Fails only if it is registered twice, which would be a defect.
    pub fn new(registrar: &mut Registrar) -> prometheus::Result<Self> {
        let total = registrar.counter(
            "twofactor_webhook_clients_rejected_total",
            "Connections to the webhook that were rejected because the client has no certificate, or one that is not accepted.",
        )?;
        Ok(Self { total, reported: Arc::default() })
    }

    /// Counts a rejected client.
    pub fn rejected(&self, error: &rustls::Error) {
        self.total.inc();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|at| at.elapsed() >= REPORT) {
            *reported = Some(Instant::now());
            tracing::warn!(%error, "connection to the webhook rejected: the client's certificate is missing or not accepted");
        }
    }
}

/// What admission shows of its certificates.
#[derive(Clone, Debug)]
pub struct CertificateMetrics {
    ends: IntGaugeVec,
    lifetimes: IntGaugeVec,
    trusted: IntGauge,
}

impl CertificateMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// Fails only if they are registered twice, which would be a defect.
    pub fn new(registrar: &mut Registrar) -> prometheus::Result<Self> {
        Ok(Self {
            ends: registrar.gauges(
                "twofactor_certificate_expiry_timestamp_seconds",
                &["certificate"],
                "Unix time at which a certificate ends: webhook is that of this replica, webhook-ca the authority's.",
            )?,
            lifetimes: registrar.gauges(
                "twofactor_certificate_lifetime_seconds",
                &["certificate"],
                "Time from the beginning to the end of that certificate, which is replaced when a third of it is left.",
            )?,
            trusted: registrar.gauge(
                "twofactor_webhook_trusted",
                "1 while this replica has a valid certificate whose authority is in the caBundle, otherwise 0.",
            )?,
        })
    }

    /// Shows the end and the lifetime of this replica's certificate.
    pub fn show_certificate(&self, until: UnixMillis, lifetime: Duration) {
        self.show("webhook", until, lifetime);
    }

    /// Shows the end and the lifetime of the authority.
    pub fn show_authority(&self, until: UnixMillis, lifetime: Duration) {
        self.show("webhook-ca", until, lifetime);
    }

    /// Shows whether the API servers trust this replica.
    pub fn show_trusted(&self, trusted: bool) {
        self.trusted.set(trusted.into());
    }

    fn show(&self, certificate: &str, until: UnixMillis, lifetime: Duration) {
        self.ends.with_label_values(&[certificate]).set(number(until.seconds()));
        self.lifetimes.with_label_values(&[certificate]).set(number(lifetime.as_secs()));
    }
}
