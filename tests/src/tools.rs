//! Finds programs, and panics with a sentence that says how to get a missing one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// A program that `make tools` installs.
#[must_use]
pub fn find(program: &str) -> PathBuf {
    first_with(program, own_folders().into_iter().chain(search_path()))
}

/// A program of Kubernetes. `KUBEBUILDER_ASSETS` is searched first, as in other operator projects.
#[must_use]
pub fn find_kubernetes(program: &str) -> PathBuf {
    let assets = folder_of("KUBEBUILDER_ASSETS");
    first_with(program, assets.into_iter().chain(own_folders()).chain(search_path()))
}

/// A binary of this workspace, in the target folder of the running test or benchmark.
#[must_use]
pub fn project_binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of the running test");
    // target/PROFILE/deps/TEST or target/PROFILE/BENCHMARK, so two up or one.
    let mut beside = test.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    beside.find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{name} is not built beside {}: run `cargo build --workspace`", test.display())
    })
}

/// A file of `tests/tools`, such as a script that an installed program runs.
#[must_use]
pub fn file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// The library that moves the clock of a single process.
#[must_use]
pub fn libfaketime() -> PathBuf {
    let beside = |folder: &Path| folder.join("faketime/libfaketime.so.1");
    let by_architecture =
        std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    [PathBuf::from("/usr/lib")]
        .into_iter()
        .chain(by_architecture)
        .map(|folder| beside(&folder))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("libfaketime (Debian package faketime) is not installed: run `make tools`")
        })
}

/// `setpriv`, if this machine has one that can kill a process when its parent dies.
#[must_use]
pub fn setpriv() -> Option<&'static Path> {
    static FOUND: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let path =
            search_path().map(|folder| folder.join("setpriv")).find(|path| path.is_file())?;
        let works = Command::new(&path)
            .args(["--pdeathsig", "KILL", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        works.then_some(path)
    });
    FOUND.as_deref()
}

fn first_with(program: &str, folders: impl Iterator<Item = PathBuf>) -> PathBuf {
    folders
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{program} is not installed: run `make tools`"))
}

/// The folder of installed tools, from the environment or from `tests/tools/install`.
fn own_folders() -> Vec<PathBuf> {
    let cache = folder_of("TWOFACTOR_CACHE")
        .or_else(|| Some(folder_of("XDG_CACHE_HOME")?.join("fountainai-2fa")))
        .or_else(|| Some(folder_of("HOME")?.join(".cache/fountainai-2fa")));
    folder_of("TWOFACTOR_TOOLS_BIN")
        .into_iter()
        .chain(cache.map(|cache| cache.join("tools/bin")))
        .collect()
}

fn search_path() -> impl Iterator<Item = PathBuf> {
    env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
}

/// An empty variable counts as unset, as in the shell's `${NAME:-}`.
fn folder_of(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
