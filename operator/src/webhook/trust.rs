//! Reads what API servers trust from the webhook configuration, decides whether a replica counts as
//! trusted, and shows it. No I/O.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use twofactor_core::time::UnixMillis;
use twofactor_server::admin::Check;

use super::metrics::CertificateMetrics;
use crate::certificates::authority::Root;

/// Time for which a replica stays ready although the configuration lacks its authority. If the
/// caBundle was emptied, it is filled again sooner than a pod would become ready again.
const MISSING_LIMIT: Duration = Duration::from_secs(30);

/// Returns the roots that are in the caBundle of every webhook of the configuration.
pub fn published_roots(configuration: &MutatingWebhookConfiguration) -> Vec<Root> {
    let webhooks = configuration.webhooks.iter().flatten();
    let mut bundles = webhooks.map(|webhook| {
        webhook
            .client_config
            .ca_bundle
            .as_ref()
            .map(|bundle| Root::all_in(&bundle.0))
            .unwrap_or_default()
    });
    let mut roots = bundles.next().unwrap_or_default();
    for bundle in bundles {
        roots.retain(|root| bundle.contains(root));
    }
    roots
}

/// Whether API servers trust the certificate of this replica.
#[derive(Debug, Default)]
pub struct Trust {
    /// Whether the configuration has ever contained the certificate's authority.
    was_shown: bool,
    /// Time since which the configuration lacks it.
    missing_since: Option<UnixMillis>,
}

impl Trust {
    /// Records whether the configuration contains the certificate's authority.
    pub fn observe(&mut self, is_shown: bool, now: UnixMillis) {
        if is_shown {
            (self.was_shown, self.missing_since) = (true, None);
        } else {
            self.missing_since.get_or_insert(now);
        }
    }

    /// Whether the replica counts as trusted.
    pub fn holds(&self, now: UnixMillis) -> bool {
        let missing = self.missing_since.is_some_and(|since| since.until(now) >= MISSING_LIMIT);
        self.was_shown && !missing
    }
}

/// Shows whether the replica is trusted in its readiness and in the metrics, and logs a change.
pub fn show(is_ready: bool, ready: &Check, metrics: &CertificateMetrics) {
    if is_ready != ready.passes() {
        tracing::info!(ready = is_ready, "webhook certificate readiness changed");
    }
    ready.set(is_ready);
    metrics.show_trusted(is_ready);
}

/// The last problem, which is logged when it changes and not in every round.
#[derive(Debug, Default)]
pub struct LastProblem(Option<String>);

impl LastProblem {
    pub fn log(&mut self, problem: &str) {
        if self.0.as_deref() != Some(problem) {
            tracing::warn!("{problem}");
            self.0 = Some(problem.to_owned());
        }
    }

    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_trusted_until_its_authority_is_missing_for_half_a_minute() {
        let at = UnixMillis::from_seconds;
        let mut trust = Trust::default();
        assert!(!trust.holds(at(0)));
        trust.observe(false, at(0));
        assert!(!trust.holds(at(1)));
        trust.observe(true, at(2));
        assert!(trust.holds(at(500)));
        trust.observe(false, at(501));
        trust.observe(false, at(510));
        assert!(trust.holds(at(530)) && !trust.holds(at(531)));
        trust.observe(true, at(540));
        assert!(trust.holds(at(541)));
    }
}
