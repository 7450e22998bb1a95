//! The sidecar: answers `/auth/generate` and `/auth/verify` on localhost.
//!
//! A request goes one way: [`routes`] read it, [`generate`] or [`verify`] look up the user in
//! [`records`] and ask the store for the decision, [`delivery`] sends a code, [`audit`] writes the
//! record of it, and the answer or a [`refusal`] goes back, with a token of [`tokens`] where one
//! was asked for; [`uniform`] does it so that nobody sees who is a user. [`serve`] runs that on
//! what the operator published, with credentials that it follows ([`follow`]); [`dev`] on manifests
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
pub mod counted;
pub mod credentials;
pub mod delivery;
pub mod dev;
pub mod follow;
pub mod generate;
pub mod listen;
pub mod manifests;
pub mod metrics;
pub mod outcomes;
pub mod records;
mod redis_settings;
mod refresh;
pub mod refusal;
pub mod routes;
pub mod run;
pub mod serve;
pub mod service;
pub mod settings;
pub mod store_metrics;
pub mod tokens;
pub mod uniform;
pub mod verify;
pub mod work;
