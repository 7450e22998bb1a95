//! Tests that hold pages of `docs/` to what the programs do.

mod known_flaws;
mod outcomes;
