//! Reads the master key of `dev` from its file, or creates it at the first start, so that records
//! in Redis can be opened after a restart.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use twofactor_core::key::MasterKey;

use crate::error::RunError;

/// Reads or creates the key at `path`, or in the user's state directory.
pub fn read_or_create(path: Option<&Path>) -> Result<MasterKey, RunError> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => default_path()?,
    };
    let wrong = |error: &dyn ToString| {
        RunError::Configuration(format!(
            "--master-key-file {}: {}",
            path.display(),
            error.to_string()
        ))
    };
    match fs::read_to_string(&path) {
        Ok(text) => return MasterKey::from_base64(&text).map_err(|error| wrong(&error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(&error)),
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| wrong(&error))?;
    }
    let key = MasterKey::generate(&mut UnwrapErr(SysRng));
    // Written to another file and then linked, so that no process reads a part of it and the first
    // of two processes wins.
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| writeln!(file, "{}", key.to_base64().expose_secret()))
        .and_then(|()| fs::hard_link(&draft, &path));
    let _ = fs::remove_file(&draft);
    match written {
        Ok(()) => Ok(key),
        // Another process was quicker, so its key is used.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = fs::read_to_string(&path).map_err(|error| wrong(&error))?;
            MasterKey::from_base64(&text).map_err(|error| wrong(&error))
        }
        Err(error) => Err(wrong(&error)),
    }
}

fn default_path() -> Result<PathBuf, RunError> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("fountainai-2fa/master-key"))
        .ok_or_else(|| {
            RunError::Configuration(
                "there is no home directory: name a file with --master-key-file".to_owned(),
            )
        })
}
