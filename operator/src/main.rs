//! Runs the operator: exits with 0, or prints one sentence and exits with 1.

use std::process::ExitCode;

use twofactor_operator::cli;

fn main() -> ExitCode {
    match cli::start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twofactor-operator: {error}");
            ExitCode::FAILURE
        }
    }
}
