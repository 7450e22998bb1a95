//! Serves HTTP: what every program of the project needs for that, in one place.
//!
//! [`http`] answers requests until a program is stopped, [`tls`] encrypts, [`admin`] is the port
//! for probes and Prometheus, [`metrics`] are registered, [`probe`] asks the port, [`logging`]
//! writes log lines, [`startup`] reads files and receives signals.

pub mod admin;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod probe;
mod slots;
pub mod startup;
pub mod tls;
