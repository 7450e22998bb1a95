//! Re-exports what the tests of the workspace use beyond the command line.

use twofactor_server::metrics::Metric;

pub use crate::certificates::rotation::{Authorities, Lifetimes};
use crate::k8s::watch_signs::{SignAges, WatchSigns};
use crate::metrics::{self, Metrics};
pub use crate::process::lease;
use crate::state::refused_watches::{ForbiddenWatches, RefusedWatches};
pub use crate::webhook::metrics::CertificateMetrics;
use crate::webhook::metrics::{AdmissionMetrics, RejectedClients};
pub use crate::webhook::{certificates, given_certificate};

/// The descriptions of all metrics of the controller.
///
/// # Panics
/// Panics if one is registered twice.
pub fn controller_metrics() -> Vec<Metric> {
    let mut registrar = metrics::registrar().expect("a name");
    Metrics::new(&mut registrar).expect("names");
    SignAges::register(&mut registrar, WatchSigns::default()).expect("a name");
    ForbiddenWatches::register(&mut registrar, RefusedWatches::default()).expect("a name");
    registrar.into_metrics()
}

/// The descriptions of all metrics of admission.
///
/// # Panics
/// Panics if one is registered twice.
pub fn admission_metrics() -> Vec<Metric> {
    let mut registrar = metrics::registrar().expect("a name");
    metrics::realms_unreadable(&mut registrar).expect("a name");
    AdmissionMetrics::new(&mut registrar).expect("names");
    CertificateMetrics::new(&mut registrar).expect("names");
    RejectedClients::new(&mut registrar).expect("a name");
    SignAges::register(&mut registrar, WatchSigns::default()).expect("a name");
    ForbiddenWatches::register(&mut registrar, RefusedWatches::default()).expect("a name");
    registrar.into_metrics()
}
