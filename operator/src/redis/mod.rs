//! Keeps Redis complete and free of orphaned keys, and follows its access and its settings.

pub mod access;
pub mod certificate;
mod certificate_end;
pub mod comparison;
pub mod leftovers;
mod memory;
pub mod monitor;
pub mod ownership;
pub mod password;
pub mod refill;
pub mod removals;
mod schedule;
mod secret_pages;
pub mod settings;
