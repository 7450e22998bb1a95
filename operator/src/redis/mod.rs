//! Keeps Redis complete, free of orphaned keys, and configured as it should be.

pub mod cleanup;
pub mod monitor;
pub mod refill;
pub mod settings;
