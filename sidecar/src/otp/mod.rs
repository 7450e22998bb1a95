//! Answers requests to generate and to verify a code.

pub mod background;
pub mod generate;
pub mod records;
pub mod service;
pub mod tokens;
pub mod uniform;
pub mod verify;
