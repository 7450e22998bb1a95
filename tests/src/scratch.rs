//! Creates temporary folders, which are removed with their owner, or at the latest at the start of
//! the next test run.
//!
//! Folders in a static or of a killed process are not dropped. Each process therefore keeps its
//! folders in one locked folder, and a later process removes those whose lock is free.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tempfile::TempDir;

const PREFIX: &str = "twofactor-tests-";
const LOCK: &str = ".lock";

static OF_THIS_PROCESS: LazyLock<(PathBuf, File)> = LazyLock::new(|| {
    sweep();
    let folder =
        tempfile::Builder::new().prefix(PREFIX).tempdir().expect("a temporary folder").keep();
    // Renamed after it is locked, so that no other process finds the lock free in between.
    let lock = File::create(folder.join("new")).expect("a lock file");
    lock.lock().expect("the lock on a new file");
    fs::rename(folder.join("new"), folder.join(LOCK)).expect("to rename the lock file");
    (folder, lock)
});

/// A folder for `name`, removed when the value is dropped.
#[must_use]
pub fn folder(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(&OF_THIS_PROCESS.0)
        .unwrap_or_else(|error| panic!("a temporary folder for {name}: {error}"))
}

fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_abandoned(&entry.path()) {
            // Another process may be removing it at this moment.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

fn is_abandoned(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}
