//! Worlds, clusters and sidecars that tests start from.

pub(crate) mod cluster;
pub(crate) mod sidecar;
pub(crate) mod world;
