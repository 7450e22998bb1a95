//! Finds the programs and the source of the previous release, which `make tools` builds.

use std::path::PathBuf;

use crate::tools;

/// A program of the previous release.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    tools::find(&format!("previous-release/bin/{name}"))
}

/// The source of the previous release.
#[must_use]
pub fn source() -> PathBuf {
    let manifest = tools::find("previous-release/source/Cargo.toml");
    manifest.parent().expect("a folder").to_owned()
}
