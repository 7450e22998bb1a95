//! The program. Enters: flags and the environment. Leaves: an exit status, and a sentence when it
//! is not 0.

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
