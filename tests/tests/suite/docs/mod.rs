//! Tests that hold pages of `docs/` to what the programs do.

mod client_programs;
mod guesses;
mod known_flaws;
mod metrics;
mod outcomes;
mod security;
mod troubleshooting;
