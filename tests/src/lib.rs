//! The test harness: starts real servers and the project's programs on loopback for one test, and
//! stops them with it.
//!
//! It uses the programs that `make tools` installs and the binaries of this workspace. If one of
//! them is missing or fails, the test ends with a sentence that says what to do: the functions here
//! panic where a library would return an error.

#![allow(clippy::missing_panics_doc, reason = "a test fails by panicking")]

pub mod apiserver;
pub mod browser;
pub mod certificates;
pub mod connect_proxy;
pub mod faults;
pub mod http;
pub mod injector;
pub mod kubernetes;
pub mod mail;
pub mod operator;
pub mod ports;
pub mod previous;
pub mod process;
pub mod prometheus;
pub mod provider;
pub mod redis;
pub mod runbook;
pub mod scratch;
pub mod scripted_mail;
pub mod sidecar;
pub mod slow_network;
pub mod tools;
pub mod wait;
pub mod wire;
