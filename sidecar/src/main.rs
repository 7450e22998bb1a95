//! Starts the sidecar, and prints a sentence if it fails.

use std::process::ExitCode;

use twofactor_sidecar::cli;

fn main() -> ExitCode {
    match cli::start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twofactor-sidecar: {error}");
            ExitCode::FAILURE
        }
    }
}
