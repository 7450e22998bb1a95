//! Keeps Redis complete and free of orphaned keys, and checks its settings.

pub mod cleanup;
pub mod monitor;
pub mod refill;
mod secret_pages;
pub mod settings;
