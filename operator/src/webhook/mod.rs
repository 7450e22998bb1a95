//! The webhook that gives pods their sidecar. Enters: an `AdmissionReview` about a pod that is to
//! be created. Leaves: a patch, or the word that none is needed, or a refusal that says what the
//! pod gets wrong.
//!
//! A request goes one way: [`routes`] takes its body in, [`review`] reads it, [`pod`] decides
//! (without I/O), and the answer goes back. The decision reads the [`annotations`], makes the
//! [`checks`] and looks for [`exposure`] of credentials; only then comes the [`patch`] with the
//! container that [`sidecar`] builds. Nothing is asked of the API server while it waits for us:
//! what is known of realms is handed in as a lookup of [`Access`].

pub mod annotations;
pub mod certificates;
pub mod checks;
pub mod cli;
pub mod config;
pub mod defaults;
pub mod exposure;
pub mod metrics;
pub mod patch;
pub mod pod;
pub mod quantity;
pub mod reason;
pub mod review;
pub mod routes;
pub mod sidecar;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::state::realm_policies::Access;

/// Answers from memory: first the realm's namespace, then the namespace of the pod.
pub type AccessLookup = Arc<dyn Fn(&str, &str) -> Access + Send + Sync>;

/// A text that somebody else chose, as it may stand in a sentence: in quotes, on one line, not too
/// long.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 64;
    if text.chars().nth(LONGEST).is_none() {
        format!("{text:?}")
    } else {
        let start: String = text.chars().take(LONGEST).collect();
        format!("{start:?}...")
    }
}
