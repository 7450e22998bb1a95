//! Helpers and fixtures that several suites use.

pub(crate) mod cluster;
pub(crate) mod home;
pub(crate) mod neighbour;
pub(crate) mod sidecar;
pub(crate) mod webhook;
pub(crate) mod world;
