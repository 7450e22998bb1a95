//! Runs the webhook that gives pods their sidecar. It answers an `AdmissionReview` about a pod that
//! is to be created with a patch, with no patch, or with a refusal that says what is wrong with
//! the pod.
//!
//! A request goes one way: [`routes`] receives its body, [`review`] reads it, [`pod`] decides
//! (without I/O), and the answer goes back. The decision reads the [`annotations`], makes the
//! [`checks`] and refuses the [`exposure`] of credentials; then comes the [`patch`] with the
//! container that [`sidecar`] builds. The webhook sends no request to the API server, which waits
//! for the answer: what is known of realms and `LimitRanges` comes from lookups in memory.

pub mod annotations;
pub mod certificates;
pub mod checks;
pub mod cli;
pub mod clients;
pub mod config;
pub mod defaults;
pub mod exposure;
pub mod given_certificate;
pub mod limit_range;
pub mod mesh;
pub mod metrics;
pub mod patch;
pub mod pod;
pub mod pod_resources;
pub mod quantity;
pub mod reason;
pub mod review;
pub mod routes;
pub mod sidecar;
mod trust;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::state::limit_ranges::ContainerLimit;
use crate::state::realm_policies::NamespaceAccess;

/// Looks up in memory whether a realm (first argument) allows the namespace of a pod (second
/// argument).
pub type AccessLookup = Arc<dyn Fn(&str, &str) -> NamespaceAccess + Send + Sync>;

/// Looks up in memory what `LimitRanges` demand of each container of a namespace.
pub type LimitLookup = Arc<dyn Fn(&str) -> Vec<ContainerLimit> + Send + Sync>;

/// Quotes a text from a pod for a sentence: on one line, and cut after 64 characters.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 64;
    if text.chars().nth(LONGEST).is_none() {
        format!("{text:?}")
    } else {
        let start: String = text.chars().take(LONGEST).collect();
        format!("{start:?}...")
    }
}
