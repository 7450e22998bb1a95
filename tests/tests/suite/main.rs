//! Every test that starts real parts, in one binary: linking dominates on two cores.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

mod acl;
mod browser;
mod chart;
mod clients;
mod conformance;
mod contract;
mod credentials;
mod dev;
mod email;
mod flaws;
mod fuzz;
mod harness;
mod metrics;
mod operator;
mod outcomes;
mod races;
mod redis_cluster;
mod redis_days;
mod redis_sentinel;
mod redis_settings;
mod redis_store;
mod serve;
mod sms;
mod standards;
mod tokens;
mod uniform;
mod webhook_delivery;
mod world;
