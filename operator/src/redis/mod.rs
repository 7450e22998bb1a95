//! Keeps Redis complete and free of orphaned keys, and checks its settings.

pub mod comparison;
pub mod leftovers;
mod memory;
pub mod monitor;
pub mod ownership;
pub mod refill;
pub mod removals;
mod schedule;
mod secret_pages;
pub mod settings;
