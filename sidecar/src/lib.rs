//! The sidecar: answers `/auth/generate` and `/auth/verify` on localhost.
//!
//! A request goes one way: [`routes`] read it, [`otp::generate`] or [`otp::verify`] look up the user in
//! [`otp::records`] and ask the store for the decision, [`delivery`] sends a code, [`audit`] writes the
//! record of it, and the answer or a [`refusal`] goes back, with a token of [`otp::tokens`] where one
//! was asked for; [`otp::uniform`] does it so that nobody sees who is a user. [`serve`] runs that on
//! what the operator published, with credentials that it follows ([`serve::follow`]); [`dev`] on manifests
//! from disk.

/// Writes a line to standard output. Unlike `println!` it does not end the process when nobody
/// reads any more.
macro_rules! say {
    ($($arguments:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($arguments)*);
    }};
}

pub mod audit;
pub mod cli;
pub mod delivery;
pub mod dev;
pub mod metrics;
pub mod otp;
pub mod outcomes;
pub mod process;
pub mod refusal;
pub mod routes;
pub mod serve;
