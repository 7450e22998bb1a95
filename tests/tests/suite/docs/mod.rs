//! Tests that hold pages of `docs/` to what the programs do.

mod client_programs;
mod known_flaws;
mod metrics;
mod outcomes;
mod security;
mod troubleshooting;
