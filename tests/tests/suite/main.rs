//! Every test that starts real parts, in one binary: linking dominates on two cores.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

mod delivery;
mod docs;
mod harness;
mod operator;
mod packaging;
mod sidecar;
mod store;
mod structure;
mod support;
