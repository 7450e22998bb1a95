//! Runs one process until the signal to stop, and joins every task. If one task ends early, all
//! end.
//!
//! There are two kinds of processes, so that nothing that a leader meets in Redis, in its users or
//! in its memory reaches admission: [`admission`] gives pods their sidecar, and every replica does
//! the same; [`controller`] does everything else, and one of its replicas leads: see [`leader`].
//! Both know which namespaces are allowed: see [`replica`].

pub mod admission;
pub mod config;
pub mod controller;
pub mod error;
pub mod leader;
pub mod lease;
pub mod master_key;
pub mod obstacle;
pub mod replica;
pub mod startup;
pub mod tasks;

use std::time::Duration;

/// Timeout for unfinished work at the end.
const DRAIN: Duration = Duration::from_secs(10);
