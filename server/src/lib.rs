//! What every program of the project needs to be a good server, in one place.
//!
//! Enters: bound listeners, warp routes, a signal to stop. Leaves: answers; and at the end, after
//! the last of them, control. [`http`] serves, [`tls`] encrypts what it serves, [`admin`] is the
//! port for probes and Prometheus, [`logging`] writes log lines.

pub mod admin;
pub mod http;
pub mod logging;
pub mod tls;
