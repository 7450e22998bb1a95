//! All tests that start real servers, in one binary, because linking takes most of the build.
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
