//! The harness: real parts, started on loopback for one test and ended with it.
//!
//! Enters: programs that `make tools` installs and the binaries of this workspace. Leaves: running
//! servers, what they wrote, and clients to talk to them. Whatever cannot be had ends the test with
//! a sentence that says what to do, so the functions here panic where a library would return an
//! error.

#![allow(clippy::missing_panics_doc, reason = "in a test, a panic is how a failure is told")]

pub mod apiserver;
pub mod browser;
pub mod certificates;
pub mod faults;
pub mod http;
pub mod kubernetes;
pub mod mail;
pub mod operator;
pub mod ports;
pub mod process;
pub mod provider;
pub mod redis;
pub mod scratch;
pub mod sidecar;
pub mod tools;
pub mod wait;
