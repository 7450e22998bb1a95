//! The sidecar: answers `/auth/generate` and `/auth/verify` on localhost.
//!
//! Layers, each of which may use those below it, as the test `structure` checks:
//!
//! 1. `main` is the entry point; `testing` exports what the tests need.
//! 2. `cli` parses the command line.
//! 3. `serve` runs on what the operator published, `dev` on manifests from disk.
//! 4. `process` listens, runs the background tasks and stops them.
//! 5. `routes` reads requests and writes replies.
//! 6. `otp` generates and verifies codes.
//! 7. `refusal` has every answer other than a success.
//! 8. `delivery` sends codes; `audit`, `metrics` and `error` use no other layer.
#![allow(
    unreachable_pub,
    reason = "only `cli` and `testing` are public, so `pub` means this crate"
)]

/// Writes a line to standard output. Unlike `println!` it does not panic if the reader has closed
/// the pipe.
macro_rules! say {
    ($($arguments:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($arguments)*);
    }};
}

mod audit;
pub mod cli;
mod delivery;
mod dev;
mod error;
mod metrics;
mod otp;
mod process;
mod refusal;
mod routes;
mod serve;
pub mod testing;
