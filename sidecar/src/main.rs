//! Starts the sidecar, and prints a sentence if it fails.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use twofactor_sidecar::cli;

/// glibc's allocator takes a lock for each large block, such as the future of a request, and makes
/// the threads wait for each other.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match cli::start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twofactor-sidecar: {error}");
            ExitCode::FAILURE
        }
    }
}
