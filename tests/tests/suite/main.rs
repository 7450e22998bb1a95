//! Every test that starts real parts, in one binary: linking dominates on two cores.

mod conformance;
mod contract;
mod dev;
mod email;
mod harness;
mod redis_store;
mod serve;
mod standards;
mod world;
