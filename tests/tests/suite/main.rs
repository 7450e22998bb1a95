//! All tests that start real servers, in one binary, because linking takes most of the build.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod delivery;
mod docs;
mod harness;
mod monitoring;
mod neighbour;
mod operator;
mod packaging;
mod sidecar;
mod store;
mod structure;
mod support;
